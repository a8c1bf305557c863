"""The doors in one process: what is wrong with one must not close another."""

from __future__ import annotations

import asyncio
import json

import pytest

from headrace.base.errors import CallError
from headrace.base.http import Request
from headrace.base.telemetry import Metrics
from headrace.doors import Behind, _open
from headrace.endpoints.app import METRICS
from headrace.project import open_project
from streamline import make_project


def _get(app, path):
    scope = {"method": "POST", "path": path, "headers": [], "query_string": b"", "scheme": "http"}
    return asyncio.run(app.answer(Request(scope, b"{}")))


def test_endpoint_with_a_broken_project_says_so_and_leaves_the_others_open(tmp_path):
    folder = make_project(tmp_path)
    (folder / "project.py").write_text("from headrace import Project\nproject = Projct('shop')\n")
    with open_project(folder) as project:
        project.make_topics()
        app, _ = asyncio.run(_open("endpoint", Behind(project, None, Metrics(METRICS))))
        answer = _get(app, "/v1/page")
        assert answer.status == 503
        told = json.loads(answer.body)["message"]
        assert f"{folder / 'project.py'}:2" in told
        assert "Did you mean Project?" in told
        assert app.reasons() == [told]


def test_collector_that_cannot_be_opened_ends_its_process(tmp_path):
    folder = make_project(tmp_path)
    toml = folder / "headrace.toml"
    toml.write_text(toml.read_text().replace("[keys]\ndev = ", '[keys]\ndev = "no hash" # '))
    with open_project(folder) as project, pytest.raises(CallError, match="dev"):
        asyncio.run(_open("collector", Behind(project, None, Metrics(METRICS))))
