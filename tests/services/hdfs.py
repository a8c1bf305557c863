"""A real HDFS of one name node and two data nodes in a temporary folder, on free ports of the loopback address."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import services
from services.maven import fetch_jars

_START_SECONDS = 60.0
_DATANODES = 2
# One heartbeat a second is the quickest that Hadoop knows; a node silent for 3 s gets no new blocks, after 12 s it is
# dead. Safe mode ends with the last block report, not 30 s later.
_SETTINGS = {
    "dfs.replication": _DATANODES,
    "dfs.permissions.enabled": "false",
    "dfs.namenode.safemode.extension": 0,
    "dfs.namenode.datanode.registration.ip-hostname-check": "false",
    "dfs.heartbeat.interval": 1,
    "dfs.namenode.heartbeat.recheck-interval": 1000,
    "dfs.namenode.stale.datanode.interval": 3000,
    "dfs.namenode.avoid.read.stale.datanode": "true",
    "dfs.namenode.avoid.write.stale.datanode": "true",
    "dfs.blockreport.initialDelay": 0,
    "ipc.client.connect.retry.interval": 100,
    "dfs.datanode.max.transfer.threads": 64,
}


def fetch_hadoop() -> Path:
    """Returns the folder with Hadoop's jars, brought by Maven the first time."""
    return fetch_jars("hdfs", services.cache_folder("hdfs-3.4.2"))


class Hdfs:
    """A name node and two data nodes, each of which can be killed and started again on its ports and data.

    The methods that start something wait until it serves. Call them in the main thread.
    """

    def __init__(self, folder: Path, jars: Path) -> None:
        name_port, self._name_http, *ports = services.free_ports(2 + 3 * _DATANODES)
        self._data_http = ports[::3]
        self.url = f"hdfs://127.0.0.1:{name_port}"
        settings: dict[str, object] = {
            **_SETTINGS,
            "fs.defaultFS": self.url,
            "dfs.namenode.http-address": f"127.0.0.1:{self._name_http}",
            "dfs.namenode.name.dir": f"file://{folder}/name",
            "hadoop.tmp.dir": folder / "tmp",
        }
        self._namenode = _Node("namenode.NameNode", folder / "namenode", jars)
        self._namenode.configure(settings)
        self._datanodes = [_Node("datanode.DataNode", folder / f"datanode-{i}", jars) for i in range(_DATANODES)]
        for i, node in enumerate(self._datanodes):
            http, data, ipc = (f"127.0.0.1:{port}" for port in ports[3 * i : 3 * i + 3])
            places = {"http.address": http, "address": data, "ipc.address": ipc, "data.dir": f"file://{folder}/{i}"}
            node.configure(settings | {f"dfs.datanode.{key}": value for key, value in places.items()})

    def start(self) -> None:
        """Starts all nodes for the first time, and waits until a table can be written and read."""
        self._namenode.run_once("-format", "-nonInteractive")
        for node in (self._namenode, *self._datanodes):
            node.start()
        for i in range(_DATANODES):
            self._await_datanode(i)
        self._await_namenode()
        _prove(f"{self.url}/tmp/proof")

    def stop(self) -> None:
        """Ends all nodes that run."""
        for node in (*self._datanodes, self._namenode):
            node.stop()

    def kill_datanode(self, i: int) -> None:
        """Kills a data node with SIGKILL."""
        self._datanodes[i].kill()

    def start_datanode(self, i: int) -> None:
        """Starts a killed data node, and waits until the name node knows it and its blocks."""
        self._datanodes[i].start()
        self._await_datanode(i)

    def freeze_datanode(self, i: int) -> None:
        """Stops a data node in its tracks: its connections stay open, and nothing answers."""
        self._datanodes[i].send(signal.SIGSTOP)

    def thaw_datanode(self, i: int) -> None:
        """Lets a frozen data node go on."""
        self._datanodes[i].send(signal.SIGCONT)

    def kill_namenode(self) -> None:
        """Kills the name node with SIGKILL."""
        self._namenode.kill()

    def start_namenode(self) -> None:
        """Starts a killed name node, and waits until it takes writes and knows the data nodes that run."""
        self._namenode.start()
        self._await_namenode()

    def listing(self, path: str = "/") -> list[str]:
        """Returns the paths of all files under a path, sorted, as the name node's own check of files lists them."""
        # WebHDFS would do as well, but its first answer takes 4 s, and a shell of Hadoop's takes 2 s each time.
        query = urllib.parse.urlencode({"path": path, "files": 1, "openforwrite": 1})
        with _open(f"http://127.0.0.1:{self._name_http}/fsck?{query}") as answer:
            text = answer.read().decode()
        if f"Path '{path}' does not exist" in text:
            raise FileNotFoundError(path)
        return sorted(re.findall(r"^(/.*) \d+ bytes, ", text, re.MULTILINE))

    def _await_namenode(self) -> None:
        running = sum(node.runs() for node in self._datanodes)

        def serves() -> bool:
            state = _bean(self._name_http, "Hadoop:service=NameNode,name=FSNamesystemState")
            info = _bean(self._name_http, "Hadoop:service=NameNode,name=NameNodeInfo")
            return info["Safemode"] == "" and state["NumLiveDataNodes"] >= running

        self._namenode.wait(serves)

    def _await_datanode(self, i: int) -> None:
        def serves() -> bool:
            info = _bean(self._data_http[i], "Hadoop:service=DataNode,name=DataNodeInfo")
            actors = json.loads(info["BPServiceActorInfo"])
            return bool(actors) and all(actor["ActorState"] == "RUNNING" for actor in actors)

        self._datanodes[i].wait(serves)


class _Node:
    """One process of Hadoop, with its settings and its log in a folder of its own."""

    def __init__(self, program: str, folder: Path, jars: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._log = folder / "log"
        small = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m"]
        classes = f"{folder}:{jars}/*"
        self._command = ["java", *small, "-cp", classes, f"org.apache.hadoop.hdfs.server.{program}"]
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self, settings: dict[str, object]) -> None:
        lines = [f"<property><name>{name}</name><value>{value}</value></property>" for name, value in settings.items()]
        text = "\n".join(["<configuration>", *lines, "</configuration>"])
        for name in ("core-site.xml", "hdfs-site.xml"):
            (self._folder / name).write_text(text, encoding="utf-8")

    def run_once(self, *arguments: str) -> None:
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, timeout=_START_SECONDS, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        # No node may outlive a test run that is killed: it dies with the thread that started it.
        prefix = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([*prefix, *self._command], stdout=log, stderr=log)

    def wait(self, serves: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not _holds(serves):
            if not self.runs() or time.monotonic() > deadline:
                raise RuntimeError(self._log.read_text(errors="replace")[-2000:])
            time.sleep(0.05)

    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self.runs():
            self.kill()


def _prove(url: str) -> None:
    # Only runs that start HDFS pay for this import.
    import pyarrow as pa
    from deltalake import DeltaTable, QueryBuilder, write_deltalake

    write_deltalake(url, pa.table({"n": [1]}))
    # The scan over Arrow's own threads aborts the process at its end.
    found = QueryBuilder().register("proof", DeltaTable(url)).execute("select n from proof").read_all()
    assert found["n"].to_pylist() == [1]


def _holds(serves: Callable[[], bool]) -> bool:
    try:
        return serves()
    except (OSError, LookupError, ValueError):
        # Not up yet, or up without that bean.
        return False


def _bean(port: int, name: str) -> Any:
    with _open(f"http://127.0.0.1:{port}/jmx?qry={name}") as answer:
        return json.load(answer)["beans"][0]


def _open(url: str) -> http.client.HTTPResponse:
    # No proxy of the machine stands between a test and its own name node.
    opened: http.client.HTTPResponse = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5)
    return opened
