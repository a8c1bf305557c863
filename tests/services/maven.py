"""The jars of a real service, brought by Maven into the tests' cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import services

_FETCH_SECONDS = 400.0


def fetch_jars(service: str, folder: Path) -> Path:
    """Returns `folder` with the jars that SERVICE-pom.xml names, brought by Maven the first time."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
    pom = Path(__file__).with_name(f"{service}-pom.xml")
    command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime"]
    run_or_refuse(service, [*command, f"-DoutputDirectory={fresh}"], fresh)
    return settle(fresh, folder)


def run_or_refuse(service: str, command: list[str], fresh: Path) -> None:
    """Runs a command that fills `fresh`; refuses the service, and clears the folder, where that fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
        failure = (done.stdout + done.stderr)[-500:] if done.returncode else ""
    except subprocess.TimeoutExpired:
        failure = f"not done after {_FETCH_SECONDS:g} s"
    if failure:
        shutil.rmtree(fresh, ignore_errors=True)
        services.refuse(service, f"{command[0]} cannot fetch it: {failure}")


def settle(fresh: Path, folder: Path) -> Path:
    """Returns `folder`, which is `fresh` under its last name, unless another run was faster."""
    try:
        fresh.rename(folder)
    except OSError:
        shutil.rmtree(fresh)
    return folder
