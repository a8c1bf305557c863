"""headrace plan: it says what a profile needs and whether it can be reached, and leaves no trace."""

import contextlib
import socket
from pathlib import Path

import pytest

from headrace.project import open_project
from running import call, lines
from streamline import make_project

PIPELINE = """
nightly = Pipeline("nightly", every="1d", steps=(popular, tastes), then=trial)
project = Project("streamline", pages=(home,), experiments=(trial,), pipelines=(nightly,))
"""


@pytest.fixture
def folder(tmp_path):
    """A project that nothing of has run yet."""
    make_project(tmp_path, clock="real://")
    return tmp_path


def tree(folder):
    """Returns every file below a folder, with what tells whether it was touched.

    Where a writer has left its log, every reader notes in the memory beside it how far it reads.
    """
    found = {path.relative_to(folder): path.stat() for path in folder.rglob("*")}
    return {path: (stat.st_size, 0 if path.name.endswith("-shm") else stat.st_mtime_ns) for path, stat in found.items()}


def plan(folder, *words):
    """Returns exit code, the URLs by noun and what is declared by noun; nothing may change."""
    before = tree(folder)
    code, out, error = call("plan", "--json", "--project", folder, *words)
    assert (error, tree(folder)) == ("", before)
    rows = lines(out)
    urls = {row["noun"]: row for row in rows if row["kind"] == "url"}
    return code, urls, {row["noun"]: row["names"] for row in rows if row["kind"] == "declared"}


def add_profile(folder, text):
    """Gives the project a second profile, with these URLs."""
    with (folder / "headrace.toml").open("a") as file:
        file.write(f"\n[profile.far]\n{text}\n")


def unused_port():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return listener.getsockname()[1]


def test_plan_of_a_new_project_says_what_would_be_made(folder):
    source = folder / "project.py"
    text = source.read_text().replace("Page, Project", "Page, Pipeline, Project")
    source.write_text(text[: text.index("project = Project(")] + PIPELINE)
    code, urls, declared = plan(folder)
    assert code == 0
    parts = ("engine", "clock")
    assert {noun: row["state"] for noun, row in urls.items()} == {n: "ok" if n in parts else "new" for n in urls}
    assert set(urls) == {*parts, "topics", "tables", "online", "registry", "runner"}
    assert urls["topics"]["text"] == f"{str(folder / '.headrace' / 'topics')!r} will be made"
    assert declared["topics to be made"] == ["clicks", "events", "failed", "decisions"]
    assert (declared["pages"], declared["pipelines"], declared["models"]) == (
        ["home"],
        ["nightly"],
        ["popular", "tastes"],
    )
    code, out, error = call("plan", "--project", folder)
    assert (code, error, out.count("profile laptop of project streamline")) == (0, "", 1)


def test_plan_of_a_project_that_stands_counts_what_is_there(folder):
    with open_project(folder) as project:
        project.make_topics()
        _ = project.registry, project.runner, project.tables
    code, urls, declared = plan(folder)
    assert (code, urls["topics"]["state"], urls["topics"]["text"]) == (0, "ok", "stands, has 4 topics")
    assert (urls["registry"]["state"], urls["runner"]["state"], urls["tables"]["names"]) == ("ok", "ok", [])
    assert declared["topics to be made"] == []
    # While somebody writes it says the same.
    with open_project(folder) as project:
        assert len(project.topics.names()) == 4
        _ = project.registry.stamp()
        out = call("plan", "--json", "--project", folder)[1]
        assert lines(out)[0]["names"] == ["clicks", "decisions", "events", "failed"]


@pytest.mark.parametrize(
    ("noun", "text"),
    [("topics", "kafka://127.0.0.1:{port}"), ("tables", "hdfs://127.0.0.1:{port}/lake")],
    ids=["kafka", "hdfs"],
)
def test_plan_says_which_url_cannot_be_reached(folder, noun, text):
    url = text.format(port=unused_port())
    add_profile(folder, f'{noun} = "{url}"')
    code, urls, _ = plan(folder, "--profile", "far")
    assert code == 3
    assert [name for name, row in urls.items() if row["state"] == "unreachable"] == [noun]
    assert (urls[noun]["url"], urls[noun]["text"]) == (
        url, f"nobody answers at {url.split('/')[2]}: Connection refused",
    )  # fmt: skip


def test_plan_says_what_is_written_wrongly_and_shows_no_password(folder):
    add_profile(
        folder,
        'topics = "kafak://127.0.0.1:9092"\ntables = "hdfs://namenode/lake"\nregistry = "sqlite:///r.db?patience=3"\n'
        'clock = "world://?rate=0"\nonline = "redis://ann:hunter2@127.0.0.1:6379"\nrunner = "local://here"',
    )
    code, urls, _ = plan(folder, "--profile", "far")
    assert (code, {row["state"] for noun, row in urls.items() if noun != "engine"}) == (2, {"bad"})
    assert "no topic backend for 'kafak://127.0.0.1:9092'. Did you mean kafka://?" in urls["topics"]["text"]
    assert "'namenode' has no port" in urls["tables"]["text"]
    assert "has no option 'patience'" in urls["registry"]["text"]
    assert urls["online"]["url"] == "-"
    assert "hunter2" not in str(urls)


def test_plan_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "confluent_kafka", None)
    for name in [name for name in __import__("sys").modules if name.startswith("headrace.topics.kafka")]:
        monkeypatch.delitem(__import__("sys").modules, name)
    add_profile(folder, 'topics = "kafka://127.0.0.1:9092"')
    code, urls, _ = plan(folder, "--profile", "far")
    assert (code, urls["topics"]["state"]) == (2, "missing")
    assert urls["topics"]["text"].endswith("pip install 'headrace[kafka]'")


def test_plan_finds_files_that_are_something_else(folder):
    path = folder / ".headrace" / "registry.db"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"no database" * 300)
    code, urls, _ = plan(folder)
    assert (code, urls["registry"]["state"]) == (2, "bad")
    assert urls["registry"]["text"].startswith(f"{str(path)!r} is no file of Headrace")
    assert Path(path).read_bytes().startswith(b"no database")


@pytest.mark.slow
@pytest.mark.service("kafka")
def test_plan_asks_kafka_and_makes_no_topic(folder, kafka):
    with open_project(folder) as project:
        _ = project.declared
    add_profile(folder, f'topics = "kafka://{kafka.address}"')
    code, urls, _ = plan(folder, "--profile", "far")
    before = urls["topics"]["names"]
    assert (code, urls["topics"]["state"]) == (0, "ok")
    assert plan(folder, "--profile", "far")[1]["topics"]["names"] == before
