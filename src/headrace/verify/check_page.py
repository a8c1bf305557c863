"""Checks of what was served: features, bundles, chances."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from scipy import stats

from headrace.endpoints.carousel import Rule, choose
from headrace.endpoints.endpoint import Shown
from headrace.features import Column
from headrace.features.serve import Items, Reader
from headrace.learn import view_of
from headrace.models import open_bundle
from headrace.models.linear import ClickModel
from headrace.models.rows import encode_numbers
from headrace.verify.case import Case, Check, Found, LeftOutError, Rows
from headrace.verify.truth import read_values

_FALSE_ALARM = 1e-6
_DRAWS = 6_000
_FEWEST_DRAWS = 600
_FEWEST_EXPECTED = 8.0
_MOST_PERSONS = 20
_MOST_DECISIONS = 250
_MOST_ROWS = 400
# Where one of these is said, another bundle than planned has ranked.
_INSTEAD = {"bundle", "fallback", "features"}


def _is_logged_as_answered(case: Case) -> Found:
    logged: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for row in case.decisions:
        logged[row["recommendation_id"]][row["list_id"]] = row
    answered = [page for page in case.record.pages if page.recommendation_id]
    for page in answered:
        if not _is_same_page(page, logged.get(page.recommendation_id or "", {})):
            return Found(f"{len(answered):,} pages were answered", f"recommendation {page.recommendation_id}")
    return Found(f"{len(answered):,} pages, {len(case.record.pages) - len(answered):,} more had no id")


def _is_same_page(page: Shown, rows: Mapping[str, Mapping[str, Any]]) -> bool:
    told = {
        row.title: (row.bundle, [(item.id, item.score, item.propensity) for item in row.items], page.arm)
        for row in page.rows
    }
    kept = {
        title: (row["bundle"], list(zip(row["items"], row["scores"], row["propensities"], strict=True)), row["arm"])
        for title, row in rows.items()
    }
    return told == kept


def _is_pinned(case: Case) -> Found:
    trial = case.trial
    tested = {row.title for row in case.project.declared.pages[0].carousels if row.ranker == _ranker(case)}
    mine = [
        row
        for row in case.decisions
        if row["trial"] == trial.id and row["list_id"] in tested and not _INSTEAD & set(row["degraded"])
    ]
    wrong = (row["recommendation_id"] for row in mine if row["bundle"] != trial.bundle_of(row["arm"]))
    witness = next((f"recommendation {one}" for one in wrong), None)
    return Found(f"{len(mine):,} rows in the trial of {trial.control[:8]} and {trial.treatment[:8]}", witness)


def _is_made_again(case: Case) -> Found:
    truth = case.truth
    text = f"{truth.replayed:,} decisions were made again, {truth.different:,} came out as another row"
    return Found(text, f"trial {case.trial.id}" if truth.different or not truth.replayed else None)


def _are_chances_true(case: Case) -> Found:
    """Draws one frozen request again and again; within the same slots above, each item must come by its chance."""
    row = next(row for row in reversed(_in_trial(case)) if len(row["items"]) > 1)
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
    text = f"{_DRAWS:,} draws of one request, {len(judged)} slots, least p {judged[least]:.2g}"
    failed = judged[least] < _FALSE_ALARM / len(judged)
    return Found(text, f"recommendation {row['recommendation_id']}, slot {len(least) + 1}" if failed else None)


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
    if expected[-1] < 0 or (expected[-1] < 1e-9 * len(found) and seen[-1]):
        return 0.0
    surprise = sum((one - wanted) ** 2 / wanted for one, wanted in zip(seen, expected, strict=True) if wanted > 0)
    return float(stats.chi2.sf(surprise, max(len(often), 1)))


def _is_online_as_counted(case: Case) -> Found:
    columns, project = case.columns, case.project
    items = Items(tuple(case.attributes), _texts(case))
    reader, now_us = Reader(project.online, columns), project.clock.now_us()
    reader.prepare(items)
    counted = 0
    for person in _some_persons(case):
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
    return Found(f"{counted:,} values of {_MOST_PERSONS} persons, each item")


def _some_persons(case: Case) -> list[str]:
    """Returns those who clicked most of late."""
    clicks = Counter(row["person"] for row in case.events if row["event"] == case.columns[0].event and not row["bot"])
    return [person for person, _ in clicks.most_common(_MOST_PERSONS)]


def _texts(case: Case) -> Mapping[str, Sequence[str | None]]:
    names = {name for known in case.attributes.values() for name in known}
    return {name: [known.get(name) for known in case.attributes.values()] for name in sorted(names)}


def _is_served_as_counted(case: Case) -> Found:
    served = [row for row in case.decisions if row["vectors"]]
    if not served:
        raise LeftOutError("no page was ranked by features")
    counted = 0
    columns: dict[str, Sequence[Column]] = {}
    for row in served[:: max(len(served) // _MOST_DECISIONS, 1)]:
        if row["bundle"] not in columns:
            columns[row["bundle"]] = open_bundle(case.project.registry.load(row["bundle"])).columns
        for item, vector in zip(row["items"], msgspec.json.decode(row["vectors"]), strict=True):
            for column, found in zip(columns[row["bundle"]], vector, strict=True):
                wanted = _count(case, column, row, item)
                counted += 1
                if found != wanted:
                    told = f"{column.name} of {item}: {found!r}, events say {wanted!r}"
                    return Found(f"{counted:,} values", f"recommendation {row['recommendation_id']}, {told}")
    return Found(f"{counted:,} values of {len(served):,} rows served")


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
    pages = defaultdict(list)
    for row in case.decisions:
        for position, item in enumerate(row["items"], len(row["above"] or ()) + 1):
            pages[row["at_us"], item, position].append(row)
    numbers = [number for number, column in enumerate(ranker.columns) if not column.is_text]
    chosen = range(0, len(rows), max(len(rows) // _MOST_ROWS, 1))
    for place in chosen:
        item, at_us = rows.names[rows.items[place]], int(rows.at_us[place])
        told = [float(rows.inputs[number][place]) for number in numbers]
        wanted = [
            encode_numbers(np.array([_count(case, ranker.columns[number], row, item) for number in numbers])).tolist()
            for row in pages[at_us, item, int(rows.positions[place])]
        ]
        if told not in wanted:
            return Found(f"{len(rows):,} rows", f"training row {place} on {item}: {told}, its page says {wanted}")
    return Found(f"{len(chosen):,} of {len(rows):,} rows, {len(numbers)} features each")


def _ranker(case: Case) -> Any:
    return case.project.declared.pages[0].ranker


def _in_trial(case: Case) -> Rows:
    return [row for row in case.decisions if row["trial"] == case.trial.id and row["arm"] == "treatment"]


CHECKS = (
    Check("features online are those of the events", "features", _is_online_as_counted),
    Check("features served are those known to the page", "features", _is_served_as_counted),
    Check("training rows know what their page knew", "models", _is_learned_as_counted),
    Check("every page is logged as it was answered", "endpoints", _is_logged_as_answered),
    Check("each arm is served by its own bundle", "endpoints", _is_pinned),
    Check("every decision is made again from what was logged", "endpoints", _is_made_again),
    Check("a propensity is the frequency", "endpoints", _are_chances_true, _FALSE_ALARM),
)
