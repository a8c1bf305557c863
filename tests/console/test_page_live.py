"""The parts of Live, from one sample."""

from __future__ import annotations

import pytest

from headrace.console.page_live import Sample, write_parts
from headrace.watch.alert import Alert

LEFT = Alert(
    id="a-1", at_us=0, project_us=0, kind="lag", subject="sink", state="open", text="2,000 behind", advice="look"
)


@pytest.mark.parametrize("alerts", [[], [LEFT]], ids=["none", "one that was left"])
@pytest.mark.parametrize("watches", [True, False])
def test_alerts_say_whether_anybody_watches(alerts, watches):
    running = frozenset({"watcher"} if watches else ())
    text = write_parts([Sample(0.0, {}, 0, running, alerts)])["alerts"]
    assert ("Nobody watches" in text, "2,000 behind" in text) == (not watches, bool(alerts))
