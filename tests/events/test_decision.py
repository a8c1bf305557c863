"""The contract `decision`: the code, its page and its golden file."""

import itertools
import json
from pathlib import Path

import msgspec
import pytest

from endpoints.door import make_popular, make_tastes, make_trial, open_door
from endpoints.learned import make_ranker, open_learned
from headrace.events.decision import DEGRADED, VERSION, Decision, decode_decision, encode, is_decision
from headrace.loop import promote
from headrace.stream import CODECS
from headrace.topics import Message
from streamline import BEGAN_US, HOUR, TRENDING, append, clicked, make_project

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts"
GOLDEN = CONTRACTS / "decision.golden.json"
GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"


def _golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def _page():
    return (CONTRACTS / "decision.md").read_text(encoding="utf-8")


def _decide(folder):
    """Returns what a real endpoint writes down of requests that show every field."""
    with open_door(make_project(folder, per_row=3, explore=0.25, partitions=1)) as door:
        numbers = itertools.count()
        door.endpoint._entropy = lambda count: bytes((next(numbers) * 37 + place) % 256 for place in range(count))
        popular, tastes = make_popular(5), make_tastes(5, people=("bob", "u-1"))
        door.add(popular, tastes)
        seen = [clicked("ann", f"item-{number}", at_us=BEGAN_US - HOUR) for number in (0, 3)]
        seen += [clicked("zoë", f"item-{number}", at_us=BEGAN_US) for number in range(5)]
        append(door.project, events=seen)
        door.follow()
        door.follower.incarnation = "01kc8w2m800000000000000000"
        assert door.ask(anonymous_id="ann").status == 200
        assert door.ask(user_id="zoë").status == 200
        assert door.ask(context={"userAgent": GOOGLEBOT}).status == 200
        door.start(make_trial(popular.hash, tastes.hash, per_row=2))
        assert door.ask(anonymous_id="ann", user_id="u-1").status == 200
        assert door.ask(anonymous_id="bob").status == 200
        return _written(door)


def _decide_by_features(folder):
    """Returns what a real endpoint writes down of a page that is ranked by features."""
    with open_learned(folder) as door:
        numbers = itertools.count()
        door.endpoint._entropy = lambda count: bytes((next(numbers) * 41 + place) % 256 for place in range(count))
        door.add(make_popular(4), make_ranker(door.project.declared.columns))
        promote(door.project, "home", door.project.registry.bundles("ranker")[0].hash)
        door.take_over()
        door.follower.incarnation = "01kc8w2m800000000000000000"
        assert door.ask(anonymous_id="ann").status == 200
        return _written(door)


def _decide_rows(folder):
    """Returns what a real endpoint writes down of a page with two rows."""
    with open_door(make_project(folder, per_row=2, explore=0.25, partitions=1, below=TRENDING)) as door:
        numbers = itertools.count()
        door.endpoint._entropy = lambda count: bytes((next(numbers) * 43 + place) % 256 for place in range(count))
        popular, tastes = make_popular(5), make_tastes(5, people=("ann",))
        door.add(popular, tastes)
        door.start(make_trial(popular.hash, tastes.hash, per_row=2))
        door.follower.incarnation = "01kc8w2m800000000000000000"
        assert door.ask(anonymous_id="ann").status == 200
        return _written(door)


def _written(door):
    return [message.value.decode() for message in door.project.topic("decisions").read_to_ends()]


def test_decisions_of_an_endpoint_equal_the_golden_file(tmp_path):
    made = _decide(tmp_path / "popular") + _decide_by_features(tmp_path / "learned") + _decide_rows(tmp_path / "rows")
    assert json.dumps(made, ensure_ascii=False, indent=1) + "\n" == GOLDEN.read_text(encoding="utf-8")


def test_golden_decisions_are_written_byte_for_byte_as_they_are_read():
    assert [encode(decode_decision(row.encode())).decode() for row in _golden()] == _golden()
    assert all(is_decision(row.encode()) for row in _golden())


def test_golden_file_shows_every_field_and_both_arms():
    rows = [json.loads(row) for row in _golden()]
    assert {name for row in rows for name in row} == set(Decision.__struct_fields__)
    assert {row.get("arm") for row in rows} == {None, "control", "treatment"}


def test_page_explains_every_field_in_its_order_and_shows_a_golden_row():
    page = _page()
    places = [page.find(f"| `{name}` |") for name in Decision.__struct_fields__]
    assert -1 not in places
    assert places == sorted(places)
    assert page.partition("```json\n")[2].partition("\n```")[0] in _golden()
    assert page.startswith(f"# Decision, version {VERSION}\n")
    assert [what for what in DEGRADED if f"| `{what}` |" not in page] == []


def test_lake_holds_of_each_decision_all_but_the_version():
    messages = [Message(b"ann", row.encode(), 0, (), 1, number) for number, row in enumerate(_golden())]
    rows = CODECS["decisions"].read(messages).to_pylist()
    for row, text in zip(rows, _golden(), strict=True):
        decision = decode_decision(text.encode())
        for name in Decision.__struct_fields__[1:]:
            value = getattr(decision, name)
            if name in ("dimensions", "vectors"):
                value = None if value is msgspec.UNSET else bytes(value).decode()
            assert row[name] == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("version", [0, 2, 99])
def test_decision_of_another_version_is_told_as_such(version):
    for changed in ({}, {"seed": "a text"}):
        value = msgspec.json.encode(json.loads(_golden()[0]) | {"version": version} | changed)
        with pytest.raises(
            msgspec.DecodeError, match=f"has version {version}, this Headrace reads version 1. Run a newer"
        ):
            decode_decision(value)
        assert is_decision(value)


@pytest.mark.parametrize(
    "value",
    [b"", b"hello", b"[]", b"{}", b'{"version":1}', b'{"version":1,"recommendation_id":"\xff"}', b"[" * 100_000],
)
def test_what_is_no_decision_is_refused(value):
    assert not is_decision(value)
    with pytest.raises(msgspec.DecodeError):
        decode_decision(value)


def test_decision_may_have_more_members_than_this_version_knows():
    row = json.loads(_golden()[0])
    assert decode_decision(msgspec.json.encode(row | {"weather": "fine"})) == decode_decision(msgspec.json.encode(row))
