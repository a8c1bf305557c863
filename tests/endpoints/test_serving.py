"""What serves while bundles, trials, registry and topic come and go: a page always, and always of one bundle."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from endpoints.door import Scores, make_popular, make_tastes, make_trial, open_door, write_trial
from headrace.collect.app import ACK_SECONDS
from headrace.endpoints.serving import Served, Serving
from headrace.events.decision import decode_decision
from headrace.experiments.assign import assign
from headrace.models import open_bundle
from headrace.models.model import Bundle
from headrace.models.registry import Entry
from headrace.project import open_project
from running import freeze, wait_until
from streamline import BEGAN_US, make_project

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    return make_project(tmp_path)


@pytest.fixture
def door(folder):
    with open_door(folder) as one:
        yield one


def _ids(shown):
    return [item["id"] for item in shown["rows"][0]["items"]]


def _damage(folder, bundle, place):
    """Changes one byte of a bundle behind the registry's back."""
    damaged = bytearray(bundle.packed)
    damaged[place] ^= 0x40
    with contextlib.closing(sqlite3.connect(folder / ".headrace" / "registry.db", timeout=5)) as connection:
        connection.execute("update bundles set packed = ? where hash = ?", (bytes(damaged), bundle.hash))
        connection.commit()


def _visitors(trial, arm):
    """Yields visitors of an arm."""
    for number in range(1000):
        if ("control", "treatment")[assign(trial.seed, f"visitor-{number}", trial.weights)] == arm:
            yield f"visitor-{number}"


def test_newest_bundle_serves_from_then_on(door):
    for number in range(3):
        bundle = make_popular(prefix=f"film-{number}")
        door.add(bundle)
        shown = door.ask(anonymous_id="ann").json()
        assert (shown["bundle"], shown["degraded"]) == (bundle.hash, [])
        assert all(item.startswith(f"film-{number}-") for item in _ids(shown))


BROKEN = {
    "of another kind": Bundle("popular", "tasty", {}, {}, make_popular(marked=1).arrays),
    "without numbers": make_popular(marked=1, counts=np.full(12, np.nan)),
    "of too few categories": make_popular(marked=1, categories=make_popular(3).arrays["categories"]),
    "of texts that are none": make_popular(marked=1, items=np.frombuffer(b'["\xff"]', np.uint8)),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_bundle_that_cannot_be_opened_leaves_the_older_one_serving(door, broken):
    good = make_popular()
    door.add(good, BROKEN[broken])
    shown = door.ask(anonymous_id="ann").json()
    assert (shown["bundle"], shown["degraded"], len(_ids(shown))) == (good.hash, ["bundle"], 4)
    (problem,) = door.shelf.servings["home"].problems
    assert problem.startswith(f"bundle {BROKEN[broken].hash} of 'popular' cannot serve: ")
    # The next good one takes over.
    newest = make_popular(marked=2)
    door.add(newest)
    shown = door.ask(anonymous_id="ann").json()
    assert (shown["bundle"], shown["degraded"]) == (newest.hash, [])


def test_damaged_bundle_never_serves(folder):
    good, newest, draw = make_popular(), make_popular(marked=1), Random(3)
    with open_project(folder) as project:
        for bundle in (good, newest):
            project.registry.add(bundle)
    for place in [20, 60, *draw.sample(range(len(newest.packed)), 3), len(newest.packed) - 1]:
        _damage(folder, newest, place)
        with open_door(folder) as door:
            door.take_over()
            shown = door.ask(anonymous_id="ann").json()
            assert (shown["bundle"], shown["degraded"]) == (good.hash, ["bundle"])
            assert newest.hash in door.shelf.servings["home"].problems[0]


def test_endpoint_whose_only_bundle_is_damaged_says_which(folder):
    bundle = make_popular()
    with open_project(folder) as project:
        project.registry.add(bundle)
        with contextlib.closing(sqlite3.connect(project.profile.state / "registry.db")) as connection:
            connection.execute("update bundles set packed = x'00'")
            connection.commit()
    with open_door(folder) as door:
        door.take_over()
        answer = door.ask(anonymous_id="ann")
        assert answer.status == 503
        assert answer.json()["message"] == (
            f"the page 'home' has nothing to show: bundle {bundle.hash} of 'popular' cannot serve: "
            "these bytes are no bundle. Fit one with: headrace model fit popular"
        )
        assert answer.json()["message"] in door.request("GET", "/ready").json()["reasons"]


def test_arm_without_its_bundle_gets_the_fallback_and_says_so(door):
    popular, other = make_popular(), make_popular(marked=1)
    door.add(popular, other)
    trial = make_trial(popular.hash, "f" * 32)
    door.start(trial)
    treated = door.ask(anonymous_id=next(_visitors(trial, "treatment"))).json()
    assert (treated["arm"], treated["bundle"], treated["degraded"]) == ("treatment", other.hash, ["bundle"])
    control = door.ask(anonymous_id=next(_visitors(trial, "control"))).json()
    assert (control["arm"], control["bundle"], control["degraded"]) == ("control", popular.hash, [])
    assert door.ask().json()["degraded"] == []
    assert door.count("headrace_endpoint_degraded_total", "bundle", "treatment") == 1
    assert door.count("headrace_endpoint_degraded_total", "bundle", "control") == 0
    (problem,) = door.shelf.servings["home"].problems
    assert problem.startswith("trial 'taste-home-1': the bundle of treatment cannot serve: no bundle 'ffff")
    # And the other way round.
    door.start(make_trial("f" * 32, popular.hash))
    control = door.ask(anonymous_id=next(_visitors(trial, "control"))).json()
    assert (control["arm"], control["bundle"], control["degraded"]) == ("control", other.hash, ["bundle"])
    treated = door.ask(anonymous_id=next(_visitors(trial, "treatment"))).json()
    assert (treated["arm"], treated["bundle"], treated["degraded"]) == ("treatment", popular.hash, [])


def test_arms_are_frozen_while_newer_bundles_come(door):
    popular, tastes = make_popular(), make_tastes()
    door.add(popular, tastes)
    trial = make_trial(popular.hash, tastes.hash)
    door.start(trial)
    newer = make_popular(marked=5)
    door.add(newer, make_tastes(11))
    for arm, name_hash in (("control", popular.hash), ("treatment", tastes.hash)):
        shown = door.ask(anonymous_id=next(_visitors(trial, arm))).json()
        assert (shown["bundle"], shown["degraded"]) == (name_hash, [])
    # Who is in no arm is shown what serves outside of the trial.
    assert door.ask().json()["bundle"] == newer.hash
    door.start(make_trial(popular.hash, tastes.hash, status="stopped"))
    shown = door.ask(anonymous_id=next(_visitors(trial, "treatment"))).json()
    assert (shown["arm"], shown["experiment"], shown["bundle"]) == (None, None, newer.hash)


def test_older_fallback_is_told_to_those_outside_of_a_trial_only(door):
    popular, tastes = make_popular(), make_tastes()
    door.add(popular, tastes)
    trial = make_trial(popular.hash, tastes.hash)
    door.start(trial)
    door.add(BROKEN["without numbers"])
    assert door.ask().json()["degraded"] == ["bundle"]
    for arm in ("control", "treatment"):
        assert door.ask(anonymous_id=next(_visitors(trial, arm))).json()["degraded"] == []


@pytest.mark.parametrize("scores", [None, [float("nan")] * 4, [1.0] * 3])
def test_scorer_that_fails_leaves_the_page_to_the_fallback(door, scores):
    popular = make_popular()
    door.add(popular)
    trial = make_trial(popular.hash, "treated")
    served = Served(popular.hash, "popular", open_bundle(popular))
    arms = {"control": served, "treatment": Served("treated", "tastes", Scores(scores))}
    page = door.shelf.servings["home"].page
    door.shelf.servings = {"home": Serving(page, served, arms, trial)}
    shown = door.ask(anonymous_id=next(_visitors(trial, "treatment"))).json()
    assert (shown["arm"], shown["bundle"], shown["degraded"]) == ("treatment", popular.hash, ["fallback"])
    assert len(_ids(shown)) == 4
    shown = door.ask(anonymous_id=next(_visitors(trial, "control"))).json()
    assert (shown["arm"], shown["degraded"]) == ("control", [])
    assert door.count("headrace_endpoint_degraded_total", "fallback", "treatment") == 1
    # Where the fallback fails too, nothing is left.
    broken = Served("treated", "tastes", Scores(scores))
    door.shelf.servings = {"home": Serving(page, broken, {})}
    answer = door.ask(anonymous_id="ann")
    assert (answer.status, answer.json()["message"]) == (
        503,
        "no bundle can rank for the page 'home'; the log says why",
    )
    assert door.count("headrace_endpoint_requests_total", "503") == 1


def test_registry_that_breaks_leaves_what_serves(door):
    popular = make_popular()
    door.add(popular)
    row = Entry(0, "trial", "taste-home", b'{"version":9}', BEGAN_US, "test")
    door.project.registry.write(row)
    wait_until(lambda: door.shelf.trouble)
    assert "has version 9, this Headrace reads version 1" in door.shelf.trouble
    shown = door.ask(anonymous_id="ann").json()
    assert (shown["bundle"], shown["degraded"]) == (popular.hash, [])
    # Mended, it is read again by itself.
    write_trial(door.project.registry, make_trial(popular.hash, popular.hash))
    wait_until(lambda: not door.shelf.trouble)
    assert door.ask(anonymous_id="ann").json()["experiment"] == "taste-home"


def test_registry_that_is_removed_and_made_anew_is_followed(door):
    door.add(make_popular(prefix="old"))
    for file in door.project.profile.state.glob("registry.db*"):
        file.unlink()
    wait_until(lambda: "was opened and is gone" in door.shelf.trouble)
    assert door.ask(anonymous_id="ann").json()["degraded"] == []
    bundle = make_popular(prefix="new")
    with open_project(door.project.folder) as other:
        other.registry.add(bundle)
    wait_until(lambda: door.ask(anonymous_id="ann").json()["bundle"] == bundle.hash)


def test_registry_that_somebody_locks_changes_nothing(door):
    popular = make_popular()
    door.add(popular)
    path = door.project.profile.state / "registry.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        assert door.ask(anonymous_id="ann").json()["bundle"] == popular.hash
        other.execute("rollback")
    newer = make_popular(marked=1)
    door.add(newer)
    assert door.ask(anonymous_id="ann").json()["bundle"] == newer.hash


def test_endpoint_that_finds_no_registry_says_so_and_goes_on_once_it_is_there(folder):
    path = folder / ".headrace" / "registry.db"
    path.write_bytes(b"no database" * 1000)
    with open_door(folder) as door:
        wait_until(lambda: door.shelf.trouble)
        answer = door.ask(anonymous_id="ann")
        assert answer.status == 503
        assert "has nothing to show, for the registry cannot be read: the registry" in answer.json()["message"]
        path.unlink()
        wait_until(lambda: not door.shelf.trouble)
        door.add(make_popular())
        assert door.ask(anonymous_id="ann").status == 200


def _unlogged(answer):
    shown = answer.json()
    assert answer.status == 200
    assert (shown["recommendation_id"], shown["degraded"], len(_ids(shown))) == (None, ["unlogged"], 4)
    return shown


def test_page_whose_decision_has_no_topic_is_served_without_an_id(door):
    popular, tastes = make_popular(), make_tastes()
    door.add(popular, tastes)
    trial = make_trial(popular.hash, tastes.hash)
    door.start(trial)
    assert door.ask(anonymous_id="ann").json()["degraded"] == []
    with open_project(door.project.folder) as other:
        other.topics.drop("decisions")
    for arm, count in (("control", 3), ("treatment", 2)):
        for _, visitor in zip(range(count), _visitors(trial, arm), strict=False):
            assert _unlogged(door.ask(anonymous_id=visitor))["arm"] == arm
    _unlogged(door.ask())
    counts = [
        door.count("headrace_endpoint_degraded_total", "unlogged", arm) for arm in ("control", "treatment", "none")
    ]
    assert counts == [3, 2, 1]
    # Once it is there again, pages have ids again.
    with open_project(door.project.folder) as other:
        other.make_topics()
    shown = wait_until(lambda: (one := door.ask(anonymous_id="ann").json())["recommendation_id"] and one)
    (message,) = door.project.topic("decisions").read_to_ends()
    assert decode_decision(message.value).recommendation_id == shown["recommendation_id"]


def test_page_is_served_while_the_disk_is_full(door):
    door.add(make_popular())
    assert door.ask(anonymous_id="ann").json()["degraded"] == []
    assert door.project.topics.is_writer
    connection = door.project.topics._seat._writer._store.connection
    (pages,) = connection.execute("pragma page_count").fetchone()
    connection.execute(f"pragma max_page_count = {pages}")
    found = []
    for number in range(200):
        shown = door.ask(anonymous_id="ann", user_id=f"{number}" * 300).json()
        found.append(shown["recommendation_id"])
        if not found[-1]:
            break
    _unlogged(door.ask(anonymous_id="ann", user_id="u" * 1000))
    connection.execute("pragma max_page_count = 1000000")
    shown = door.ask(anonymous_id="ann").json()
    assert shown["degraded"] == []
    logged = {decode_decision(one.value).recommendation_id for one in door.project.topic("decisions").read_to_ends()}
    assert {one for one in found if one} <= logged
    assert shown["recommendation_id"] in logged


SMALL = Path(__file__).parents[1] / "collect" / "small.py"


def test_page_is_served_by_its_deadline_while_the_writer_is_frozen(folder):
    with open_project(folder) as project:
        project.make_topics()
        project.registry.add(make_popular())
    writer = subprocess.Popen([sys.executable, SMALL, "writer", folder], stdout=subprocess.PIPE)
    try:
        assert writer.stdout.readline() == b"writer\n"
        with open_door(folder) as door:
            door.take_over()
            told = [door.ask(anonymous_id="ann").json()["recommendation_id"]]
            freeze(writer.pid)
            for deadline_ms in (50, 300):
                began_at = time.monotonic()
                _unlogged(door.ask(anonymous_id="ann", deadline_ms=deadline_ms))
                # A wide margin for a busy machine; the writer's own deadline is 2 s.
                assert deadline_ms / 1000 * 0.9 < time.monotonic() - began_at < deadline_ms / 1000 + 1.0
            # Longer than anything waits for the log: what was on its way is written when it wakes.
            time.sleep(2 * ACK_SECONDS + 0.3)
            os.kill(writer.pid, signal.SIGCONT)
            told.append(wait_until(lambda: door.ask(anonymous_id="ann").json()["recommendation_id"]))
            # Nothing counts whose id nobody has.
            wait_until(lambda: _counted(door) == set(told))
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()


def _counted(door):
    """Returns the ids of the pages that were logged and not withdrawn."""
    found = [decode_decision(one.value) for one in door.project.topic("decisions").read_to_ends()]
    withdrawn = {one.recommendation_id for one in found if "unlogged" in one.degraded}
    return {one.recommendation_id for one in found} - withdrawn


def test_every_answer_under_load_is_wholly_of_one_bundle(door):
    """Two hundred clients ask without a pause while bundles come, and trials start and stop."""
    bundles = {}
    for number in range(10):
        made = [make_popular(12, prefix=f"film{number}"), make_tastes(12, **_renamed(number))]
        bundles |= {bundle.hash: (number, bundle) for bundle in made}
    door.add(*(bundle for number, bundle in bundles.values() if number == 0))
    stop, answers = threading.Event(), []
    crowd = threading.Thread(target=lambda: asyncio.run(_ask_together(door.port, 200, stop, answers)))
    crowd.start()
    trials = {}
    try:
        for number in range(1, 10):
            popular, tastes = (bundle for place, bundle in bundles.values() if place == number)
            for bundle in (popular, tastes):
                door.project.registry.add(bundle)
            for status in ("running", "stopped")[: 1 + number % 2]:
                trial = make_trial(popular.hash, tastes.hash, number=number, status=status)
                trials.setdefault(trial.id, trial)
                door.start(trial)
                before = len(answers)
                wait_until(lambda before=before: len(answers) > before + 60, seconds=60)
    finally:
        stop.set()
        crowd.join()
    assert {status for status, _, _ in answers} == {200}
    _check_whole(door, [(visitor, shown) for _, visitor, shown in answers], bundles, trials)


async def _ask_together(port, count, stop, answers):
    """Asks on many connections at once; each goes on as soon as it is answered."""

    async def ask(client):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not stop.is_set():
            visitor = f"visitor-{client % 40}"
            body = json.dumps({"page": "home", "anonymous_id": visitor, "deadline_ms": 10_000}).encode()
            writer.write(b"POST /v1/page HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            answers.append((int(head.split()[1]), visitor, json.loads(await reader.readexactly(length))))
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(ask(client) for client in range(count)))


def _renamed(number):
    named = make_popular(12, prefix=f"film{number}")
    return {"items": named.arrays["items"]}


def _check_whole(door, answers, bundles, trials):
    scorers = {name_hash: open_bundle(bundle) for name_hash, (_, bundle) in bundles.items()}
    logged = {
        decision.recommendation_id: decision
        for message in door.project.topic("decisions").read_to_ends()
        if (decision := decode_decision(message.value))
    }
    assert len(answers) > 500
    served = Counter()
    for visitor, shown in answers:
        decision, scorer = logged[shown["recommendation_id"]], scorers[shown["bundle"]]
        items = shown["rows"][0]["items"]
        scores = scorer.scores(visitor)
        # Each bundle has items of its own, so a mixed answer would hold some that its bundle does not know.
        assert [item["score"] for item in items] == [float(scores[scorer.places[item["id"]]]) for item in items]
        assert (decision.visitor, decision.bundle, decision.arm) == (visitor, shown["bundle"], shown["arm"])
        assert decision.items == tuple(item["id"] for item in items)
        assert shown["degraded"] == []
        if shown["arm"]:
            trial = trials[decision.trial]
            assert shown["bundle"] == trial.bundle_of(shown["arm"])
            assert shown["arm"] == ("control", "treatment")[assign(trial.seed, visitor, trial.weights)]
        served[shown["bundle"], shown["arm"]] += 1
    assert {arm for _, arm in served} == {None, "control", "treatment"}
    assert len({name_hash for name_hash, _ in served}) >= 10


def test_decision_that_became_durable_too_late_is_taken_back(door):
    door.add(make_popular())
    assert door.ask(anonymous_id="ann").json()["degraded"] == []
    late = next(n for n in range(500) if not door.ask(anonymous_id=f"v{n}", deadline_ms=1).json()["recommendation_id"])

    def logged():
        values = [message.value for message in door.project.topic("decisions").read()]
        return [one for one in map(decode_decision, values) if one.visitor == f"v{late}"]

    wait_until(lambda: any("unlogged" in one.degraded for one in logged()), what="the decision is taken back")
    assert len({one.recommendation_id for one in logged()}) == 1
