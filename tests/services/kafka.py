"""One real Kafka broker (KRaft) in a temporary folder, on free ports of the loopback address."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

import services
from services import maven

_START_SECONDS = 60.0

USER = "ann"
PASSWORD = "open-sesame"

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl_port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
required user_{user}="{password}";
log.dirs={folder}/data
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=300
log.retention.check.interval.ms=200
log.initial.task.delay.ms=100
"""


def fetch_jars() -> Path:
    """Returns the folder with Kafka's jars, brought by Maven the first time."""
    return maven.fetch_jars("kafka", services.cache_folder("kafka-4.3.1"))


class Broker:
    """A broker that can be killed and started again on the same ports and data."""

    def __init__(self, folder: Path, jars: Path) -> None:
        self._folder = folder
        self._jars = jars
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self.sasl_port, controller = services.free_ports(3)
        self.properties = folder / "server.properties"
        self.properties.write_text(
            _PROPERTIES.format(
                port=self.port,
                sasl_port=self.sasl_port,
                controller=controller,
                folder=folder,
                user=USER,
                password=PASSWORD,
            ),
            encoding="utf-8",
        )
        uuid = base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=").replace("-", "x")
        self.run_tool(
            "kafka.tools.StorageTool", "format", "--standalone", "-t", uuid, "-c", str(self.properties), timeout=60
        )

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The URL of this broker's topics."""
        return f"kafka://{self.address}"

    @property
    def pid(self) -> int:
        """The process of the running broker."""
        assert self._process is not None
        return self._process.pid

    def java(self, *arguments: str) -> list[str]:
        """Returns the command line of a Java program out of Kafka's jars."""
        fast = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx512m"]
        return ["java", *fast, "-cp", f"{self._jars}/*", *arguments]

    def run_tool(self, *arguments: str, text: str = "", timeout: float = 30) -> str:
        """Returns what one of Kafka's own tools prints; `text` is its input."""
        done = subprocess.run(
            self.java(*arguments), input=text, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        """Starts the broker and waits until it answers. Call it in the main thread."""
        # The broker must not outlive a test run that is killed: it dies with the thread that started it.
        prefix = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with (self._folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*prefix, *self.java("kafka.Kafka", str(self.properties))], stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._folder / "broker.log").read_text(errors="replace")[-2000:])
            time.sleep(0.05)

    def kill(self) -> None:
        """Kills the broker with SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ends the broker, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        try:
            client = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
            return bool(client.list_topics(timeout=5).brokers)
        except KafkaException:
            return False
