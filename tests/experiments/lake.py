"""A trial on a real lake, whose decisions and events a test writes itself."""

from __future__ import annotations

from random import Random

import msgspec

from endpoints.door import make_trial, write_trial
from headrace.experiments.assign import assign
from headrace.experiments.experiment import ARMS, decode_trial
from headrace.topics import Record
from streamline import BEGAN_US, HOUR, MINUTE, SECOND, decided, tracked, viewed
from streamline import clicked as clicked_at

ITEMS = tuple(f"item-{number}" for number in range(10))


def start_trial(project, **more):
    """Returns a trial that has begun at `BEGAN_US`, with all that was written before left out."""
    project.make_topics()
    before = {decode_trial(row.value).id for row in project.registry.entries("trial", "taste-home")}
    more.setdefault("number", len(before) + 1)
    topics = ("decisions", "events")
    more.setdefault("positions", {name: tuple(b.end for b in project.topics.bounds(name)) for name in topics})
    more.setdefault("incarnations", {name: project.topics.describe(name).incarnation for name in topics})
    trial = make_trial("c" * 32, "t" * 32, **more)
    write_trial(project.registry, trial)
    return trial


def stop_at(project, trial, *, hours):
    """Moves the clock to some hours after the trial's start."""
    project.clock.step((trial.started_us - project.clock.now_us()) / 1e6 + hours * 3600)


def page(trial, visitor, *, number=0, at_us=BEGAN_US + MINUTE, arm=None, items=ITEMS, **more):
    """Returns a decision of the trial for a visitor, whose id names visitor and number."""
    chosen = arm or ARMS[assign(trial.seed, visitor, trial.weights)]
    return decided(
        visitor,
        items,
        at_us=at_us,
        recommendation_id=f"{visitor}/{number}",
        experiment=trial.experiment,
        trial=trial.id,
        arm=chosen,
        bundle=trial.bundle_of(chosen),
        **more,
    )


def view(decision, items=None, *, after_us=MINUTE, **more):
    """Returns the event that a page's items were seen."""
    shown = decision.items if items is None else items
    at_us = decision.received_us + after_us
    return viewed(decision.visitor, shown, at_us=at_us, recommendation_id=decision.recommendation_id, **more)


def click(decision, item, *, after_us=2 * MINUTE, **more):
    """Returns the event that an item of a page was clicked."""
    at_us = decision.received_us + after_us
    return clicked_at(decision.visitor, item, at_us=at_us, recommendation_id=decision.recommendation_id, **more)


def told(trial, visitor, arm, *, at_us=BEGAN_US + MINUTE, experiment=None, **more):
    """Returns the event by which somebody else's page tells that a visitor was exposed."""
    properties = {"experiment_id": experiment or trial.experiment, "variation_id": arm}
    return tracked("Experiment Viewed", visitor, properties, at_us=at_us, **more)


def beat(visitor, *, at_us, item="item-0", **more):
    """Returns the heartbeat of somebody who watches."""
    return tracked("Video Content Playing", visitor, {"asset_id": item}, at_us=at_us, **more)


def watch(decisions, *, most=(12, 12), seed=2):
    """Returns the heartbeats that follow decisions: up to so many each, by arm, ten seconds apart."""
    draw = Random(seed)
    return [
        beat(one.visitor, at_us=one.received_us + MINUTE + number * 10 * SECOND)
        for one in decisions
        for number in range(draw.randrange(most[ARMS.index(one.arm)] + 1))
    ]


def make_crowd(trial, *, visitors, rates=(0.1, 0.1), seed=1, views=6):
    """Returns decisions and events of a crowd that clicks at these rates, by arm."""
    draw = Random(seed)
    decisions, events = [], []
    for number in range(visitors):
        visitor = f"visitor-{number}"
        rate = rates[ARMS.index(ARMS[assign(trial.seed, visitor, trial.weights)])]
        for turn in range(draw.randrange(1, 4)):
            decision = page(trial, visitor, number=turn, at_us=BEGAN_US + turn * HOUR + draw.randrange(HOUR))
            decisions.append(decision)
            seen = decision.items[: draw.randrange(views) + 1]
            events.append(view(decision, seen))
            events += [
                click(decision, item, after_us=draw.randrange(60) * MINUTE) for item in seen if draw.random() < rate
            ]
    return decisions, events


def repeat(events, draw):
    """Returns events, some of them twice under another id, in another order."""
    more = [msgspec.structs.replace(one, message_id=f"{one.message_id}-again") for one in events if draw.random() < 0.3]
    mixed = [*events, *more]
    draw.shuffle(mixed)
    return mixed


def to_record(value, encode):
    """Returns a value as a record of its topic."""
    return Record((value.visitor or value.person).encode(), encode(value))
