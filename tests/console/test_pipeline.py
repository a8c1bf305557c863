"""headrace pipeline as a user types it."""

import pytest

from headrace.pipelines import StoppedError, Tools
from headrace.project import open_project
from running import call, lines
from streamline import BEGAN_US, HOUR, clicked, make_project, write

PIPELINES = """
nightly = Pipeline("nightly", every="1d", steps=(popular, tastes), then=trial)
weekly = Pipeline("weekly", every="7d", steps=(tastes,), retries=0)
project = Project("streamline", pages=(home,), experiments=(trial,), pipelines=(nightly, weekly))
"""


@pytest.fixture
def folder(tmp_path):
    make_project(tmp_path)
    source = tmp_path / "project.py"
    text = source.read_text().replace("Page, Project", "Page, Pipeline, Project")
    source.write_text(text[: text.index("project = Project(")] + PIPELINES)
    return tmp_path


def pipeline(folder, *words):
    return call("pipeline", *words, "--project", folder)


@pytest.mark.slow
def test_run_shows_its_progress_and_its_steps(folder):
    with open_project(folder) as project:
        write(project, events=[clicked("ann", f"item-{n}", at_us=BEGAN_US - HOUR, category="x") for n in range(4)])
    code, out, error = pipeline(folder, "run", "nightly")
    assert (code, error) == (0, "")
    with open_project(folder) as project:
        hashes = {one.name: one.hash for one in project.registry.bundles()}
    assert out.startswith(f"popular: attempt 1\npopular: done: {hashes['popular']}\ntastes: attempt 1\n")
    assert "run         1 of nightly, asked for by hand: done" in out
    assert out.endswith("experiment taste-home follows as soon as the runner runs: headrace up\n")
    (row,) = lines(pipeline(folder, "history", "--json")[1])
    assert [(step["name"], step["outputs"]) for step in row["steps"]] == [(name, [hashes[name]]) for name in hashes][
        ::-1
    ]


@pytest.mark.slow
def test_run_that_fails_says_why_and_ends_with_one(folder):
    code, out, error = pipeline(folder, "run", "weekly", "--json")
    (row,) = lines(out)
    assert (code, error, row["state"], row["steps"][0]["attempts"]) == (1, "", "failed", 1)
    assert row["error"].startswith("step 'tastes': ")
    assert row["error"].endswith("headrace up")
    code, out, _ = pipeline(folder, "status")
    assert (code, out.count("weekly: step 'tastes': ")) == (0, 1)


def test_status_says_when_the_next_run_is_due(folder):
    code, out, error = pipeline(folder, "status", "--json")
    assert (code, error) == (0, "")
    rows = {row["pipeline"]: row for row in lines(out)}
    assert list(rows) == ["nightly", "weekly"]
    for name, days in (("nightly", 1), ("weekly", 7)):
        assert (rows[name]["state"], rows[name]["runner"], rows[name]["run"]) == ("not run yet", "stopped", None)
        assert rows[name]["next_us"] == (BEGAN_US // (days * 24 * HOUR) + 1) * days * 24 * HOUR
    assert (rows["nightly"]["then"], rows["weekly"]["then"]) == ("taste-home", None)
    assert pipeline(folder, "status")[1].count("never: headrace up") == 2


def test_history_tells_runs_and_notes_the_newest_first(folder):
    assert pipeline(folder, "history")[1] == "no pipeline has run yet. Run one with: headrace pipeline run NAME\n"

    def stop():
        raise StoppedError("told to stop")

    with open_project(folder) as project:
        runner, declared = project.runner, project.declared.pipelines[0]
        tools = Tools(lambda: BEGAN_US)
        assert runner.run(declared, {"popular": list, "tastes": list}, tools).state == "done"
        tools = Tools(lambda: BEGAN_US + HOUR)
        with pytest.raises(StoppedError):
            runner.run(declared, {"popular": list, "tastes": stop}, tools)
        runner.history.note("nightly", "trial taste-home-1 waits", BEGAN_US + 2 * HOUR)
    rows = lines(pipeline(folder, "history", "--json")[1])
    assert [(row["kind"], row.get("number"), row.get("state")) for row in rows] == [
        ("note", None, None), ("run", 2, "broken off"), ("run", 1, "done"),
    ]  # fmt: skip
    assert len(lines(pipeline(folder, "history", "nightly", "--limit", "2", "--json")[1])) == 2
    assert lines(pipeline(folder, "history", "weekly", "--json")[1]) == []
    out = pipeline(folder, "history")[1]
    assert (out.count("nightly"), out.count("trial")) == (3, 1)


def test_pipeline_that_nobody_declares_is_unknown(folder):
    for words in (("run", "nigtly"), ("history", "nigtly")):
        code, _, error = pipeline(folder, *words)
        assert (code, error) == (
            2,
            "UnknownNameError: no pipeline 'nigtly'. Did you mean nightly?  known: nightly, weekly\n",
        )
    assert pipeline(folder, "history", "--limit", "0")[0] == 2
