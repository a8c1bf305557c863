"""Checks of the way from the door to the lake: nothing lost, nothing twice."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from headrace.verify.audience import FAULTY
from headrace.verify.case import Case, Check, Found
from headrace.verify.count import read_id
from headrace.verify.said import read_row


def _is_kept(case: Case) -> Found:
    lost = (one for one in sorted(case.record.acknowledged) if one not in case.clicks)
    arrived = ((read_id(one), zlib.crc32(one.value or b"")) for one in case.ours())
    changed = (one for one, checksum in arrived if checksum != case.record.acknowledged[one])
    text = f"{len(case.record.acknowledged):,} acknowledged; {case.clicks.total():,} clicks"
    return Found(text, _first("event", lost) or _first("event, changed on its way,", changed))


def _is_settled_once(case: Case) -> Found:
    settled, failed = [name for name, _ in case.settled], case.failed
    happened = Counter(settled) + Counter(failed)
    wrong = (one for one in case.clicks if happened[one] != 1)
    strange = (one for one in happened if one not in case.clicks)
    repeats = case.clicks.total() - len(case.clicks)
    text = f"{case.clicks.total():,} clicks = {len(settled):,} settled + {len(failed):,} failed + {repeats:,} repeats"
    # Whoever fails good events, or settles faulty ones, loses none.
    refused = set(failed)
    swapped = (one for one in sorted(case.record.acknowledged) if (one in refused) != one.endswith(FAULTY))
    return Found(text, _first("event", wrong) or _first("event", strange) or _first("event", swapped))


def _says_what_was_sent(case: Case) -> Found:
    # Their hashes, since all that was said is most of a demo's memory.
    said = {one.place: hash(one.said) for one in case.sent()}
    ours = (row for row in case.events if row["message_id"] in case.record.acknowledged)
    judged = 0
    for judged, row in enumerate(ours, 1):
        place = (row["log_partition"], row["src_offset"])
        told = read_row(row)
        if hash(told) != said.get(place):
            meant = next((one.said for one in case.sent() if one.place == place), None)
            why = told.differs_from(meant) if meant else "it stands for another click"
            return Found(f"{judged:,} events", f"event {told.message_id}, {why}")
    return Found(f"{judged:,} events: who, what, when, and of which titles")


def _is_row_once(case: Case) -> Found:
    rows = Counter((row["log_partition"], row["seq"]) for row in case.events)
    names = dict(zip((place for _, place in case.settled), (name for name, _ in case.settled), strict=True))
    wrong = [place for place in names if rows[place] != 1] + [place for place in rows if place not in names]
    text = f"{len(case.settled):,} settled, {rows.total():,} rows"
    return Found(
        text, _first("event", (names.get(place, f"partition {place[0]}, number {place[1]}") for place in wrong))
    )


def _is_decision_once(case: Case) -> Found:
    rows = Counter((row["log_partition"], row["log_offset"]) for row in case.decided)
    logged = set(case.logged)
    wrong = [one for one in case.logged if rows[one] != 1] + [one for one in rows if one not in logged]
    places = (f"partition {partition}, offset {offset}" for partition, offset in wrong)
    return Found(f"{len(case.logged):,} decided, {rows.total():,} rows", _first("decision at", places))


def _are_bots_flagged(case: Case) -> Found:
    events, bots, wrong = 0, 0, []
    for row in case.events:
        if row["visitor"] in case.visitors:
            events, bots = events + 1, bots + row["bot"]
            if row["bot"] != case.is_bot(row["visitor"]):
                wrong.append(row["message_id"])
    return Found(f"{events:,} events, {bots:,} of robots", _first("event", wrong))


def _first(noun: str, found: Iterable[Any]) -> str | None:
    return next((f"{noun} {one}" for one in found), None)


CHECKS = (
    Check("every acknowledged event stands in clicks", "collect", _is_kept),
    Check("every click is settled, failed or a repeat, once", "events", _is_settled_once),
    Check("every event says what its client sent", "events", _says_what_was_sent),
    Check("robots are told from people", "events", _are_bots_flagged),
    Check("every settled event is one row of the lake", "tables", _is_row_once),
    Check("every decision is one row of the lake", "tables", _is_decision_once),
)
