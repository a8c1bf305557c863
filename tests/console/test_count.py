"""The count from outside, and when it may be taken."""

from __future__ import annotations

import pytest

from headrace.project import open_project
from headrace.verify.count import prove, wait_at_rest
from running import clicked

pytestmark = pytest.mark.slow


def test_a_project_is_at_rest_once_all_stands_in_its_tables(shop):
    shop.click(clicked("m1"), clicked("m2"), clicked("m1"), clicked("m3", price="cheap"))
    with open_project(shop.folder) as project:
        assert not wait_at_rest(project, 0)
        shop.settle()
        assert not wait_at_rest(project, 0)
        shop.sink("events")
        assert not wait_at_rest(project, 0), "what failed is in no table yet"
        shop.sink("failed")
        assert wait_at_rest(project, 0)
        shop.write_foreign_records()
        assert wait_at_rest(project, 0), "nobody waits for what is no event"


def test_the_proof_counts_each_event_once_and_nothing_that_is_none(shop):
    shop.click(clicked("m1"), clicked("m2"), clicked("m1"), clicked("m3", price="cheap"))
    shop.run()
    shop.write_foreign_records(naming="m1")
    with open_project(shop.folder) as project:
        proof = prove(project, {"m1", "m2", "m3"})
        assert (proof.clicks, proof.settled, proof.failed, proof.repeats, proof.rows) == (4, 2, 1, 1, 2)
        assert proof.holds
        assert prove(project, {"m1", "m9"}).lost == 1


def test_the_proof_knows_events_that_nobody_named(shop):
    nameless = clicked("m1") | {"messageId": None}
    shop.click(nameless, nameless, clicked("m1") | {"messageId": 7}, clicked("m2"), 5, [], "Product Clicked")
    shop.run()
    with open_project(shop.folder) as project:
        proof = prove(project, {"m2"})
        assert (proof.clicks, proof.settled, proof.failed, proof.repeats, proof.rows) == (7, 4, 3, 0, 4)
        assert proof.holds
