"""Every topic backend, ours and an outsider's, does what the contract says."""

from __future__ import annotations

import configparser
import tomllib
from pathlib import Path

import pytest

from headrace import testing
from headrace.base.errors import UnknownSchemeError
from headrace.topics import open_topics
from headrace.topics.memory import MemoryTopics

BACKENDS = (
    "memory",
    "sqlite",
    pytest.param("kafka", marks=pytest.mark.service("kafka")),
    "shelf",
)


@pytest.fixture
def opener(request, tmp_path):
    backend = request.param
    if backend == "memory":
        one = open_topics("memory://")
        return lambda: one
    if backend == "kafka":
        url = request.getfixturevalue("kafka").url
    elif backend == "shelf":
        url = "shelf:///topics"
        request.getfixturevalue("outsider")
    else:
        url = f"{backend}:///topics"
    return lambda: open_topics(url, root=tmp_path)


@pytest.mark.parametrize("check", testing.TOPIC_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("opener", BACKENDS, indirect=True)
def test_contract(opener, check):
    check(opener)


@pytest.mark.usefixtures("outsider")
def test_the_outsider_is_found_through_its_entry_point(tmp_path):
    with pytest.raises(UnknownSchemeError, match=r"known: .*shelf://"):
        open_topics("shelve://", root=tmp_path)
    assert type(open_topics("shelf:///topics", root=tmp_path)).__module__ == "headrace_shelf"


def test_the_outsiders_metadata_is_what_pip_would_write():
    folder = Path(__file__).with_name("outsider")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    written = configparser.ConfigParser()
    written.read(folder / "headrace_shelf-1.0.dist-info" / "entry_points.txt")
    assert {group: dict(written[group]) for group in written.sections()} == project["entry-points"]


def test_a_broken_backend_fails_its_checks():
    class Forgetful(MemoryTopics):
        def append(self, name, records, *, deadline_seconds):
            return super().append(name, records[:-1], deadline_seconds=deadline_seconds)

    one = Forgetful()
    with pytest.raises(testing.ContractError, match="expected"):
        testing.check_topics(lambda: one)
