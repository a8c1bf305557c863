"""Every topic backend, ours and an outsider's, does what the contract says."""

from __future__ import annotations

import pytest

from headrace import testing
from headrace.topics import open_topics

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
