"""An experiment: what a project may declare, and a trial from its start to its verdict."""

import contextlib
import re
import threading
from dataclasses import replace

import msgspec
import pytest

from endpoints.door import make_popular, make_tastes, make_trial, write_trial
from experiments.lake import click, make_crowd, page, start_trial, stop_at, view
from headrace import Carousel, Event, Experiment, Metric, Page, Project, learn, loop
from headrace.base.errors import CallError, FencedError, FormatError, ProjectError, StopError, UnavailableError
from headrace.experiments.experiment import ARMS, Gate, decode_trial, encode_trial
from headrace.experiments.metric import freeze
from headrace.experiments.verdict import encode_verdict
from headrace.learn import fit
from headrace.loop import find_verdict, look, read_gate, start, stop
from headrace.models import popularity, taste
from headrace.project import open_project
from streamline import BEGAN_US, HOUR, MINUTE, append, clicked, make_project, sink, write

VIEWS = Event("Product List Viewed", item="products[].product_id")
CLICKS = Event("Product Clicked", item="product_id")
CTR = Metric.ratio("ctr", CLICKS, VIEWS)
BEATS = Event("Video Content Playing", item="asset_id")
MINUTES = Metric.mean("minutes", BEATS, each=1 / 6, cap=0.99)
POPULAR = popularity("popular", CLICKS)
TASTES = taste("tastes", CLICKS, base=POPULAR)
HOME = Page("home", fallback=POPULAR, carousels=(Carousel("For you", candidates=(POPULAR,)),))

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": ""}, "a name has letters, digits"),
        ({"name": "taste home"}, "a name has letters, digits"),
        ({"mde": 0}, "mde=0 must be between 0 and 10"),
        ({"mde": "0.1"}, "mde='0.1' must be between 0 and 10"),
        ({"mde": float("nan")}, "mde=nan must be between"),
        ({"power": 1.0}, "power=1.0 must be between 0.05 and 1"),
        ({"power": 0.05}, "power=0.05 must be between 0.05 and 1"),
        ({"alpha": 0.5}, "alpha=0.5 must be between 0 and 0.5"),
        ({"goal": "ctr"}, "goal='ctr' is no Metric"),
        ({"goal": MINUTES}, "the goal 'minutes' is a mean, and a trial is planned and decided by a ratio; write goal="),
        ({"guardrails": MINUTES}, "write guardrails=(..., ), a tuple of metrics"),
        ({"guardrails": [MINUTES]}, "write guardrails=(..., ), a tuple of metrics"),
        ({"guardrails": ("minutes",)}, "the guardrail 'minutes' is no Metric"),
        ({"guardrails": (CTR,)}, "two of its metrics are called 'ctr', and a verdict tells them apart by name"),
        ({"guardrails": (MINUTES, MINUTES)}, "two of its metrics are called 'minutes'"),
        ({"lateness": "an hour"}, "lateness is 'an hour'; write a number"),
    ],
)
def test_experiment_that_cannot_be_is_refused(given, says):
    with pytest.raises(ProjectError, match=re.escape(says)):
        Experiment(**({"name": "one", "on": HOME, "goal": CTR} | given))


def test_metric_needs_events_of_items_and_a_time():
    with pytest.raises(ProjectError, match=r"Metric\('ctr'\): .* is no Event with item="):
        Metric.ratio("ctr", Event("Product Clicked"), VIEWS)
    with pytest.raises(ProjectError, match=r"Metric\('ctr'\): 'views' is no Event with item="):
        Metric.ratio("ctr", CLICKS, "views")
    with pytest.raises(ProjectError, match=r"Metric\('ctr'\): within is '30'; write a number"):
        Metric.ratio("ctr", CLICKS, VIEWS, within="30")
    assert (CTR.within_us, Metric.ratio("ctr", CLICKS, VIEWS, within="1.5h").within_us) == (30 * MINUTE, 90 * MINUTE)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Metric.mean("", BEATS), "Metric(''): give it a name, such as 'ctr'"),
        (lambda: Metric.mean("minutes", "beats"), "Metric('minutes'): 'beats' is no Event; write beats for beats ="),
        (lambda: Metric.mean("minutes", BEATS, each=0), "Metric('minutes'): each=0 must be above 0 and up to 1,000,0"),
        (lambda: Metric.mean("minutes", BEATS, each=-1), "each=-1 must be above 0"),
        (lambda: Metric.mean("minutes", BEATS, each="1/6"), "each='1/6' must be above 0"),
        (lambda: Metric.mean("minutes", BEATS, each=float("nan")), "each=nan must be above 0"),
        (lambda: Metric.mean("minutes", BEATS, cap=0.0), "Metric('minutes'): cap=0.0 must be above 0 and up to 1: the"),
        (lambda: Metric.mean("minutes", BEATS, cap=99), "cap=99 must be above 0 and up to 1"),
        (lambda: Metric.mean("minutes", BEATS, cap="p99"), "cap='p99' must be above 0 and up to 1"),
        (lambda: Metric("minutes"), "Metric('minutes'): write Metric.ratio(...) or Metric.mean(...)"),
    ],
)
def test_mean_that_cannot_be_is_refused(make, says):
    with pytest.raises(ProjectError, match=re.escape(says)):
        make()


def test_project_declares_the_events_of_goals_and_guardrails():
    carts = Metric.ratio("cart", Event("Product Added", item="product_id"), VIEWS)
    trial = Experiment("one", on=HOME, goal=CTR, guardrails=(MINUTES, carts))
    tastes = TASTES
    page = Page("home", fallback=POPULAR, carousels=(Carousel("For you", candidates=(POPULAR,), rank=tastes),))
    declared = Project("shop", pages=(page,), experiments=(replace(trial, on=page),)).events
    assert {event.name for event in declared} == {
        "Product List Viewed", "Product Clicked", "Video Content Playing", "Product Added",
    }  # fmt: skip
    assert (trial.metrics, CTR.events, MINUTES.events) == ((CTR, MINUTES, carts), (CLICKS, VIEWS), (BEATS,))
    assert [freeze(one).kind for one in trial.metrics] == ["ratio", "mean", "ratio"]
    assert freeze(carts).within_us == CTR.within_us
    with pytest.raises(ProjectError, match="Video Content Playing"):
        Project("shop", pages=(page,), experiments=(replace(trial, on=page),), events=(Event("Video Content Playing"),))


def test_two_experiments_on_one_page_are_refused():
    pair = tuple(Experiment(name, on=HOME, goal=CTR) for name in ("one", "two"))
    with pytest.raises(ProjectError, match="'one' and 'two' are both on the page 'home', where only one can change"):
        Project("shop", pages=(HOME,), experiments=pair)
    with pytest.raises(ProjectError, match="it is on the page 'home', which Project"):
        Project("shop", experiments=pair[:1])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"carousels": ()}, "give it Carousels"),
        ({"carousels": (Carousel("a", candidates=(POPULAR,)),) * 2}, "two carousels are called 'a'"),
        (
            {"carousels": (Carousel("a", candidates=(POPULAR,)), Carousel("b", candidates=(POPULAR,), rank=TASTES))},
            r"Carousel\('b'\) has rank='tastes', and the first carousel is ranked by 'popular': one model of a page",
        ),
        ({"carousels": tuple(Carousel(f"{n}", candidates=(POPULAR,)) for n in range(51))}, "51 carousels, a page has"),
        ({"fallback": "popular"}, "fallback='popular' is no model"),
        ({"per_row": 0}, "per_row=0 must be 1 to 200"),
        ({"per_row": 201}, "per_row=201 must be 1 to 200"),
        ({"per_row": 2.5}, "per_row=2.5 must be 1 to 200"),
        ({"explore": -0.1}, "explore=-0.1 must be 0 to 1"),
        ({"explore": 1.1}, "explore=1.1 must be 0 to 1"),
        ({"explore": float("nan")}, "explore=nan must be 0 to 1"),
    ],
)
def test_page_that_cannot_be_is_refused(given, says):
    with pytest.raises(ProjectError, match=says):
        Page(**({"name": "home", "fallback": POPULAR, "carousels": HOME.carousels} | given))


def test_definition_of_a_page_changes_with_all_that_it_says():
    tastes = TASTES
    others = [
        Page("home", fallback=POPULAR, carousels=HOME.carousels, per_row=9),
        Page("home", fallback=POPULAR, carousels=HOME.carousels, explore=0.2),
        Page("home", fallback=popularity("popular", CLICKS, half_life="4d"), carousels=HOME.carousels),
        Page("home", fallback=POPULAR, carousels=(Carousel("For you", candidates=(POPULAR,), rank=tastes),)),
    ]
    assert len({one.definition for one in [HOME, *others]}) == 5
    assert HOME.definition == Page("home", fallback=POPULAR, carousels=HOME.carousels).definition


def test_trial_is_written_as_it_is_read():
    trial = make_trial("c" * 32, "t" * 32, gate=Gate(1000, 400, 48, (26, 77), 0.05, 0.0021), stopped_us=BEGAN_US)
    assert decode_trial(encode_trial(trial)) == trial
    assert encode_trial(decode_trial(encode_trial(trial))) == encode_trial(trial)
    assert [trial.bundle_of(arm) for arm in ARMS] == ["c" * 32, "t" * 32]


@pytest.mark.parametrize("value", [b"", b"hello", b"{}", b'{"version":1}', b"[" * 10_000, b'{"version":1,"id":"\xff"}'])
def test_what_is_no_trial_is_refused(value):
    with pytest.raises(FormatError, match="is no trial"):
        decode_trial(value)
    row = msgspec.json.decode(encode_trial(make_trial("c", "t")))
    for changed in ({}, {"weights": "even"}):
        with pytest.raises(FormatError, match="the trial has version 2, this Headrace reads version 1"):
            decode_trial(msgspec.json.encode(row | {"version": 2} | changed))


def test_gate_is_passed_while_it_finds_no_more_than_it_may():
    assert Gate(1000, 400, 77, (26, 77), 0.05, 0.1).is_passed
    assert not Gate(1000, 400, 78, (26, 77), 0.05, 0.1).is_passed
    # Fewer than it should find is no reason to distrust what it finds.
    assert Gate(1000, 400, 0, (26, 77), 0.05, 0.1).is_passed


@pytest.fixture
def project(tmp_path):
    with open_project(make_project(tmp_path)) as one:
        yield one


def _log(project, *, visitors=150):
    """Writes what visitors outside of any trial did, two hours before now."""
    plain = make_trial("c" * 32, "t" * 32)
    decisions, events = make_crowd(plain, visitors=visitors, rates=(0.2, 0.2))
    decisions = [msgspec.structs.replace(one, trial=None, experiment=None, arm=None) for one in decisions]
    write(project, decisions=decisions, events=events)
    project.clock.step(6 * 3600)


def test_trial_runs_from_its_gate_to_its_verdict(project):
    _log(project)
    popular, tastes = fit(project, "popular"), fit(project, "tastes")
    trial = start(project, "taste-home")
    assert (trial.id, trial.control, trial.treatment) == ("taste-home-1", popular.hash, tastes.hash)
    assert (trial.per_row, trial.explore, trial.started_us) == (4, 0.1, BEGAN_US + 6 * HOUR)
    assert (trial.gate.splits, trial.gate.visitors, trial.gate.is_passed) == (1000, 150, True)
    assert trial.planned > 100
    ends = {name: tuple(bound.end for bound in project.topics.bounds(name)) for name in ("decisions", "events")}
    assert trial.positions == ends
    assert trial.definition == project.declared.pages[0].definition
    with pytest.raises(
        CallError, match=r"trial 'taste-home-1' runs on the page 'home' already. End it first: headrace"
    ):
        start(project, "taste-home")
    shown = page(trial, "ann", at_us=trial.started_us + MINUTE)
    write(project, decisions=[shown], events=[view(shown), click(shown, "item-0")])
    project.clock.step(3 * 3600)
    seen = look(project, "taste-home")
    assert find_verdict(project, "taste-home") is None
    verdict = stop(project, "taste-home")
    assert encode_verdict(verdict) == encode_verdict(seen)
    assert (verdict.trial, verdict.planned, verdict.gate) == (trial.id, trial.planned, trial.gate)
    assert verdict.control.pages + verdict.treatment.pages == 1
    assert encode_verdict(stop(project, "taste-home")) == encode_verdict(verdict)
    again = start(project, "taste-home", gate=False)
    assert (again.id, again.gate, again.planned, again.seed != trial.seed) == ("taste-home-2", None, 0, True)
    assert find_verdict(project, "taste-home") == verdict


def test_trial_needs_bundles_visitors_and_a_name_that_is_known(project):
    with pytest.raises(CallError, match=r"no experiment 'taste-hoem'. Did you mean taste-home"):
        start(project, "taste-hoem")
    with pytest.raises(
        CallError, match=r"there is no bundle of 'popular' yet. Fit one with: headrace model fit popular"
    ):
        start(project, "taste-home")
    project.registry.add(make_popular())
    with pytest.raises(CallError, match=r"there is no bundle of 'tastes' yet. Fit one with: headrace model fit tastes"):
        start(project, "taste-home")
    project.registry.add(make_tastes())
    with pytest.raises(StopError, match=r"nothing was logged yet. Run the project with: headrace up"):
        start(project, "taste-home")
    _log(project, visitors=20)
    with pytest.raises(
        StopError, match=r"20 visitors were logged on the page 'home' outside of a trial.*the A/A gate need"
    ):
        start(project, "taste-home")
    with pytest.raises(CallError, match=r"was not started yet. Start it with: headrace experiment start taste-home"):
        stop(project, "taste-home")
    assert project.registry.entries("trial", "taste-home") == []


def test_trial_does_not_start_with_a_bundle_that_cannot_serve(project):
    project.make_topics()
    for bundle in (make_popular(), make_tastes(), make_tastes(11, genres=make_popular().arrays["counts"].astype("u1"))):
        project.registry.add(bundle)
    with pytest.raises(
        CallError, match=r"the newest bundle of 'tastes' cannot serve: .* Fit another: headrace model fit"
    ):
        start(project, "taste-home", gate=False)


def test_trial_over_a_topic_that_was_made_anew_has_no_verdict(project):
    for bundle in (make_popular(), make_tastes()):
        project.registry.add(bundle)
    sink(project)
    start(project, "taste-home", gate=False)
    project.topics.drop("decisions")
    project.make_topics()
    with pytest.raises(StopError, match="'decisions'"):
        stop(project, "taste-home")


def test_of_two_who_start_or_stop_at_once_one_is_refused(project):
    for bundle in (make_popular(), make_tastes()):
        project.registry.add(bundle)
    sink(project)
    for number in range(1, 4):
        started = _race(project, lambda one: start(one, "taste-home", gate=False))
        assert [trial.id for trial in started] == [f"taste-home-{number}"]
        stopped = _race(project, lambda one: stop(one, "taste-home"))
        assert {verdict.trial for verdict in stopped} == {f"taste-home-{number}"}
        assert len({encode_verdict(verdict) for verdict in stopped}) == 1
    rows = [decode_trial(row.value) for row in project.registry.entries("trial", "taste-home")]
    assert [row.status for row in rows] == ["running", "stopped"] * 3
    assert len(project.registry.entries("verdict", "taste-home")) == 3


def _race(project, act):
    """Returns what came of it where two did the same at once, and were not refused."""
    barrier, done = threading.Barrier(2), []

    def run():
        with open_project(project.folder) as one:
            _ = one.declared, one.registry
            barrier.wait()
            # Too late in either way: the other's row stood already, or came in between.
            with contextlib.suppress(FencedError, CallError):
                done.append(act(one))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def test_gate_reads_only_what_was_logged_outside_of_trials(project):
    _log(project)
    trial = make_trial("c" * 32, "t" * 32, number=7)
    decisions, events = make_crowd(trial, visitors=100)
    late = [
        msgspec.structs.replace(one, recommendation_id=f"late/{n}", visitor=f"late-{n}")
        for n, one in enumerate(decisions)
    ]
    late = [msgspec.structs.replace(one, trial=None, arm=None, received_us=project.clock.now_us()) for one in late]
    write(project, decisions=decisions + late, events=events)
    gate, planned = read_gate(project, "taste-home", splits=50)
    assert (gate.visitors, gate.splits) == (150, 50)
    assert planned > 0


def test_fit_waits_for_nobody_and_reads_what_has_been_sunk(project):
    append(project, events=[clicked("ann", "item-1", at_us=BEGAN_US)])
    sink(project)
    append(project, events=[clicked("ann", "item-2", at_us=BEGAN_US)])
    assert len(fit(project, "popular").arrays["counts"]) == 1


def test_trial_that_could_not_be_judged_keeps_its_place_until_it_is(project, monkeypatch):
    trial = start_trial(project)
    stop_at(project, trial, hours=10)

    def away(*_, **__):
        raise UnavailableError("the lake does not hold all of 'events' yet")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "wait_for_lake", away)
        with pytest.raises(UnavailableError, match=f"{trial.id}' has ended and is not judged yet.*experiment stop"):
            loop.stop(project, "taste-home")
    with pytest.raises(CallError, match=f"{trial.id}' has ended and has no verdict yet"):
        loop.start(project, "taste-home", gate=False)
    write(project, decisions=[page(trial, "ann")])
    assert loop.stop(project, "taste-home").trial == trial.id


def test_cut_off_is_older_than_the_wait_for_the_lake(project, monkeypatch):
    trial = start_trial(project)
    stop_at(project, trial, hours=10)
    write(project, decisions=[page(trial, "ann")])
    wait = learn.wait_for_lake

    def slow(*given, **more):
        ends = wait(*given, **more)
        project.clock.step(5 * 3600)
        return ends

    monkeypatch.setattr(loop, "wait_for_lake", slow)
    assert loop.look(project, "taste-home").made_us == trial.started_us + 10 * HOUR


def test_trial_of_an_experiment_that_was_renamed_can_be_ended(project):
    trial = start_trial(project)
    stop_at(project, trial, hours=10)
    write(project, decisions=[page(trial, "ann")])
    source = project.folder / "project.py"
    source.write_text(source.read_text().replace('"taste-home"', '"tastes-two"'))
    with open_project(project.folder) as renamed:
        with pytest.raises(CallError, match="experiment stop taste-home"):
            loop.start(renamed, "tastes-two", gate=False)
        assert loop.stop(renamed, "taste-home").trial == trial.id


def test_rows_of_the_newest_bundles_are_kept_and_those_of_trials(project):
    hashes = []
    for number in range(learn.KEPT_BUNDLES + 3):
        write(project, events=[clicked("ann", f"item-{number}", at_us=BEGAN_US)])
        project.clock.step(60)
        hashes.append(learn.fit(project, "popular").hash)
        if number == 0:
            write_trial(project.registry, make_trial(hashes[0], hashes[0]))
    pins = [pin.reason.split()[1] for pin in project.tables.open("events").pins()]
    assert sorted(pins) == sorted([hashes[0], *hashes[-learn.KEPT_BUNDLES :]])
