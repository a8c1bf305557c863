"""One running collector for all SDKs, the door in front of it, and what arrives in its topic."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import services
from clients.arrivals import Clicks
from clients.door import Door
from clients.shop import Shop
from clients.webdriver import Browser, forget
from headrace.project import open_project
from headrace.topics import Topic
from running import Running, running

_HERE = Path(__file__).parent
_PACKAGE = ("package.json", "package-lock.json", ".npmrc")
_INSTALL_SECONDS = 170.0


@pytest.fixture(scope="session")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A running collector on a sqlite topic, one for all SDKs."""
    with running(tmp_path_factory.mktemp("clients")) as up:
        yield up


@pytest.fixture(scope="session")
def topic(collector: Running) -> Iterator[Topic]:
    """The topic `clicks` of the collector."""
    with open_project(collector.folder) as project:
        yield project.topic("clicks")


@pytest.fixture
def clicks(topic: Topic) -> Clicks:
    """What arrives in the topic during a test."""
    return Clicks(topic)


@pytest.fixture
def door(collector: Running) -> Iterator[Door]:
    """The door through which a test's SDK reaches the collector."""
    door = Door(collector.address)
    yield door
    door.close()


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The SDKs that package-lock.json pins, brought by npm the first time."""
    services.need("node")
    stamp = hashlib.sha256(b"".join((_HERE / name).read_bytes() for name in _PACKAGE)).hexdigest()[:12]
    folder = services.cache_folder(f"sdks-{stamp}")
    if folder.is_dir():
        return folder / "node_modules"
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    for name in _PACKAGE:
        shutil.copy(_HERE / name, fresh)
    done = subprocess.run(
        ["npm", "ci"], cwd=fresh, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
    )
    if done.returncode:
        shutil.rmtree(fresh, ignore_errors=True)
        services.refuse("node", f"npm cannot fetch the SDKs: {done.stderr[-500:]}")
    fresh.rename(folder)
    return folder / "node_modules"


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One headless Chromium for the whole run."""
    services.need("chromium")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def shop(node_modules: Path) -> Iterator[Shop]:
    """The server of the shop's pages."""
    shop = Shop(node_modules / "@segment" / "analytics-next" / "dist" / "umd")
    yield shop
    shop.close()


@pytest.fixture
def browser(chromium: Browser, shop: Shop, door: Door) -> Iterator[Browser]:
    """A browser that has never been to the shop; the test fails if it asks anybody but the shop and the door."""
    chromium.open(f"{shop.origin}/umd/nothing")
    forget(chromium, "headrace_visitor")
    chromium.requested_urls()
    yield chromium
    chromium.open("data:,")
    asked = {urlsplit(url).netloc for url in chromium.requested_urls() if url.startswith("http")}
    assert asked <= {urlsplit(shop.origin).netloc, urlsplit(door.url).netloc}
