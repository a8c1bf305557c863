"""A real Spark with Delta, in an environment of its own; one driver process answers the scripts of a whole run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import services
from services.maven import fetch_jars, run_or_refuse, settle

_PYSPARK = "pyspark==4.2.0"
_START_SECONDS = 100.0
_DRIVER = Path(__file__).with_name("spark_driver.py")
# Tests hold a few rows: without the first two, every look at a table runs 50 tasks.
_SETTINGS = {
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.shuffle.partitions": "1",
    "spark.default.parallelism": "1",
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.session.timeZone": "UTC",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "768m",
    "spark.hadoop.dfs.replication": "2",
}


@dataclass(frozen=True)
class Installed:
    """Where Spark's own Python and the jars of Delta and Kafka are."""

    python: Path
    jars: Path


def fetch_spark() -> Installed:
    """Returns Spark, brought by pip and Maven the first time."""
    return Installed(_fetch_python() / "bin" / "python", fetch_jars("spark", services.cache_folder("spark-jars-4.2.0")))


def _fetch_python() -> Path:
    folder = services.cache_folder("spark-4.2.0")
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Its programs quote this path, but Python itself finds its packages under any name.
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
    python = str(fresh / "bin" / "python")
    if shutil.which("uv"):
        run_or_refuse("spark", ["uv", "venv", "--quiet", "--python", sys.executable, str(fresh)], fresh)
        run_or_refuse("spark", ["uv", "pip", "install", "--quiet", "--python", python, _PYSPARK], fresh)
    else:
        run_or_refuse("spark", [sys.executable, "-m", "venv", str(fresh)], fresh)
        run_or_refuse("spark", [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", _PYSPARK], fresh)
    return settle(fresh, folder)


class Spark:
    """Runs Python scripts in one Spark, which starts with the first of them."""

    def __init__(self, folder: Path, installed: Installed) -> None:
        self._folder = folder
        self._installed = installed
        self._log = folder / "driver.log"
        self._driver: subprocess.Popen[str] | None = None

    def run(self, script: str, *, timeout: float = 120) -> str:
        """Returns what a script prints that finds a SparkSession of its own as `spark`. Call it in the main thread.

        Scripts share the JVM, its caches and its streams, not their views and settings. Raises RuntimeError with the
        script's own traceback. A script that takes longer than `timeout` seconds loses its driver; the next starts a
        fresh one.
        """
        if self._driver is None or self._driver.poll() is not None:
            self.stop()
            self._start()
        answer = self._ask({"script": script}, timeout)
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer["printed"]

    def stop(self) -> None:
        """Ends the driver, if it runs, and its JVM with it."""
        if self._driver is not None:
            self._driver.kill()
            # Leaving its context closes its pipes and waits for its end.
            with self._driver:
                self._driver = None

    def _start(self) -> None:
        # The driver must not outlive a test run that is killed, and its JVM ends once the driver is gone.
        prefix = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        python = str(self._installed.python)
        with self._log.open("ab") as log:
            self._driver = subprocess.Popen(
                [*prefix, python, "-I", str(_DRIVER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self._folder,
                env={**_own_environment(), "PYSPARK_PYTHON": python, "SPARK_LOCAL_IP": "127.0.0.1"},
            )
        self._write(self._settings())
        self._ask({"script": "pass"}, _START_SECONDS)

    def _settings(self) -> dict[str, str]:
        fast = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
        return {
            **_SETTINGS,
            "spark.driver.extraClassPath": f"{self._installed.jars}/*",
            "spark.driver.extraJavaOptions": fast,
            "spark.local.dir": str(self._folder / "local"),
            "spark.sql.warehouse.dir": str(self._folder / "warehouse"),
        }

    def _write(self, line: dict[str, str]) -> None:
        assert self._driver is not None
        assert self._driver.stdin is not None
        self._driver.stdin.write(json.dumps(line) + "\n")
        self._driver.stdin.flush()

    def _ask(self, line: dict[str, str], timeout: float) -> dict[str, str]:
        assert self._driver is not None
        assert self._driver.stdout is not None
        self._write(line)
        watchdog = threading.Timer(timeout, self._driver.kill)
        watchdog.start()
        text = self._driver.stdout.readline()
        watchdog.cancel()
        if not text:
            self.stop()
            tail = self._log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"Spark's driver ended or took longer than {timeout:g} s: {tail}")
        answer: dict[str, str] = json.loads(text)
        return answer


def _own_environment() -> dict[str, str]:
    # Whatever Spark or Python this shell is set up for is not the one under test.
    return {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_", "PYTHON"))}
