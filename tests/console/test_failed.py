"""headrace table failed: what stands as failed, and its second chance."""

from __future__ import annotations

import pytest

from headrace.console.failed import second_chance
from headrace.project import open_project
from headrace.topics import Record, partition_for
from running import call, clicked, lines, project_toml, running, wait_until

pytestmark = pytest.mark.slow

STRICT = """from headrace import Event, Project
seat = Event("Seat Chosen", fields={"row": int})
project = Project("shop", events=(seat,))
"""
LENIENT = STRICT.replace("int", "str")


def seat(message_id, row, visitor="ann"):
    return {
        "type": "track", "event": "Seat Chosen", "messageId": message_id, "anonymousId": visitor,
        "properties": {"row": row},
    }  # fmt: skip


@pytest.fixture
def strict(shop):
    """A shop in which three seats failed for their row, and one event for having nobody."""
    (shop.folder / "project.py").write_text(STRICT)
    shop.click(seat("s1", 1), seat("s2", "b"), seat("s3", "c"), {"type": "track", "event": "Seat Chosen"})
    shop.click(seat("s4", "d", "bob"), key=b"bob")
    return shop


def standing(shop, *options):
    code, out, error = shop.call("table", "failed", "--json", *options)
    assert (code, error) == (0, "")
    return lines(out)


def ids(shop, *options):
    return sorted(row["message_id"] for row in standing(shop, *options))


def replay(shop, *options):
    code, out, error = shop.call("table", "failed", "--replay", "--json", *options)
    assert error == ""
    return code, lines(out)[0]


SINKS = {
    "nothing is in the tables": (),
    "events lag": (("failed",),),
    "failed lags": (("events",),),
    "all is in the tables": (("failed", "events"),),
}


@pytest.mark.parametrize("sinks", SINKS.values(), ids=SINKS)
def test_what_stands_is_the_same_however_far_the_tables_are(strict, sinks):
    strict.settle()
    for names in sinks:
        strict.sink(*names)
    assert ids(strict, "--reason", "properties") == ["s2", "s3", "s4"]
    (strict.folder / "project.py").write_text(LENIENT)
    assert replay(strict, "--reason", "properties", "--max", "1") == (0, {"replayed": 1, "too_old": 0, "too_long": 0})
    assert ids(strict, "--reason", "properties") == ["s2", "s3", "s4"], "nobody has settled it yet"
    strict.settle()
    assert ids(strict, "--reason", "properties") == ["s3", "s4"]
    for names in sinks:
        strict.sink(*names)
    assert ids(strict, "--reason", "properties") == ["s3", "s4"]
    groups = standing(strict, "--group")
    assert [(group["reason"], group["failed"]) for group in groups] == [("properties", 2), ("identity", 1)]
    assert groups[0]["message_id"] in ("s3", "s4")
    assert groups[0]["first_us"] <= groups[0]["last_us"]


def test_what_somebody_else_wrote_is_passed_over(strict):
    strict.settle()
    strict.write_foreign_records()
    assert ids(strict, "--reason", "properties") == ["s2", "s3", "s4"]
    strict.sink()
    strict.write_foreign_records()
    assert ids(strict, "--reason", "properties") == ["s2", "s3", "s4"]
    assert replay(strict, "--reason", "properties")[1]["replayed"] == 3


def test_the_newest_failure_of_an_id_stands(strict):
    strict.run()
    before = {row["message_id"]: row for row in standing(strict)}
    assert replay(strict)[1]["replayed"] == 4
    strict.settle()
    after = {row["message_id"]: row for row in standing(strict)}
    assert after.keys() == before.keys()
    assert [after[one]["replay_of"] for one in ("s2", "s3")] == ["0/1", "0/2"] or after["s2"]["replay_of"].endswith(
        "/1"
    )
    strict.sink()
    assert {row["message_id"]: row for row in standing(strict)}.keys() == before.keys()
    assert all(row["src_offset"] > before[one]["src_offset"] for one, row in after.items())


def test_a_second_chance_comes_in_once_however_often_it_is_given(strict):
    strict.run()
    (strict.folder / "project.py").write_text(LENIENT)
    for _ in range(2):
        assert replay(strict, "--event", "Seat Chosen", "--reason", "properties")[1]["replayed"] == 3
    strict.run()
    assert replay(strict, "--reason", "properties") == (0, {"replayed": 0, "too_old": 0, "too_long": 0})
    strict.run()
    rows = lines(strict.call("table", "sql", "SELECT message_id, row FROM seat_chosen ORDER BY ALL", "--json")[1])
    assert [tuple(row.values()) for row in rows] == [("s1", "1"), ("s2", "b"), ("s3", "c"), ("s4", "d")]
    assert ids(strict) == ids(strict, "--reason", "identity")
    assert (
        strict.call("table", "failed", "--reason", "properties")[1]
        == "nothing with reason 'properties' stands as failed\n"
    )


def test_a_second_chance_keeps_value_door_key_and_partition(strict):
    strict.settle()
    with open_project(strict.folder) as project:
        clicks = project.topic("clicks")
        first = {(one.partition, one.offset): one for one in clicks.read()}
        replay(strict)
        again = [one for one in clicks.read() if (one.partition, one.offset) not in first]
    assert len(again) == 4
    for one in again:
        headers = dict(one.headers)
        partition, offset = map(int, headers["replay_of"].split(b"/"))
        source = first[partition, offset]
        assert (one.partition, one.key, one.value) == (partition, source.key, source.value)
        assert headers["door"] == dict(source.headers)["door"]


def test_an_event_without_an_id_is_known_by_where_it_stood_first(strict):
    (strict.folder / "project.py").write_text(STRICT)
    nameless = seat("", "z")
    del nameless["messageId"]
    (place,) = strict.click(nameless)
    strict.run()
    origin = f"{place.partition}/{place.offset}"
    assert origin in ids(strict)
    replay(strict)
    strict.run()
    assert {row["replay_of"] for row in standing(strict) if row["message_id"] == origin} == {origin}
    (strict.folder / "project.py").write_text(LENIENT)
    replay(strict, "--reason", "properties")
    strict.run()
    assert origin not in ids(strict)


@pytest.mark.parametrize("key", [None, "elsewhere", "ann"])
@pytest.mark.parametrize("partition", range(4))
def test_a_second_chance_goes_into_its_own_partition(key, partition):
    row = {
        "message_id": "m", "source": "dev", "reason": "json", "message": "", "received_us": 1, "log_us": 1,
        "src_offset": 7, "seq": 0, "definitions": "", "event": None, "visitor": None, "user_id": None,
        "session_id": None, "replay_of": None, "key": key, "door": None, "raw": None, "raw_base64": "/w==",
        "log_partition": partition,
    }  # fmt: skip
    record = second_chance(row, 4)
    assert partition_for(record.key, 4) == partition
    assert record.key == key.encode() if key and partition_for(key.encode(), 4) == partition else record.key
    assert (record.value, record.headers) == (b"\xff", (("replay_of", f"{partition}/7".encode()),))


def test_what_the_settler_has_forgotten_is_refused(strict):
    strict.settle()
    week_us = 7 * 86_400_000_000
    with open_project(strict.folder) as project:
        # The failed event as it would stand there after a week.
        (message,) = [one for one in project.topic("failed").read() if b'"s2"' in one.value]
        old = message.value.replace(b'"s2"', b'"old"')
        log_us = int(old.split(b'"log_us":')[1].split(b",")[0])
        old = old.replace(b'"log_us":%d' % log_us, b'"log_us":%d' % (log_us - week_us))
        project.topic("failed").append([Record(message.key, old)])
    code, told = replay(strict, "--reason", "properties")
    assert (code, told) == (1, {"replayed": 3, "too_old": 1, "too_long": 0})
    code, out, _ = strict.call("table", "failed", "--replay", "--reason", "properties")
    assert code == 1
    assert "1 did not: after 7 days an id is forgotten, and could come in twice" in out


def test_failed_shows_people_the_newest_and_groups_with_an_example(strict):
    strict.run()
    code, out, _ = strict.call("table", "failed", "--max", "2")
    assert code == 0
    head, *rows, last = out.splitlines()
    assert head.split() == ["received", "reason", "event", "message_id", "clicks", "message"]
    assert len(rows) == 2
    assert last == "the newest 2; --max N shows more, --group counts them all"
    out = strict.call("table", "failed", "--group")[1]
    assert "properties" in out
    assert "identity" in out
    code, _, error = strict.call("table", "failed", "--reason", "propertys")
    assert (code, error.startswith("UnknownNameError: no reason 'propertys'. Did you mean properties?")) == (2, True)
    assert strict.call("table", "failed", "--max", "0")[0] == 2
    assert strict.call("table", "failed", "--group", "--replay")[0] == 2


@pytest.mark.slow
@pytest.mark.soak
def test_after_a_fix_of_the_project_the_good_ones_come_in_once(tmp_path):
    toml = project_toml(extra="[sink]\nflush_seconds = 0.2\n")
    (tmp_path / "project.py").write_text(STRICT)
    (tmp_path / "headrace.toml").write_text(toml)
    batch = {"batch": [seat(f"s{n}", n if n % 2 else f"row {n}", f"v{n}") for n in range(20)]}
    count = "SELECT count(*) AS n, count(DISTINCT message_id) AS ids FROM seat_chosen"
    with running(tmp_path) as up:
        assert up.post("/v1/batch", batch).status == 200
        wait_until(lambda: up.sql("SELECT count(*) AS n FROM failed")[0]["n"] == 10)
        wait_until(lambda: up.sql(count) == [{"n": 10, "ids": 10}])
    (tmp_path / "project.py").write_text(LENIENT)
    with running(tmp_path) as up:
        for _ in range(2):
            code, out, error = call("table", "failed", "--replay", cwd=tmp_path)
            assert (code, error) == (0, "")
        assert out == "10 of what failed went into clicks again; the settler takes each once\n" or "nothing" in out
        assert up.post("/v1/batch", batch).status == 200, "an SDK sends it all again"
        wait_until(lambda: up.sql(count) == [{"n": 20, "ids": 20}])
        assert up.post("/v1/t", seat("last", "x")).status == 200
        wait_until(lambda: up.sql(count) == [{"n": 21, "ids": 21}])
    assert call("table", "failed", cwd=tmp_path)[1] == "nothing stands as failed\n"


def test_clicked_is_what_the_shop_declares(shop):
    shop.click(clicked("m1"))
    shop.run()
    assert ids(shop) == []
