"""The account finds what it is there to find: each guard, taken away, makes it fail."""

from __future__ import annotations

from contextlib import closing, suppress

import pytest
from deltalake import DeltaTable

from headrace.base.errors import FencedError
from headrace.collect import settler
from headrace.collect.app import CLICKS
from headrace.events import settle
from headrace.tables import sink
from headrace.tables.delta import Delta
from headrace.tables.sink import Sink
from headrace.topics import sqlite_shares, sqlite_store
from survive.account import table_root

pytestmark = pytest.mark.slow


def run_everything(yard, monkeypatch, *, thief_portion):
    """Clicks come twice, and a settler and a sink each wake up too late: others have gone on meanwhile."""
    yard.click(0, 40)
    yard.settle("a")
    yard.fill("a")
    yard.click(20, 60)
    _wake_settler_too_late(yard, monkeypatch)
    _wake_sink_too_late(yard, monkeypatch, thief_portion)
    yard.settle("c")
    yard.fill("c")


def _wake_settler_too_late(yard, monkeypatch):
    """Lets a settler fold all there is; another one does the same before the first commits."""

    def sleep(point):
        if point == "settle.folded":
            monkeypatch.setattr(settler.fault, "point", honest)
            yard.end_lease(CLICKS, "settler", "frozen")
            yard.settle("thief")

    honest = settler.fault.point
    with closing(yard.settler("frozen")) as frozen:
        monkeypatch.setattr(settler.fault, "point", sleep)
        with suppress(FencedError):
            frozen.turn()
    assert settler.fault.point is honest, "the settler never came to its commit"


def _wake_sink_too_late(yard, monkeypatch, thief_portion):
    """Lets a sink read all there is; another one commits a part of it before the first does."""
    frozen = yard.sink("events", "frozen", reload_commits=0)
    while frozen.turn():
        pass
    yard.end_lease("events", "sink", "frozen")
    with monkeypatch.context() as patch:
        patch.setattr(sink, "_PORTION", thief_portion)
        thief = yard.sink("events", "thief")
        assert thief.turn() > 0
        thief.flush()
        thief._share.close()
    frozen.flush()
    frozen._share.close()


def without_nothing(monkeypatch):
    pass


def without_dedup(monkeypatch):
    monkeypatch.setattr(settle._Fold, "_is_repeat", lambda *_: False)


def without_the_settlers_generation(monkeypatch):
    monkeypatch.setattr(sqlite_shares, "check_holder", lambda *_: None)


def without_the_settlers_expected_position(monkeypatch):
    monkeypatch.setattr(sqlite_store._Turn, "_check_expected", lambda *_: None)


def without_the_settlers_fence(monkeypatch):
    without_the_settlers_generation(monkeypatch)
    without_the_settlers_expected_position(monkeypatch)


def without_the_backwards_check(monkeypatch):
    monkeypatch.setattr(Delta, "_check_writable", lambda *_: None)


def without_the_sinks_look_after_a_reload(monkeypatch):
    monkeypatch.setattr(Sink, "_check_unmoved", lambda *_: None)


def without_the_sinks_fence(monkeypatch):
    without_the_backwards_check(monkeypatch)
    without_the_sinks_look_after_a_reload(monkeypatch)


@pytest.mark.parametrize(
    ("plant", "thief_portion"),
    [
        (without_nothing, 7),
        (without_nothing, 8192),
        # Of these pairs one is enough to keep a zombie out.
        *(
            pytest.param(plant, portion, marks=pytest.mark.soak)
            for plant, portion in (
                (without_the_settlers_generation, 8192),
                (without_the_settlers_expected_position, 8192),
                (without_the_backwards_check, 7),
            )
        ),
    ],
)
def test_zombies_and_repeats_leave_each_event_once(yard, monkeypatch, plant, thief_portion):
    plant(monkeypatch)
    run_everything(yard, monkeypatch, thief_portion=thief_portion)
    account = yard.check()
    assert (account.settled, account.repeats) == (80, 20)


@pytest.mark.parametrize(
    ("plant", "thief_portion", "found"),
    [
        (without_dedup, 8192, "repeats came out"),
        (without_the_settlers_fence, 8192, "seq"),
        (without_the_sinks_look_after_a_reload, 7, "stand twice in table"),
        (without_the_sinks_fence, 8192, "stand twice in table"),
    ],
)
def test_what_a_missing_guard_does_is_found(yard, monkeypatch, plant, thief_portion, found):
    plant(monkeypatch)
    run_everything(yard, monkeypatch, thief_portion=thief_portion)
    with pytest.raises(AssertionError, match=found):
        yard.check()


def test_a_lost_record_is_found(yard):
    yard.click(0, 40)
    yard.settle("a")
    yard.fill("a")
    yard.sent.add("m99")
    with pytest.raises(AssertionError, match="1 of 41 acknowledged events are lost"):
        yard.check()
    yard.sent.remove("m99")
    root = f"{table_root(yard.project)}/events"
    DeltaTable(root).delete("seq = 3")
    with pytest.raises(AssertionError, match="records of 'events' are not in the table"):
        yard.check()
