"""The demo: what it shows is true, it says so when it is not, and it leaves nothing behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest

from headrace.console import demo
from headrace.console.init import write_project
from headrace.events.event import Event
from headrace.experiments.experiment import Gate
from headrace.experiments.verdict import Arm, Verdict
from headrace.features import count, item
from headrace.features.parity import Compared, Parity
from headrace.project import open_project
from headrace.verify.checks import CHECKS as ROOMS
from headrace.verify.count import is_click
from headrace.verify.report import Line
from journeys.plays import Play
from running import call, headrace, is_alive, lines, wait_until

PLAYED = [
    "the offline gate passes",
    "the A/A gate passes",
    "the trial is healthy",
    "the page is served by its champion",
    "served features are those of the lake",
]
CHECKS = [*PLAYED, *(one.name for one in ROOMS)]
# Alone it takes a minute; beside other tests, which share its two cores, it took 140 s.
PLAY_SECONDS = 300.0
(COLUMN,) = count("appeal", Event("Product Clicked", item="product_id"), by=item, windows=("1d",)).columns
MOST_BYTES = 900 << 20


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Iterator[Play]:
    """A demo that has ended at its verdict."""
    with Play(tmp_path_factory.mktemp("plays") / "once", ("--once", "--json", "--seconds", "240")) as play:
        play.wait(PLAY_SECONDS)
        yield play


@pytest.fixture(scope="module")
def plays(tmp_path_factory) -> Iterator[tuple[Play, Play]]:
    """Two demos side by side: one that has ended at its verdict, and one that stays up."""
    folder = tmp_path_factory.mktemp("plays")
    # The second one's collector has two workers.
    write_project(folder / "stays", ports=(0, 0, 0), clock="world://?rate=3600", flush_seconds=1)
    toml = folder / "stays" / "headrace.toml"
    toml.write_text(toml.read_text().replace("workers = 1", "workers = 2"))
    with (
        Play(folder / "once", ("--once", "--json", "--seconds", "100")) as once,
        Play(folder / "stays", ("--seconds", "100", "--seed", "3")) as stays,
    ):
        wait_until(lambda: once.urls.keys() == stays.urls.keys() == {"collector", "endpoint", "console"}, seconds=30)
        assert not set(once.urls.values()) & set(stays.urls.values())
        once.wait(PLAY_SECONDS)
        wait_until(
            lambda: "The audience goes on" in stays.out or stays.process.poll() is not None, seconds=PLAY_SECONDS
        )
        yield once, stays


@pytest.mark.slow
@pytest.mark.timeout(2 * PLAY_SECONDS)
def test_demo_ends_at_its_verdict_when_every_check_holds(once):
    summary = once.summary
    assert summary["checks"] == dict.fromkeys(CHECKS, True), summary
    assert once.process.returncode == 0
    print(f"{summary['seconds_to_verdict']} s to the verdict")
    assert summary["exactly_once"] is True
    assert summary["lost"] == summary["doubled"] == 0
    assert summary["acknowledged"] > 10_000
    assert summary["decisions"]["recommended"] > 1_000
    assert summary["failed"] > 0, "nobody was faulty"
    assert summary["longest_pause_seconds"] > 0, "no door was killed"
    assert summary["verdict"]["outcome"] in ("better", "worse", "undecided", "early")
    assert summary["truth"]["replayed"] > 100


@pytest.mark.soak
def test_demo_beside_another_stays_up_until_ctrl_c(plays):
    first, stays = plays
    assert first.summary["checks"] == dict.fromkeys(CHECKS, True), first.summary
    assert stays.process.poll() is None, stays.out
    with urllib.request.urlopen(stays.urls["console"], timeout=10) as answer:
        assert answer.status == 200
    firsts = [line.split()[0] for line in stays.out.splitlines() if line[:1].isalpha()]
    rooms = ["world", "collect", "topics", "tables", "models", "endpoints", "experiments", "fault"]
    assert [first for first in firsts if first in rooms][:8] == rooms
    told = stays.out.partition("\nchecks ")[2].splitlines()
    assert [line.split(maxsplit=1)[1] for line in told if line.split()[:1] == ["✓"]] == CHECKS
    assert any(line.endswith("rows in the lake ✓ exactly once") for line in stays.out.splitlines())
    assert "the most clicked" in stays.out
    assert f"--project {stays.folder}" in stays.out
    assert stays.interrupt(10) == 0
    stays.wait_gone()


@pytest.mark.slow
def test_demo_has_few_processes_and_900_mb(once):
    print(f"{once.most_processes} processes, {once.most_bytes >> 20} MB at most")
    # The demo, doors, stream and work; and one child of the runner's at a time.
    assert once.most_processes <= 5
    told = (once.folder / "up.log").read_text()
    for program in ("doors", "stream", "work"):
        assert f'"{program} ended with -9, starting it again' in told
    assert once.errors == ""
    assert 100 << 20 < once.most_bytes <= MOST_BYTES
    once.wait_gone()


@pytest.mark.slow
def test_what_the_demo_kept_answers_afterwards(once):
    found, folder = once.summary, once.folder
    # The next trial may have begun by then.
    first = "SELECT trial, outcome, difference FROM verdicts ORDER BY made_us LIMIT 1"
    code, out, error = call("table", "sql", first, "--json", cwd=folder)
    assert code == 0, error
    assert lines(out) == [{name: found["verdict"][name] for name in ("trial", "outcome", "difference")}]
    code, out, error = call("explain", found["recommendation_id"], cwd=folder)
    assert code == 0, error
    assert found["recommendation_id"] in out
    count = "SELECT count(*) AS rows FROM decisions WHERE NOT list_contains(degraded, 'unlogged')"
    code, out, error = call("table", "sql", count, "--json", cwd=folder)
    assert code == 0, error
    assert lines(out) == [{"rows": found["decisions"]["rows"]}]
    with open_project(folder) as project:
        stored = sum(map(is_click, project.topic("clicks").read_to_ends()))
    assert stored == found["clicks"] == found["settled"] + found["failed"] + found["repeats"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [*(pytest.param(one, marks=pytest.mark.soak) for one in (signal.SIGINT, signal.SIGTERM)), signal.SIGKILL]
)
def test_demo_that_is_ended_before_its_verdict_leaves_no_process(tmp_path, number):
    with Play(tmp_path / "demo", ("--json",)) as play:
        wait_until(lambda: "console" in play.urls and play.most_processes >= 4, seconds=30)
        play.process.send_signal(number)
        wait_until(lambda: not any(map(is_alive, play.seen - {play.process.pid})), seconds=1.0, what="all have ended")
        assert play.wait(5) == (-9 if number == signal.SIGKILL else 130)
        assert play.out == play.errors == ""


@pytest.mark.soak
def test_demo_that_fails_ends_its_roles(tmp_path):
    with Play(tmp_path / "demo", ("--json", "--seconds", "5")) as play:
        assert play.wait(60) != 0
        play.wait_gone()
        assert play.errors.startswith('{"error": "StopError"')
        assert "no verdict within 5 s of the first page" in play.errors


WHOLE = demo._Found(
    verdict=Verdict(
        version=1,
        trial="ranked-home-1",
        experiment="ranked-home",
        page="home",
        goal="ctr",
        made_us=9,
        started_us=1,
        cutoff_us=8,
        positions={},
        incarnations={},
        control_bundle="aa",
        treatment_bundle="bb",
        alpha=0.05,
        planned=100,
        outcome="better",
        reasons=(),
        gate=Gate(splits=1000, visitors=100, significant=50, band=(29, 74), alpha=0.05, smallest_srm_p=0.1),
        srm_p=0.5,
        multiple=0,
        bots=0,
        degraded={},
        control=Arm(visitors=100, pages=100, views=1000, clicks=40, ratio=0.04),
        treatment=Arm(visitors=100, pages=100, views=1000, clicks=60, ratio=0.06),
        difference=0.02,
        difference_interval=(0.01, 0.03),
        lift=0.5,
        lift_interval=(0.2, 0.8),
        p=0.001,
        df=190.0,
    ),
    lines=tuple(Line(name=one.name, room=one.room, state="holds", text="") for one in ROOMS),
    champion="bb",
    served="bb",
    gate={"passed": True},
    parity=Parity(decisions=9, behind=0, columns=()),
)


def test_a_demo_whose_checks_hold_is_done():
    assert WHOLE.checks == dict.fromkeys(CHECKS, True)
    assert WHOLE.code == 0


@pytest.mark.parametrize(
    ("number", "part", "change"),
    [
        (1, "verdict", {"gate": Gate(1000, 100, 75, (29, 74), 0.05, 0.1)}),
        (1, "verdict", {"gate": None}),
        (2, "verdict", {"outcome": "unhealthy"}),
        (2, "verdict", {"outcome": "empty"}),
        (4, "parity", {"decisions": 0}),
        (4, "parity", {"columns": (Compared(COLUMN, compared=3, mismatches=1),)}),
    ],
)
def test_a_demo_with_a_check_that_fails_is_not(number, part, change):
    whole = getattr(WHOLE, part)
    broken = msgspec.structs.replace(whole, **change) if part == "verdict" else replace(whole, **change)
    found = replace(WHOLE, **{part: broken})
    assert [check for check, holds in found.checks.items() if not holds] == [CHECKS[number]]
    assert found.code == 1


@pytest.mark.parametrize("number", range(len(ROOMS)))
def test_a_demo_with_a_room_that_fails_is_not(number):
    lines = list(WHOLE.lines)
    lines[number] = msgspec.structs.replace(lines[number], state="fails", witness="visitor ann")
    found = replace(WHOLE, lines=tuple(lines))
    assert [check for check, holds in found.checks.items() if not holds] == [ROOMS[number].name]
    assert found.code == 1


@pytest.mark.parametrize(
    ("check", "change"),
    [
        (0, {"gate": {"passed": False}}),
        (0, {"gate": {}}),
        (3, {"served": "aa"}),
    ],
)
def test_a_demo_whose_champion_is_another_one_is_not(check, change):
    found = replace(WHOLE, **change)
    assert [name for name, holds in found.checks.items() if not holds] == [CHECKS[check]]
    assert found.code == 1


@pytest.mark.parametrize("part", ["verdict", "lines", "parity"])
def test_a_demo_without_one_of_its_parts_is_not_done(part):
    assert replace(WHOLE, **{part: () if part == "lines" else None}).code == 1


FAULTY = """
import sys
from headrace.console import cli, demo

right = demo.Case
demo.Case = lambda project, world, record, verdict: record.acknowledged.update(gone=0) or right(
    project, world, record, verdict)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.soak
def test_a_demo_that_lost_an_event_says_so(tmp_path):
    command = [
        sys.executable,
        "-c",
        FAULTY,
        "demo",
        "--once",
        "--no-browser",
        "--seconds",
        "100",
        "--dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PLAY_SECONDS, check=False)
    assert done.returncode == 1, done.stderr
    told = done.stdout.partition("\nchecks ")[2].splitlines()
    assert [line.strip() for line in told if line.split()[:1] == ["✗"]] == [
        "✗ every acknowledged event stands in clicks"
    ]


@pytest.mark.soak
def test_a_demo_plays_again_where_it_played_before(tmp_path):
    for number in range(1, 6):
        with Play(tmp_path / "demo", ("--once", "--json", "--seed", str(number % 2))) as play:
            assert play.wait(PLAY_SECONDS) == 0, play.summary["checks"]
            assert play.summary["verdict"]["trial"] == f"ranked-home-{number}"
            assert play.most_bytes <= MOST_BYTES


def test_demo_refuses_a_project_that_it_did_not_make(tmp_path):
    write_project(tmp_path, ports=(0, 0, 0))
    code, _, error = headrace("demo", "--dir", str(tmp_path), cwd=tmp_path)
    assert code == 2
    assert error.startswith(f"CallError: {str(tmp_path)!r} holds a project that the demo did not make: its clock")
    assert not (tmp_path / ".headrace").exists()


def test_demo_on_a_taken_port_says_so(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write_project(tmp_path, ports=(port, 0, 0), clock="world://?rate=3600")
        code, out, error = headrace("demo", "--dir", tmp_path, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert error.startswith(f"CallError: cannot listen on 127.0.0.1:{port}: Address already in use")
    assert error.count("\n") == 1


def test_demo_in_a_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").touch()
    code, _, error = headrace("demo", "--dir", tmp_path / "file", cwd=tmp_path)
    assert code == 2
    assert error.startswith(f"CallError: cannot make the folder {str(tmp_path / 'file')!r}: File exists")
