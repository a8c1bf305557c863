"""`headrace up` as a real process, for every test that wants real doors.

with running(tmp_path) as up:
    assert up.post("/v1/track", {"anonymousId": "ann"}).status == 200
    assert up.read("clicks")[0]["key"] == "ann"
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from headrace.collect.keys import hash_key
from headrace.console.cli import main
from headrace.console.init import write_project
from headrace.project import DOORS, open_project

START_SECONDS = 20.0


@dataclass(frozen=True)
class Answer:
    """What a door answered."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    """A running `headrace up`."""

    folder: Path
    profile: str | None
    process: subprocess.Popen[bytes]
    log: Path
    urls: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The collector's address, like http://127.0.0.1:40123."""
        return self.urls["collector"]

    @property
    def address(self) -> tuple[str, int]:
        """The collector's host and port."""
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 0)

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the roles' workers, by name, as the supervisor last wrote them down."""
        found: dict[str, int] = {}
        for path in sorted((self.folder / ".headrace" / "run").glob("*.json")):
            found |= json.loads(path.read_text())["pids"]
        return found

    def ends(self, topic: str = "clicks") -> dict[int, int]:
        """Returns the next offset of each partition, for a later `read(start=...)`."""
        with open_project(self.folder, profile=self.profile) as project:
            return {p: bound.end for p, bound in enumerate(project.topic(topic).bounds())}

    def read(self, topic: str = "clicks", start: Mapping[int, int] | None = None) -> list[dict[str, Any]]:
        """Returns what a topic holds: partition, offset, key, time_us, value (JSON), raw, headers."""
        with open_project(self.folder, profile=self.profile) as project:
            log = project.topic(topic)
            ends = {p: bound.end for p, bound in enumerate(log.bounds())}
            offsets = {p: bound.start for p, bound in enumerate(log.bounds())} if start is None else dict(start)
            found: list[dict[str, Any]] = []
            while any(offset < ends[p] for p, offset in offsets.items()):
                messages = log.read(offsets, wait_seconds=1.0)
                if not messages:
                    break
                for message in messages:
                    offsets[message.partition] = message.offset + 1
                    found.append(_as_dict(message))
            return found

    def sql(self, text: str, *options: object) -> list[dict[str, Any]]:
        """Returns the rows that `headrace table sql` answers."""
        words = ["table", "sql", text, "--json", *options]
        if self.profile:
            words += ["--profile", self.profile]
        code, out, error = headrace(*words, cwd=self.folder)
        assert code == 0, error
        return lines(out)

    def post(
        self,
        path: str,
        body: Any = b"",
        *,
        key: str | None = "dev",
        headers: Mapping[str, str] | None = None,
        method: str = "POST",
        timeout: float = 10.0,
    ) -> Answer:
        """Sends one request; a body that is not bytes is sent as JSON."""
        data = (
            body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        )
        sent = {"content-type": "application/json", **(headers or {})}
        if key is not None:
            sent.setdefault("authorization", "Basic " + b64encode(f"{key}:".encode()).decode())
        connection = http.client.HTTPConnection(*self.address, timeout=timeout)
        try:
            connection.request(method, path, data, sent)
            found = connection.getresponse()
            return Answer(found.status, found.read(), {name.lower(): value for name, value in found.getheaders()})
        finally:
            connection.close()

    def get(self, path: str, **options: Any) -> Answer:
        """Asks for a path without a body."""
        return self.post(path, method="GET", **options)

    def stop(self, number: int = signal.SIGTERM, *, seconds: float = 10.0) -> int:
        """Ends `up` with a signal and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Ends `up` with kill -9."""
        self.stop(signal.SIGKILL)


def _as_dict(message: Any) -> dict[str, Any]:
    try:
        value = json.loads(message.value) if message.value is not None else None
    except (ValueError, RecursionError):
        value = None
    return {
        "partition": message.partition,
        "offset": message.offset,
        "key": None if message.key is None else message.key.decode("utf-8", "replace"),
        "time_us": message.time_us,
        "value": value,
        "raw": message.value,
        "headers": dict(message.headers),
    }


def project_toml(
    *,
    topics: str = "sqlite:///.headrace/topics",
    clock: str = "real://",
    keys: Mapping[str, str] | None = None,
    extra: str = "",
    profile: str = "laptop",
    **collect: Any,
) -> str:
    """Returns a headrace.toml with free ports, `keys` in plain text by name, and settings of [collect]."""
    table = {"port": 0, **collect}
    lines = [f"[profile.{profile}]", f'topics = "{topics}"', f'clock = "{clock}"', "", "[collect]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    lines += ["", *(f"[{role}]\nport = 0\n" for role in DOORS if role != "collector" and f"[{role}]" not in extra)]
    lines += ["[keys]", *(f'{name} = "{hash_key(key)}"' for name, key in (keys or {"dev": "dev"}).items())]
    return "\n".join([*lines, "", extra])


@contextlib.contextmanager
def running(
    folder: Path,
    *roles: str,
    env: Mapping[str, str] | None = None,
    profile: str | None = None,
    toml: str = "",
) -> Iterator[Running]:
    """Yields a running `headrace up` of the project in `folder`, which is made if it does not stand.

    `toml` replaces headrace.toml; see `project_toml`. At the end everything is stopped.
    """
    if not (folder / "headrace.toml").exists():
        write_project(folder, ports=(0, 0, 0))
    if toml:
        (folder / "headrace.toml").write_text(toml)
    log = folder / "up.log"
    command = [sys.executable, "-m", "headrace", "up", *roles, "--json", "--project", str(folder)]
    command += ["--profile", profile] if profile else []
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            # A buffer would hide the second of two lines from select.
            bufsize=0,
            stderr=errors,
            env={**os.environ, **(env or {})},
        )
    up = Running(folder, profile, process, log)
    try:
        for _ in [role for role in roles or _default_roles(folder, profile) if role in DOORS]:
            line = json.loads(_read_line(up))
            up.urls[line["role"]] = line["url"]
        yield up
    finally:
        _end(up)


def _default_roles(folder: Path, profile: str | None) -> Sequence[str]:
    with open_project(folder, profile=profile) as project:
        return tuple(DOORS) if project.declared.pages else ("collector",)


def _read_line(up: Running) -> bytes:
    assert up.process.stdout is not None
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if select.select([up.process.stdout], [], [], 0.1)[0]:
            line = up.process.stdout.readline()
            if line:
                return line
            break
    raise AssertionError(f"`headrace up` did not become ready:\n{up.log.read_text()[-4000:]}")


def _end(up: Running) -> None:
    if up.process.poll() is None:
        up.process.terminate()
        # A test may have frozen it.
        up.process.send_signal(signal.SIGCONT)
        try:
            up.process.wait(5)
        except subprocess.TimeoutExpired:
            up.process.kill()
            up.process.wait()
    if up.process.stdout is not None:
        up.process.stdout.close()


def freeze(pid: int) -> None:
    """Stops a process by SIGSTOP and returns when none of its threads runs: the signal alone is only on its way."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(_state(stat) == "T" for stat in Path(f"/proc/{pid}/task").glob("*/stat")))


def _state(stat: Path) -> str:
    return stat.read_text().rpartition(") ")[2][0]


def wait_until(condition: Callable[[], Any], *, seconds: float = 10.0, what: str = "") -> Any:
    """Returns the condition's first true value; fails when none came in time."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what or condition}"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Returns whether a process runs (a zombie does not)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def headrace(
    *words: object, cwd: Path, stdin: str | None = None, env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Returns exit code, stdout and stderr of one command, run in a project's folder."""
    done = subprocess.run(
        [sys.executable, "-m", "headrace", *map(str, words)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "COLUMNS": "120", **(env or {})},
    )
    return done.returncode, done.stdout, done.stderr


def call(*words: object, stdin: str = "", cwd: Path | None = None) -> tuple[int, str, str]:
    """Returns exit code, stdout and stderr of one command in this process, which spares a second of imports."""
    out, error = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin.encode(errors="surrogateescape")))
    try:
        with contextlib.chdir(cwd or "."), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = main([str(word) for word in words])
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        sys.stdin.close()
        sys.stdin = before
    return code, out.getvalue(), error.getvalue()


def clicked(message_id: str, product: str = "p1", **properties: Any) -> dict[str, Any]:
    """Returns the event that Ann clicked a product."""
    return {
        "type": "track",
        "event": "Product Clicked",
        "messageId": message_id,
        "anonymousId": "ann",
        "properties": {"product_id": product, **properties},
    }


def lines(text: str) -> list[Any]:
    """Returns the JSON objects that a command printed, one per line."""
    return [json.loads(line) for line in text.splitlines()]
