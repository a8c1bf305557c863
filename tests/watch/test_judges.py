"""Judges against whole worlds: twenty healthy ones are silent, and each fault is told by its own name alone."""

import pytest

from headrace.watch.alert import read_alerts
from headrace.watch.drift import Stretch
from watch.sites import BORN_US, BROKEN_US, HOUR, Site

FAULTS = {
    "duplicate": "duplicates", "late": "lateness", "bots": "bots", "drift": "drift", "srm": "srm", "skew": "skew",
}  # fmt: skip


@pytest.mark.slow
def test_judges_are_silent_in_twenty_healthy_worlds(tmp_path):
    found = {}
    for seed in range(1, 21):
        (tmp_path / str(seed)).mkdir()
        site = Site(seed, tmp_path / str(seed), visitors=160).run(1.6)
        assert site.skew.compared > 5_000
        found[seed] = site.alerts()
    assert found == {seed: [] for seed in range(1, 21)}


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


def test_what_came_before_a_long_silence_is_no_reference():
    for hours, is_known in ((10, True), (13, False)):
        stretch = Stretch()
        for number in range(800):
            stretch.add("drama" if number < 500 else "crime", BORN_US + number + (hours * HOUR if number >= 500 else 0))
        assert (stretch.compare() is not None) == is_known
