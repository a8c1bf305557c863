"""headrace explain: from the door to the row in its file."""

from __future__ import annotations

import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

from endpoints.door import make_popular
from headrace.project import open_project
from running import call, clicked, lines
from streamline import BEGAN_US, append, decided, make_project, write
from streamline import clicked as settled_click

pytestmark = pytest.mark.slow


def story(shop, wanted):
    code, out, error = shop.call("explain", wanted, "--json")
    assert (code, error) == (0, "")
    (found,) = lines(out)
    return found


def row_in_file(found):
    """Returns the row that a story ends at, read from the file itself."""
    return pq.ParquetFile(found["table"]["file"]).read().slice(found["table"]["row"], 1).to_pylist()[0]


def test_an_event_is_followed_to_its_row(shop):
    shop.click(clicked("m0"))
    shop.run()
    shop.click(clicked("m1"), clicked("m2"), user_agent="curl/8", address="127.0.0.1")
    shop.run()
    found = story(shop, "m2")
    assert (found["message_id"], found["event"], found["state"]) == ("m2", "Product Clicked", "settled")
    assert (found["door"]["source"], found["door"]["user_agent"], found["door"]["write_key"]) == (
        "http/track", "curl/8", "dev",
    )  # fmt: skip
    partition = found["clicks"]["partition"]
    assert found["clicks"]["offset"] == 2
    assert (found["clicks"]["key"], found["clicks"]["kept"], found["clicks"]["repeats"]) == ("ann", True, 0)
    assert (found["settled"]["partition"], found["settled"]["offset"], found["settled"]["seq"]) == (partition, 2, 2)
    assert (found["table"]["table"], found["table"]["version"], found["table"]["producer"]) == ("events", 2, "test")
    assert (row_in_file(found)["message_id"], row_in_file(found)["log_offset"]) == ("m2", 2)
    assert (found["session"]["events"], found["session"]["visitor"]) == (3, "ann")
    code, out, _ = shop.call("explain", "m2")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()[2:]] == [
        "door",
        "clicks",
        "events",
        "table",
        "file",
        "session",
    ]


def test_an_event_is_found_after_compaction(shop):
    for n in range(4):
        shop.click(clicked(f"m{n}"))
        shop.run()
    before = story(shop, "m2")
    assert shop.call("table", "maintain", "events")[0] == 0
    after = story(shop, "m2")
    assert after["table"]["version"] == before["table"]["version"] == 3
    assert after["table"]["file"] != before["table"]["file"]
    assert row_in_file(after)["message_id"] == "m2"


def test_repeats_are_counted_of_each_source(shop):
    shop.click(clicked("m1"), clicked("m10"), clicked("m1"), clicked("m1"))
    shop.click(clicked("m1"), write_key="shop-2")
    shop.run()
    code, out, _ = shop.call("explain", "m1", "--json")
    assert code == 0
    told = {one["source"]: (one["clicks"]["repeats"], row_in_file(one)["source"]) for one in lines(out)}
    assert told == {"dev": (2, "dev"), "shop-2": (0, "shop-2")}
    out = shop.call("explain", "m1")[1]
    assert "2 more with this id, folded away" in out
    assert out.count(" file ") == 2


def test_what_is_not_in_its_table_yet_is_found_where_it_waits(shop, monkeypatch):
    shop.click(clicked("m1"))
    found = story(shop, "m1")
    assert (found["state"], found["event"], found["clicks"]["offset"]) == (
        "waits in clicks to be settled", "Product Clicked", 0,
    )  # fmt: skip
    assert "not yet: it waits in its topic for the settler" in shop.call("explain", "m1")[1]
    # It settles between two looks.
    monkeypatch.setattr("headrace.console.explain.find_waiting", lambda *_: shop.settle() or ())
    found = story(shop, "m1")
    assert (found["state"], found["table"], found["settled"]["seq"]) == ("settled, not in its table yet", None, 0)
    assert "not yet: it waits in its topic for the sink" in shop.call("explain", "m1")[1]
    shop.sink()
    assert story(shop, "m1")["state"] == "settled"


def test_what_somebody_else_wrote_is_passed_over(shop):
    shop.click(clicked("m1"))
    shop.settle()
    shop.write_foreign_records(naming="m1")
    assert story(shop, "m1")["state"] == "settled, not in its table yet"
    shop.sink()
    shop.write_foreign_records(naming="m1")
    assert story(shop, "m1")["state"] == "settled"


def test_a_failed_event_tells_why_and_its_second_chance(shop):
    shop.click(clicked("m1", price="cheap"))
    shop.run()
    found = story(shop, "m1")
    assert (found["state"], found["settled"], found["table"]["table"]) == ("failed", None, "failed")
    assert found["failures"][0]["reason"] == "properties"
    assert row_in_file(found)["message_id"] == "m1"
    (shop.folder / "project.py").write_text("from headrace import Project\nproject = Project('shop')\n")
    assert shop.call("table", "failed", "--replay")[0] == 0
    shop.run()
    found = story(shop, "m1")
    assert (found["state"], len(found["failures"]), found["clicks"]["offset"]) == ("settled", 1, 1)
    stations = [line.split()[1] for line in shop.call("explain", "m1")[1].splitlines()[2:]]
    assert stations == ["door", "clicks", "failed", "events", "table", "file", "session"]
    (place,) = shop.click({**clicked("m2"), "messageId": "0/99"})
    shop.run()
    # What it called itself is refused, so it is called by its place.
    found = story(shop, f"{place.partition}/{place.offset}")
    assert (found["failures"][0]["reason"], found["clicks"]["kept"]) == ("identity", True)


def test_a_recommendation_lists_its_events(shop):
    shop.click(*[clicked(f"m{n}", recommendation_id="rec-1") for n in range(3)], clicked("m9"))
    shop.run()
    code, out, _ = shop.call("explain", "rec-1", "--json")
    assert (code, [one["message_id"] for one in lines(out)]) == (0, ["m0", "m1", "m2"])
    told = str([one["facts"] for one in lines(out)])
    assert not re.search("no longer kept|not yet", told), "nobody has looked"
    out = shop.call("explain", "rec-1")[1]
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["m0", "m1", "m2"]
    shop.click(clicked("m7", recommendation_id="rec-2"))
    shop.run()
    assert story(shop, "rec-2")["message_id"] == "m7"


def test_an_event_whose_click_is_gone_is_still_explained(shop):
    shop.click(clicked("m1"), user_agent="curl/8")
    shop.run()
    with open_project(shop.folder) as project:
        project.topics.drop("clicks")
    found = story(shop, "m1")
    assert (found["clicks"]["kept"], found["door"]["source"], found["table"]["version"]) == (False, "http/track", 1)
    shop.click(clicked("m2"))
    assert story(shop, "m1")["clicks"]["kept"] is False, "another click stands at that offset now"


def test_an_event_whose_commit_left_the_log_is_still_explained(shop):
    shop.click(clicked("m1"))
    shop.run()
    with open_project(shop.folder) as project:
        table = project.tables.open("events")
        table.checkpoint()
    for path in shop.folder.rglob("lake/events/_delta_log/*0[01].json"):
        path.unlink()
    found = story(shop, "m1")
    assert (found["table"]["version"], row_in_file(found)["message_id"]) == (None, "m1")
    assert "a commit that is no longer in the log" in shop.call("explain", "m1")[1]


def test_what_nobody_knows_is_exit_code_1(shop):
    shop.click(clicked("m1"))
    shop.run()
    for wanted in ("m", "m11", "", "%", "'; --", "ann", "x" * 5000, "\x00", "\udcff", "/".join("abcdefgh")):
        code, out, error = shop.call("explain", wanted)
        assert (code, out) == (1, "")
        assert error.startswith(f"nothing is known of {wanted!r}: ")
    code, out, error = shop.call("explain", "m", "--json")
    assert (code, out, json.loads(error)["error"]) == (1, "", "UnknownNameError")


def test_an_id_with_odd_characters_cannot_steer_the_terminal(shop):
    odd = 'a"b\x1b[2Jü\\'
    shop.click(clicked(odd))
    assert story(shop, odd)["message_id"] == odd
    shop.run()
    assert story(shop, odd)["clicks"]["repeats"] == 0
    code, out, _ = shop.call("explain", odd)
    assert (code, "\x1b" in out) == (0, False)


def test_explain_needs_no_project_file(shop):
    shop.click(clicked("m1"))
    shop.run()
    (shop.folder / "project.py").unlink()
    assert story(shop, "m1")["state"] == "settled"
    assert shop.call("explain", "ann/p1")[0] == 1


def test_explain_works_without_topics(shop):
    shop.click(clicked("m1"))
    shop.run()
    shutil.rmtree(shop.folder / ".headrace" / "topics")
    found = story(shop, "m1")
    assert (found["state"], found["clicks"]["kept"]) == ("settled", False)
    assert re.search("no longer kept", shop.call("explain", "m1")[1])


def test_a_decision_whose_events_were_made_anew_is_still_explained(tmp_path):
    with open_project(make_project(tmp_path)) as project:
        bundle = project.registry.add(make_popular())
        project.make_topics()
        append(project, events=[settled_click("ann", "item-0", at_us=BEGAN_US)])
        known = {"recommendation_id": "rec-1", "bundle": bundle, "at_us": BEGAN_US, "events": "before"}
        write(project, decisions=[decided("ann", ["item-0"], **known)])
    code, out, error = call("explain", "rec-1", "--project", tmp_path)
    assert (code, error) == (0, "")
    assert "cannot be told now" in out
    (tmp_path / "project.py").unlink()
    for wanted in ("rec-1", bundle, "popular"):
        assert call("explain", wanted, "--project", tmp_path)[0] == 0
