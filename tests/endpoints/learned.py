"""A door whose page is ranked by features: items, events and tiles stand, and the bundle is made by hand."""

from __future__ import annotations

import contextlib

import msgspec
import numpy as np

from endpoints.door import open_door
from features.counting import drain
from headrace.base.clock import machine_us
from headrace.base.telemetry import Metrics
from headrace.collect.load import load_members
from headrace.features.updater import METRICS, Updater
from headrace.models import Bundle
from headrace.models.model import pack_texts
from headrace.stream import find_sources
from models.market import ITEMS, make_market, with_genre
from streamline import BEGAN_US, MINUTE, append, clicked

ITEM_IDS = sorted(ITEMS)


def make_ranker(columns, *, weights=None):
    """Returns the bundle of a click model that likes what is counted, each column as much as the others."""
    given = np.ones(len(columns)) if weights is None else np.array(weights, float)
    arrays = {
        "items": pack_texts(ITEM_IDS),
        "categories": pack_texts([ITEMS[item] for item in ITEM_IDS]),
        "item_genre": pack_texts([ITEMS[item] for item in ITEM_IDS]),
        "base": np.array([-2.0, -0.7]),
        "weights": given,
        "contexts": np.zeros(len(columns)),
        "means": np.zeros(len(columns)),
        "scales": np.ones(len(columns)),
    }
    parameters = {"columns": [msgspec.to_builtins(column) for column in columns]}
    return Bundle("ranker", "click", parameters, {"at_us": BEGAN_US, "rows": 1}, arrays)


def count_events(project):
    """Counts all that `events` holds in the online store."""
    updater = Updater(
        project.online,
        lambda: project.declared.columns,
        find_sources(project),
        clock=machine_us,
        metrics=Metrics(METRICS),
    )
    updater.open()
    drain(updater)


@contextlib.contextmanager
def open_learned(folder, *, visitor="ann"):
    """Yields a door; the visitor has clicked two items of one genre, and everybody one of another."""
    with open_door(make_market(folder)) as door:
        project = door.project
        (items,) = project.declared.dimensions
        members = {item: {"title": item.title(), "genre": genre} for item, genre in ITEMS.items()}
        load_members(project.topics, items, members=members, now_us=BEGAN_US)
        mine = [item for item in ITEM_IDS if ITEMS[item] == "drama"][:2]
        told = [(visitor, item) for item in mine] + [("bob", "item-0"), ("cyd", "item-0"), ("dan", "item-0")]
        events = [
            clicked(who, item, at_us=BEGAN_US - (9 - n) * MINUTE, attributes=with_genre(item), seq=n)
            for n, (who, item) in enumerate(told)
        ]
        append(project, events=events)
        count_events(project)
        door.follow()
        yield door
