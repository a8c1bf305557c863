"""Checks of what was served: features, bundles, chances."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec
import numpy as np
from scipy import stats

from headrace.endpoints.carousel import Rule, choose
from headrace.endpoints.endpoint import Shown
from headrace.events.decision import DECISIONS
from headrace.experiments.experiment import ARMS
from headrace.features import Column
from headrace.features.serve import Items, Reader
from headrace.learn import view_of
from headrace.models import open_bundle
from headrace.models.linear import ClickModel
from headrace.models.rows import encode_numbers
from headrace.verify.case import INSTEAD, Case, Check, Found, LeftOutError
from headrace.verify.oracle import find_items
from headrace.verify.truth import read_values

_FALSE_ALARM = 1e-6
_DAY_US = 86_400_000_000
_DRAWS = 6_000
_FEWEST_DRAWS = 600
_FEWEST_EXPECTED = 8.0
_MOST_PERSONS = 20
_MOST_DECISIONS = 250
_MOST_ROWS = 400

_Place = tuple[int, str, int]
"""Instant, item and position."""


def _is_logged_as_answered(case: Case) -> Found:
    # Their hashes, since the rows themselves are most of a demo's memory.
    logged: dict[str, dict[str, int]] = defaultdict(dict)
    for row in case.decisions:
        items = zip(row["items"], row["scores"], row["propensities"], strict=True)
        logged[row["recommendation_id"]][row["list_id"]] = hash((row["bundle"], row["arm"], tuple(items)))
    wrong = (
        f"recommendation {page.recommendation_id}"
        for page in case.record.pages
        if page.recommendation_id and _hash_rows(page) != logged.get(page.recommendation_id, {})
    )
    unlogged = case.record.unlogged
    return Found(f"{case.record.answered - unlogged:,} pages, {unlogged:,} more had no id", next(wrong, None))


def _hash_rows(page: Shown) -> dict[str, int]:
    return {
        row.title: hash((row.bundle, page.arm, tuple((item.id, item.score, item.propensity) for item in row.items)))
        for row in page.rows
    }


def _was_clicked(case: Case) -> Found:
    """Works out again what each person had clicked within a day, of the events that the page knew."""
    paths = {event.name: event.item or "" for page in case.project.declared.pages for event in page.events}
    clicked: dict[str, list[tuple[int, int, int, str]]] = defaultdict(list)
    for row in case.events:
        if row["event"] in paths and row["type"] == "track" and not row["bot"] and row["properties"]:
            for item in find_items(msgspec.json.decode(row["properties"]), paths[row["event"]]):
                place = (row["event_us"], row["log_partition"], row["log_offset"], item)
                clicked[row["person"]].append(place)
    size = items = 0
    for size, row in enumerate(case.decisions, 1):
        applied = dict(enumerate(row["applied"]))
        wanted = {
            item
            for event_us, partition, offset, item in clicked.get(row["person"], ())
            if row["at_us"] - _DAY_US <= event_us < row["at_us"] and offset < applied.get(partition, 0)
        }
        items += len(wanted)
        if set(row["seen"] or ()) != wanted:
            told = f"seen: {sorted(row['seen'] or ())}, events say {sorted(wanted)}"
            return Found(f"{size:,} rows", f"recommendation {row['recommendation_id']}, {told}")
    return Found(f"{size:,} rows, {items:,} titles left out of them")


def _is_pinned(case: Case) -> Found:
    trial = case.trial
    tested = {row.title for row in case.project.declared.pages[0].carousels if row.ranker == _ranker(case)}
    frozen = {arm: (trial.bundle_of(arm), trial.per_row, trial.explore) for arm in ARMS}
    mine = [
        (row["recommendation_id"], (row["bundle"], row["per_row"], row["explore"]) == frozen[row["arm"]])
        for row in case.decisions
        if row["trial"] == trial.id and row["list_id"] in tested and not INSTEAD & set(row["degraded"])
    ]
    wrong = (f"recommendation {one}" for one, is_right in mine if not is_right)
    witness = next(wrong, None if mine else f"trial {trial.id}")
    return Found(f"{len(mine):,} rows in the trial of {trial.control[:8]} and {trial.treatment[:8]}", witness)


def _is_made_again(case: Case) -> Found:
    truth = case.truth
    text = f"{truth.replayed:,} decisions were made again, {truth.different:,} came out as another row"
    return Found(text, f"trial {case.trial.id}" if truth.different or not truth.replayed else None)


def _are_chances_true(case: Case) -> Found:
    """Counts how often all slots took the best one left, and draws one frozen request again and again.

    Within the same slots above, each item must come by its chance.
    """
    made = "propensities, explore, num_candidates"
    slots, even = _count_tops(case.read(DECISIONS, made, where="NOT list_contains(degraded, 'unlogged')"))
    mine = (row for row in case.decisions if row["trial"] == case.trial.id and row["arm"] == "treatment")
    newest = deque((row for row in mine if len(row["items"]) > 1), maxlen=1)
    if not newest:
        raise LeftOutError("the treatment has shown no row of two items")
    row = newest.pop()
    scorer = open_bundle(case.project.registry.load(row["bundle"]))
    (values,) = read_values(case.project, scorer, [row])
    rule = Rule(row["per_row"], row["explore"], tuple(row["above"] or ()))
    drawn = [choose(scorer, row["person"], row["seen"], rule=rule, seed=seed, values=values) for seed in range(_DRAWS)]
    groups: dict[tuple[str, ...], list[tuple[str, float]]] = defaultdict(list)
    for chosen in drawn:
        for place, (item, chance) in enumerate(zip(chosen.items, chosen.propensities, strict=True)):
            groups[chosen.items[:place]].append((item, chance))
    judged = {above: _fit(found) for above, found in groups.items() if len(found) >= _FEWEST_DRAWS}
    least = min(judged, key=lambda above: judged[above])
    drawn_text = f"{_DRAWS:,} draws of one request, {len(judged)} slots, least p {judged[least]:.2g}"
    text = f"{slots:,} slots served, p {even:.2g}; {drawn_text}"
    limit = _FALSE_ALARM / (len(judged) + 1)
    if even < limit:
        return Found(text, "all decisions: other shares of them are explored than their propensities say")
    failed = judged[least] < limit
    return Found(text, f"recommendation {row['recommendation_id']}, slot {len(least) + 1}" if failed else None)


def _count_tops(rows: Iterable[Mapping[str, Any]]) -> tuple[int, float]:
    """Returns how many slots were filled, and the p value of how many took the best one left, at each position.

    Each is drawn by itself with the chance `explore` from all that are left; a told chance that is neither of the two
    which follow is impossible.
    """
    tops: Counter[int] = Counter()
    slots: Counter[int] = Counter()
    chances: defaultdict[int, float] = defaultdict(float)
    for row in rows:
        # Where all is explored both are the same.
        for place, told in enumerate(row["propensities"] if row["explore"] < 1 else ()):
            other = row["explore"] / (row["num_candidates"] - place)
            top = 1 - row["explore"] + other
            if min(abs(told - top), abs(told - other)) > 1e-9:
                return slots.total(), 0.0
            tops[place] += abs(told - top) <= 1e-9
            slots[place] += 1
            chances[place] += top
    tests = (stats.binomtest(tops[place], many, min(chances[place] / many, 1.0)) for place, many in slots.items())
    least = min((float(one.pvalue) for one in tests), default=1.0)
    return slots.total(), min(len(slots) * least, 1.0)


def _fit(found: Sequence[tuple[str, float]]) -> float:
    """Returns the p value of chi-square for items drawn and the chances that were told of them."""
    counts = Counter(item for item, _ in found)
    chances: dict[str, float] = {}
    for item, chance in found:
        if chances.setdefault(item, chance) != chance:
            return 0.0
    often = {item: len(found) * chance for item, chance in chances.items() if len(found) * chance >= _FEWEST_EXPECTED}
    seen = [*(counts[item] for item in often), len(found) - sum(counts[item] for item in often)]
    expected = [*often.values(), len(found) - sum(often.values())]
    if expected[-1] < 1e-9 * len(found):
        # Nothing is left but what rounding leaves; chances of more than all are none.
        if seen[-1] or expected[-1] < -1e-9 * len(found):
            return 0.0
        expected[-1] = 0.0
    surprise = sum((one - wanted) ** 2 / wanted for one, wanted in zip(seen, expected, strict=True) if wanted > 0)
    return float(stats.chi2.sf(surprise, max(sum(wanted > 0 for wanted in expected) - 1, 1)))


def _is_online_as_counted(case: Case) -> Found:
    columns, project = case.columns, case.project
    items = Items(tuple(case.attributes), _texts(case))
    reader, now_us = Reader(project.online, columns), project.clock.now_us()
    reader.prepare(items)
    counted = 0
    persons = _some_persons(case)
    if not persons:
        raise LeftOutError(f"nobody has sent a {columns[0].event!r}")
    for person in persons:
        read = reader.read(person, items, now_us)
        for number, (column, values) in enumerate(zip(columns, read.values, strict=True)):
            for item, found in zip(items.ids, values.tolist(), strict=True):
                wanted = case.oracle.value(
                    number, person, item, at_us=read.at_us, known=read.known, attributes=case.attributes
                )
                counted += 1
                if found != wanted:
                    witness = f"{column.name} of person {person} and item {item}: {found!r}, events say {wanted!r}"
                    return Found(f"{counted:,} values", witness)
    return Found(f"{counted:,} values of {len(persons)} persons, each item")


def _some_persons(case: Case) -> list[str]:
    """Returns those who clicked most of late."""
    clicks = Counter(row["person"] for row in case.events if row["event"] == case.columns[0].event and not row["bot"])
    return [person for person, _ in clicks.most_common(_MOST_PERSONS)]


def _texts(case: Case) -> Mapping[str, Sequence[str | None]]:
    names = {name for known in case.attributes.values() for name in known}
    return {name: [known.get(name) for known in case.attributes.values()] for name in sorted(names)}


def _is_served_as_counted(case: Case) -> Found:
    size = sum(bool(row["vectors"]) for row in case.decisions)
    if not size:
        raise LeftOutError("no page was ranked by features")
    served = (row for row in case.decisions if row["vectors"])
    counted = 0
    columns: dict[str, Sequence[Column]] = {}
    for row in islice(served, 0, None, max(size // _MOST_DECISIONS, 1)):
        if row["bundle"] not in columns:
            columns[row["bundle"]] = open_bundle(case.project.registry.load(row["bundle"])).columns
        for item, vector in zip(row["items"], msgspec.json.decode(row["vectors"]), strict=True):
            for column, found in zip(columns[row["bundle"]], vector, strict=True):
                wanted = _count(case, column, row, item)
                counted += 1
                if found != wanted:
                    told = f"{column.name} of {item}: {found!r}, events say {wanted!r}"
                    return Found(f"{counted:,} values", f"recommendation {row['recommendation_id']}, {told}")
    return Found(f"{counted:,} values of {size:,} rows served")


def _count(case: Case, column: Column, row: Mapping[str, Any], item: str) -> Any:
    number = next(place for place, one in enumerate(case.columns) if one.identity == column.identity)
    return case.oracle.value(
        number, row["person"], item, at_us=row["at_us"], known=row["known"], attributes=case.attributes
    )


def _is_learned_as_counted(case: Case) -> Found:
    """Holds training rows against pages: what each row says of its item must have been so when the page was made."""
    ranker = _ranker(case)
    if not isinstance(ranker, ClickModel):
        raise LeftOutError(f"{ranker.name!r} learns from no decisions")
    newest = next(iter(case.project.registry.bundles(ranker.name)), None)
    if newest is None:
        raise LeftOutError(f"no bundle of {ranker.name!r} was fitted")
    rows = ranker.read(view_of(case.project, case.project.registry.load(newest.hash)))
    chosen = range(0, len(rows), max(len(rows) // _MOST_ROWS, 1))
    asked = {
        place: (int(rows.at_us[place]), rows.names[rows.items[place]], int(rows.positions[place])) for place in chosen
    }
    pages = _find_pages(case, asked.values())
    numbers = [number for number, column in enumerate(ranker.columns) if not column.is_text]
    for place, key in asked.items():
        item = key[1]
        told = [float(rows.inputs[number][place]) for number in numbers]
        wanted = [
            encode_numbers(np.array([_count(case, ranker.columns[number], row, item) for number in numbers])).tolist()
            for row in pages[key]
        ]
        if told not in wanted:
            return Found(f"{len(rows):,} rows", f"training row {place} on {item}: {told}, its page says {wanted}")
    return Found(f"{len(chosen):,} of {len(rows):,} rows, {len(numbers)} features each")


def _find_pages(case: Case, asked: Iterable[_Place]) -> Mapping[_Place, Sequence[Mapping[str, Any]]]:
    """Returns the rows that showed an item at an instant at a position."""
    pages: dict[_Place, list[Mapping[str, Any]]] = {one: [] for one in asked}
    for row in case.decisions:
        for position, item in enumerate(row["items"], len(row["above"] or ()) + 1):
            if (found := pages.get((row["at_us"], item, position))) is not None:
                found.append(row)
    return pages


def _ranker(case: Case) -> Any:
    return case.project.declared.pages[0].ranker


CHECKS = (
    Check("features online are those of the events", "features", _is_online_as_counted),
    Check("features served are those known to the page", "features", _is_served_as_counted),
    Check("training rows know what their page knew", "models", _is_learned_as_counted),
    Check("every page is logged as it was answered", "endpoints", _is_logged_as_answered),
    Check("what was seen is what was clicked within a day", "endpoints", _was_clicked),
    Check("each arm is served by its own bundle", "endpoints", _is_pinned),
    Check("every decision is made again from what was logged", "endpoints", _is_made_again),
    Check("a propensity is the frequency", "endpoints", _are_chances_true, _FALSE_ALARM),
)
