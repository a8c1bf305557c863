"""The count from outside: that what was acknowledged happened once and stands in the lake once, and each page too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from headrace.base.errors import UnavailableError
from headrace.collect.app import CLICKS
from headrace.events.decision import DECISIONS, is_decision
from headrace.events.dimension import MARKER
from headrace.events.settled import EVENTS, FAILED, is_row
from headrace.learn import wait_for_lake
from headrace.project import OpenProject
from headrace.topics import Message


class _Click(msgspec.Struct):
    message_id: str | int = msgspec.field(name="messageId", default="")


class Settled(msgspec.Struct):
    """What of a settled or failed event is counted."""

    message_id: str
    src_offset: int
    seq: int = -1
    """Its number in its partition; a failed event has none."""


_clicks = msgspec.json.Decoder(_Click)
_rows = msgspec.json.Decoder(Settled)


@dataclass(frozen=True)
class Proof:
    """What was counted, each number on its own way."""

    acknowledged: int
    """Distinct events that clients were told are durable."""
    clicks: int
    """Records of `clicks`."""
    settled: int
    """Events of `events`."""
    failed: int
    """Events of `failed`."""
    repeats: int
    """Clicks whose id had come before, counted in `clicks` itself."""
    rows: int
    """Rows of the table `events`."""
    lost: int
    """Acknowledged events that neither happened nor failed."""
    doubled: int
    """Ids that stand more than once in the table."""

    @property
    def holds(self) -> bool:
        """Whether every event is there once and everything adds up."""
        return (
            self.acknowledged > 0
            and not self.lost
            and not self.doubled
            and self.rows == self.settled
            and self.clicks == self.settled + self.failed + self.repeats
        )


def prove(project: OpenProject, acknowledged: Collection[str]) -> Proof:
    """Returns the count of a project at rest, for clients that saw these ids acknowledged."""
    clicks = count_clicks(project)
    settled, failed = ([row.message_id for _, row in read_settled(project, name)] for name in (EVENTS, FAILED))
    rows = [row["message_id"] for row in project.query("select message_id from events").table().to_pylist()]
    happened = {*settled, *failed}
    return Proof(
        acknowledged=len(acknowledged),
        clicks=clicks.total(),
        settled=len(settled),
        failed=len(failed),
        repeats=clicks.total() - len(clicks),
        rows=len(rows),
        lost=sum(message_id not in happened for message_id in acknowledged),
        doubled=len(rows) - len(set(rows)),
    )


class _Decision(msgspec.Struct):
    recommendation_id: str
    degraded: tuple[str, ...] = ()


_decisions = msgspec.json.Decoder(_Decision)

_LOGGED = f"SELECT recommendation_id, list_id FROM {DECISIONS} WHERE NOT list_contains(degraded, 'unlogged')"  # noqa: S608 - ours


@dataclass(frozen=True)
class PageProof:
    """What was counted of the pages that were answered, each number on its own way."""

    recommended: int
    """Pages that clients got with a recommendation_id."""
    decided: int
    """Decisions of `decisions`, one for each row of a page, but for withdrawals: a lost answer has its own too."""
    rows: int
    """Rows of the table `decisions` but for withdrawals."""
    lost: int
    """Pages whose recommendation_id no row has."""
    doubled: int
    """Pages that share their recommendation_id with another one, and rows that share their carousel too."""

    @property
    def holds(self) -> bool:
        """Whether every page is there once and everything adds up."""
        return self.recommended > 0 and not self.lost and not self.doubled and self.rows == self.decided


def prove_pages(project: OpenProject, recommended: Sequence[str]) -> PageProof:
    """Returns the count of a lake that holds all decisions, for clients that got pages with these ids."""
    values = (message.value or b"" for message in project.topic(DECISIONS).read_to_ends())
    decided = [one for one in map(_decisions.decode, filter(is_decision, values)) if "unlogged" not in one.degraded]
    found = project.query(_LOGGED).table().to_pylist()
    rows = {(row["recommendation_id"], row["list_id"]) for row in found}
    known = {recommendation_id for recommendation_id, _ in rows}
    return PageProof(
        recommended=len(recommended),
        decided=len(decided),
        rows=len(found),
        lost=sum(one not in known for one in recommended),
        doubled=len(found) - len(rows) + len(recommended) - len(set(recommended)),
    )


def wait_at_rest(project: OpenProject, seconds: float) -> bool:
    """Returns whether all clicks were settled, and all that was settled came into its table, in time."""
    try:
        wait_for_lake(project, seconds=seconds, topics=(EVENTS, FAILED))
    except UnavailableError:
        return False
    return True


def count_clicks(project: OpenProject) -> Counter[str]:
    """Returns how often each id stands in `clicks`."""
    return Counter(map(read_id, filter(is_click, project.topic(CLICKS).read_to_ends())))


def read_id(message: Message) -> str:
    """Returns the id of a click; where its client gave it none, the place where it stands."""
    try:
        found = _clicks.decode(message.value or b"").message_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Anybody may send to a door.
        found = ""
    return str(found) or f"{message.partition}/{message.offset}"


def read_settled(project: OpenProject, name: str) -> Iterator[tuple[int, Settled]]:
    """Yields the events of `events` or `failed` from the topic, each with its partition."""
    for message in project.topic(name).read_to_ends():
        if is_row(message.value or b"", message.headers):
            yield message.partition, _rows.decode(message.value or b"")


def is_click(message: Message) -> bool:
    """Returns whether a record of `clicks` came from a client: the others say up to where a dimension counts."""
    return all(header != MARKER for header, _ in message.headers)
