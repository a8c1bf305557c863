"""Fixtures that every test may use: the real services, started once per run."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

import budget
import services
import shares
from services.hdfs import Hdfs, fetch_hadoop
from services.kafka import Broker, fetch_jars
from services.spark import Spark, fetch_spark

_FETCHES = {"kafka": fetch_jars, "hdfs": fetch_hadoop, "spark": fetch_spark}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-services", action="store_true", help="fail, rather than skip, where a real service is missing"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Hooks that stand here would not hear of the examples in src.
    config.pluginmanager.register(budget, "budget")
    config.pluginmanager.register(shares, "shares")
    if config.getoption("--require-services"):
        os.environ[services.REQUIRED] = "required"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("service"):
        services.need(mark.args[0])


def pytest_collection_finish(session: pytest.Session) -> None:
    # What a first run downloads counts against no test's time limit and no room's budget. Where it cannot be had, the
    # fixture tries again and says so. Of two processes one fetches, and the other finds it there.
    wanted = {mark.args[0] for item in session.items for mark in item.iter_markers("service")}
    if session.config.option.collectonly:
        return
    with services.fetching():
        for service in wanted & _FETCHES.keys():
            with contextlib.suppress(pytest.skip.Exception, pytest.fail.Exception):
                services.need(service)
                _FETCHES[service]()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real Kafka broker, one for the whole run."""
    services.need("kafka")
    broker = Broker(tmp_path_factory.mktemp("kafka"), fetch_jars())
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    """A real HDFS with two data nodes, one for the whole run: write under a folder of the test's own."""
    services.need("hdfs")
    cluster = Hdfs(tmp_path_factory.mktemp("hdfs"), fetch_hadoop())
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spark]:
    """A real Spark with Delta, one for the whole run; its JVM starts with the first script."""
    services.need("spark")
    session = Spark(tmp_path_factory.mktemp("spark"), fetch_spark())
    yield session
    session.stop()


@pytest.fixture
def unused_port() -> int:
    """A port of the loopback address at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port
