"""Judges against whole worlds: twenty healthy ones are silent, and each fault is told by its own name alone."""

import pytest
from msgspec import Raw

from headrace.lookout import Happened
from headrace.watch.alert import Now, read_alerts
from headrace.watch.drift import Stretch
from headrace.watch.share import make_shares
from headrace.watch.skew import Tally
from watch.sites import BORN_US, BROKEN_US, COLUMNS, HOUR, Site

FAULTS = {
    "duplicate": "duplicates", "late": "lateness", "bots": "bots", "drift": "drift", "srm": "srm", "skew": "skew",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("worlds", [6, pytest.param(40, marks=pytest.mark.soak)])
def test_judges_are_silent_in_healthy_worlds(tmp_path, worlds):
    found = {}
    for seed in range(1, worlds + 1):
        (tmp_path / str(seed)).mkdir()
        site = Site(seed, tmp_path / str(seed), visitors=160).run(1.6)
        assert site.skew.compared > 5_000
        found[seed] = site.alerts()
    assert found == {seed: [] for seed in range(1, worlds + 1)}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_raises_its_own_alert_and_no_other(tmp_path, fault):
    site = Site(2, tmp_path, fault=fault).run()
    (alert,) = read_alerts(site.path)
    assert alert.kind == FAULTS[fault]
    assert alert.text
    assert "headrace" in alert.advice
    (opened, *_) = site.path.read_text().splitlines()
    assert BROKEN_US <= int(opened.partition('"project_us":')[2].partition(",")[0]) <= BROKEN_US + 5 * HOUR


def test_what_is_read_late_of_another_partition_is_not_of_now():
    share = make_shares(late="1 h")["bots"]
    # A crawl that is over: after a restart its partition is read behind one that has nothing of it.
    for machine_us, bots in ((1_000_000_000, 0), (100_000_000, 100)):
        for number in range(300):
            share.add(number < bots, 1, machine_us=machine_us, project_us=machine_us)
    assert list(share.judge(Now(1_001_000_000, 1_001_000_000, 0))) == []


def test_what_came_before_a_long_silence_is_no_reference():
    for hours, is_known in ((10, True), (13, False)):
        stretch = Stretch()
        for number in range(800):
            stretch.add("drama" if number < 500 else "crime", BORN_US + number + (hours * HOUR if number >= 500 else 0))
        assert (stretch.compare() is not None) == is_known


def test_a_tally_forgets_what_no_window_reaches_rather_than_whom_it_follows(monkeypatch):
    monkeypatch.setattr("headrace.watch.skew.MOST_COUNTED", 1_000)
    (column,), tally = [one for one in COLUMNS if one.by == ("item",)], Tally(COLUMNS)
    for n in range(5_000):
        properties = Raw(b'{"product_id": "item-%d"}' % (n % 5))
        row = Happened("track", "Product Clicked", BORN_US + n * HOUR, "ann", n, n, properties=properties)
        tally.add(row, 0)
    at_us = BORN_US + 5_000 * HOUR
    found = [tally.value(column, {"item": f"item-{n}"}, at_us, (5_000,)) for n in range(5)]
    assert found == [4.0, 5.0, 5.0, 5.0, 5.0]
