"""The truth beside a verdict: the world's own, from the lake's rows, and every logged decision made again."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headrace import learn, loop
from headrace.endpoints.carousel import Rule, choose
from headrace.endpoints.follower import SEEN_US
from headrace.events.decision import Decision
from headrace.events.settled import SettledEvent
from headrace.events.visit import ClientEvent, PageShown, PageWanted
from headrace.events.world import World
from headrace.experiments.assign import assign
from headrace.experiments.experiment import ARMS, Trial
from headrace.experiments.verdict import Verdict
from headrace.models import Scorer, open_bundle, popularity, taste
from headrace.project import OpenProject, open_project
from headrace.rehearse import CLICKS, Past, Stage, rehearse, tell_lift
from headrace.verify.truth import tell_truth
from streamline import BEGAN_US, DAY, HOUR, decided, make_project, tracked, write

pytestmark = pytest.mark.slow

COUNTED = ("Product List Viewed", "Product Clicked")
Tamper = Callable[[list[Decision]], list[Decision]]


WRONG: list[Callable[[Decision], Mapping[str, object]]] = [
    lambda one: {"items": (*one.items[1:], one.items[0])},
    lambda one: {"scores": (one.scores[0] + 1e-9, *one.scores[1:])},
    lambda one: {"propensities": (one.propensities[0] / 2, *one.propensities[1:])},
    lambda one: {"seen": (*one.seen, one.items[0])},
    lambda one: {"items": one.items[1:], "degraded": ("fallback",)},
]
"""Decisions that cannot be made again: each is different, but for the last one."""


@dataclass
class Market:
    """A trial whose pages are made here, as an endpoint makes them, and written into a real lake."""

    project: OpenProject
    world: World
    clicked: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    """What each person has clicked, and when."""
    past: dict[str, dict[str, int]] = field(default_factory=dict)
    """The same as the trial began."""
    decisions: list[Decision] = field(default_factory=list)
    events: list[SettledEvent] = field(default_factory=list)

    def live_before(self) -> None:
        """Lets a day pass on the site's own lists, and fits the models from it."""
        for visit in self.world.traffic(BEGAN_US - DAY, BEGAN_US):
            self._happen(visit.visitor, visit.events)
        write(self.project, events=self.events)
        self.events.clear()
        self.past = {person: dict(mine) for person, mine in self.clicked.items()}
        for model in ("popular", "tastes"):
            learn.fit(self.project, model)

    def run_trial(self, hours: int, tamper: Tamper) -> Verdict:
        """Lets visitors come to a trial, and returns its verdict."""
        trial = loop.start(self.project, "taste-home", gate=False)
        scorers = self.scorers(trial)
        for at_us, visitor in self.world.schedule(BEGAN_US, BEGAN_US + hours * HOUR):
            self._visit(trial, scorers, visitor, at_us)
        write(self.project, events=self.events, decisions=tamper(self.decisions))
        self.project.clock.step((hours + 3) * 3600)
        return loop.stop(self.project, "taste-home")

    def scorers(self, trial: Trial) -> list[Scorer]:
        return [open_bundle(self.project.registry.load(one)) for one in (trial.control, trial.treatment)]

    def _visit(self, trial: Trial, scorers: Sequence[Scorer], visitor: int, at_us: int) -> None:
        visiting = self.world.visiting(visitor, at_us)
        wanted = next(visiting)
        while True:
            decision = self._decide(trial, scorers, wanted)
            self.decisions.append(decision)
            try:
                wanted = visiting.send(PageShown(decision.items, decision.recommendation_id))
            except StopIteration as done:
                self._happen(visitor, done.value)
                return

    def _decide(self, trial: Trial, scorers: Sequence[Scorer], wanted: PageWanted) -> Decision:
        who, at_us = wanted.visitor, wanted.at_us
        person, seed = wanted.user_id or who.anonymous_id, len(self.decisions)
        arm = assign(trial.seed, who.anonymous_id, trial.weights)
        assert arm is not None
        seen = tuple(sorted(item for item, us in self.clicked[person].items() if at_us - SEEN_US <= us < at_us))
        chosen = choose(scorers[arm], person, seen, rule=Rule(trial.per_row, trial.explore), seed=seed)
        made = {name: getattr(chosen, name) for name in ("categories", "scores", "propensities", "num_candidates")}
        frozen = {"experiment": trial.experiment, "trial": trial.id, "arm": ARMS[arm], "per_row": trial.per_row}
        known = {"person": person, "user_id": wanted.user_id, "bot": who.bot, "seen": seen, "seed": seed}
        bundle = (trial.control, trial.treatment)[arm]
        return decided(who.anonymous_id, chosen.items, at_us=at_us, bundle=bundle, **made, **frozen, **known)

    def _happen(self, visitor: int, events: Sequence[ClientEvent]) -> None:
        who = self.world.visitor(visitor)
        for event in events:
            if event.event not in COUNTED:
                continue
            at_us = round(datetime.fromisoformat(event.timestamp).timestamp() * 1000) * 1000 - who.skew_us
            properties = msgspec.to_builtins(event.properties)
            more = {"user_id": event.user_id, "bot": who.bot}
            self.events.append(tracked(event.event, who.anonymous_id, properties, at_us=at_us, **more))
            if event.event == "Product Clicked":
                self.clicked[event.user_id or who.anonymous_id][properties["product_id"]] = at_us


@contextmanager
def market_of(folder: Path, *, hours: int, tamper: Tamper = list) -> Iterator[tuple[Market, Verdict]]:
    """Yields a trial of some hours, and its verdict."""
    make_project(folder, per_row=10)
    with open_project(folder) as project:
        market = Market(project, World(11, visitors=150, born_us=BEGAN_US - DAY))
        market.live_before()
        yield market, market.run_trial(hours, tamper)


def test_truth_is_what_the_world_says_of_the_visits_before_the_cut_off(tmp_path):
    with market_of(tmp_path, hours=24) as (market, verdict):
        project, world = market.project, market.world
        truth = tell_truth(project, world, verdict)
        counted = [one for one in market.decisions if not one.bot and one.received_us < verdict.cutoff_us]
        assert len(counted) < len(market.decisions), "no robot came"
        assert truth.pages == truth.replayed == len(counted) == verdict.control.pages + verdict.treatment.pages
        assert truth.different == 0
        trial = loop.find_trial_of(project, verdict)
        visits = list(world.schedule(BEGAN_US, verdict.cutoff_us))
        told = tell_lift(world, trial, market.scorers(trial), visits, past=Past(seen=market.past))
        assert (truth.control, truth.treatment) == (told.control, told.treatment)
        forgetful = tell_lift(world, trial, market.scorers(trial), visits, past=Past())
        assert forgetful.control != truth.control, "what was seen before the trial changes nothing"
        assert 0.01 < truth.control < truth.treatment < 0.2


def test_decisions_that_were_logged_wrongly_are_counted(tmp_path):
    def tamper(decisions: list[Decision]) -> list[Decision]:
        people = [number for number, one in enumerate(decisions) if not one.bot]
        for number, change in zip(people[10:], WRONG, strict=False):
            decisions[number] = msgspec.structs.replace(decisions[number], **change(decisions[number]))
        return decisions

    with market_of(tmp_path, hours=9, tamper=tamper) as (market, verdict):
        truth = tell_truth(market.project, market.world, verdict)
        assert truth.pages > 10 + len(WRONG)
        assert truth.different == len(WRONG) - 1
        # A page that was served other than planned cannot be made again.
        assert truth.replayed == truth.pages - 1


@pytest.mark.soak
def test_trials_of_one_world_split_anew_find_on_average_what_everybody_would_do():
    popular = popularity("popular", CLICKS, half_life="3d")
    models = (popular, taste("tastes", CLICKS, base=popular))
    trials = [rehearse(3, models, split=number) for number in range(40)]
    assert len({one.verdict.difference for one in trials}) == 40
    # What visitors do is drawn once: of all chance only the split is left, and what all would click in either arm.
    errors = [one.verdict.difference - count_difference(one.everybody) for one in trials]
    mean, error = np.mean(errors), np.std(errors, ddof=1) / math.sqrt(len(errors))
    print(f"{len(trials)} splits err by {mean:.5f} +- {error:.5f}")
    # With 39 degrees of freedom 5.8 standard errors are passed once in a million times.
    assert abs(mean) < 5.8 * error
    # The truth differs from that by the chance of single clicks alone.
    noise = math.sqrt(sum(one.ratio * (1 - one.ratio) / one.num_viewed for one in trials[0].everybody))
    assert 0 < abs(count_difference(trials[0].everybody) - trials[0].truth.difference) < 5 * noise


def count_difference(everybody: Sequence[Stage]) -> float:
    """Returns the difference in clicks by items viewed, with everybody in either arm."""
    ratios = [int(one.visitors().clicks.sum()) / one.num_viewed for one in everybody]
    return ratios[1] - ratios[0]
