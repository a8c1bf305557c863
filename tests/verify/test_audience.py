"""The audience's own record of what doors answered."""

from __future__ import annotations

import msgspec

from headrace.endpoints.endpoint import Shown
from headrace.events.world import DAY, World
from headrace.verify.audience import Record


def test_a_record_that_is_closed_grows_no_more():
    world = World(7)
    delivery = next(world.deliver(world.traffic(world.born_us, world.born_us + DAY)))
    page = msgspec.json.encode(Shown(None, "home", "ann", 1, "", None, None, ("unlogged",), []))
    record = Record()
    record.note_acknowledged(delivery.events)
    record.note_page(page)
    assert (len(record.acknowledged), record.answered, record.unlogged) == (len(delivery.events), 1, 1)
    record.close()
    record.note_acknowledged(delivery.events)
    assert record.note_page(page).page == "home"
    assert (len(record.acknowledged), record.answered, list(record.pages)) == (0, 0, [])
