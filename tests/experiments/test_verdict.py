"""The contracts `exposure` and `verdict`: the code, their pages and their golden files."""

import json
import math
from pathlib import Path

import msgspec
import pytest

from experiments.lake import ITEMS, click, make_crowd, page, start_trial, stop_at, told, view, watch
from headrace.base.errors import FormatError
from headrace.experiments.experiment import Gate
from headrace.experiments.metric import FrozenMetric
from headrace.experiments.verdict import (
    OUTCOMES,
    VERSION,
    Arm,
    Exposure,
    Verdict,
    decode_exposure,
    decode_verdict,
    encode_exposure,
    encode_verdict,
)
from headrace.loop import list_exposures, look, stop
from headrace.project import open_project
from streamline import BEGAN_US, HOUR, MINUTE, make_project, write

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts"
KINDS = {
    "exposure": (Exposure, decode_exposure, encode_exposure),
    "verdict": (Verdict, decode_verdict, encode_verdict),
}
INCARNATIONS = {"decisions": "01kc8w2m800000000000000001", "events": "01kc8w2m800000000000000000"}


def _golden(contract):
    return json.loads((CONTRACTS / f"{contract}.golden.json").read_text(encoding="utf-8"))


def _page(contract):
    return (CONTRACTS / f"{contract}.md").read_text(encoding="utf-8")


def _named(verdict):
    """Returns a verdict with names of topics that every run has."""
    return msgspec.structs.replace(verdict, incarnations=INCARNATIONS)


def _exposures(folder):
    """Returns exposures that show every field, from a real lake."""
    with open_project(make_project(folder)) as project:
        trial = start_trial(project)
        one, second = page(trial, "ann"), page(trial, "ann", number=1, at_us=BEGAN_US + HOUR)
        robot, torn = page(trial, "robot", bot=True), page(trial, "torn", arm="control")
        events = [view(one, ITEMS[:5]), click(one, "item-2"), view(second, ITEMS[:2]), view(robot), view(torn)]
        events += [told(trial, "torn", "treatment"), told(trial, "zoë", "control")]
        write(project, decisions=[one, second, robot, torn], events=events)
        stop_at(project, trial, hours=10)
        return [encode_exposure(found).decode() for found in list_exposures(project, look(project, "taste-home"))]


def _verdicts(folder):
    """Returns verdicts with and without numbers, from a real lake."""
    with open_project(make_project(folder)) as project:
        gate = Gate(1000, 400, 48, (26, 77), 0.05, 0.0021)
        minutes = FrozenMetric(name="watch_minutes", kind="mean", above="Video Content Playing", each=1 / 6, cap=0.99)
        orders = FrozenMetric(name="orders", kind="mean", above="Order Completed")
        trial = start_trial(project, planned=100, gate=gate, guardrails=(minutes, orders))
        decisions, events = make_crowd(trial, visitors=400, rates=(0.1, 0.25))
        events += watch(decisions)
        decisions += [page(trial, "robot", bot=True), page(trial, "behind", degraded=("behind",))]
        events += [view(decisions[-1]), told(trial, "torn", "control"), told(trial, "torn", "treatment")]
        write(project, decisions=decisions, events=events)
        stop_at(project, trial, hours=10)
        found = [_named(stop(project, "taste-home"))]
        start_trial(project)
        found.append(_named(look(project, "taste-home")))
        return [encode_verdict(one).decode() for one in found]


def test_exposures_of_a_trial_equal_the_golden_file(tmp_path):
    assert _exposures(tmp_path) == _golden("exposure")


def test_verdicts_of_trials_equal_the_golden_file(tmp_path):
    # Not to the last digit of a p value, which is another one with another libm.
    for made, golden in zip(_verdicts(tmp_path), _golden("verdict"), strict=True):
        assert _is_same(json.loads(made), json.loads(golden)), made


def _is_same(one, other):
    if isinstance(one, dict):
        return list(one) == list(other) and all(_is_same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


@pytest.mark.parametrize("contract", KINDS)
def test_golden_rows_are_written_byte_for_byte_as_they_are_read(contract):
    kind, decode, encode = KINDS[contract]
    assert [encode(decode(row.encode())).decode() for row in _golden(contract)] == _golden(contract)
    assert {name for row in _golden(contract) for name in json.loads(row)} == set(kind.__struct_fields__)


def test_golden_rows_show_what_may_be_missing():
    with_numbers, empty = (decode_verdict(row.encode()) for row in _golden("verdict"))
    assert (with_numbers.outcome, empty.outcome) == ("better", "empty")
    assert None not in msgspec.structs.astuple(with_numbers)
    assert {name for name, value in msgspec.structs.asdict(empty).items() if value is None} == {
        "gate",
        "srm_p",
        "difference",
        "difference_interval",
        "lift",
        "lift_interval",
        "p",
        "df",
    }
    exposures = {one.visitor: one for one in (decode_exposure(row.encode()) for row in _golden("exposure"))}
    assert (exposures["torn"].arms, exposures["robot"].bot, exposures["zoë"].pages) == (2, True, 0)
    assert (exposures["ann"].pages, exposures["ann"].views, exposures["ann"].clicks) == (2, 7, 1)
    assert exposures["ann"].first_us == BEGAN_US + MINUTE


@pytest.mark.parametrize("contract", KINDS)
def test_page_explains_every_field_in_its_order_and_shows_a_golden_row(contract):
    kind, _, _ = KINDS[contract]
    page = _page(contract)
    places = [page.find(f"| `{name}` |") for name in kind.__struct_fields__]
    assert -1 not in places
    assert places == sorted(places)
    assert page.partition("```json\n")[2].partition("\n```")[0] in _golden(contract)
    assert page.startswith(f"# {contract.capitalize()}, version {VERSION}\n")


def test_page_of_the_verdict_explains_its_parts_and_outcomes():
    page = _page("verdict")
    assert [name for name in Arm.__struct_fields__ if f"| `{name}` |" not in page] == []
    assert [name for name in Gate.__struct_fields__ if f"| `{name}` |" not in page] == []
    assert [outcome for outcome, meaning in OUTCOMES.items() if f"| `{outcome}` |" not in page or not meaning] == []


@pytest.mark.parametrize("contract", KINDS)
def test_row_of_another_version_is_told_as_such(contract):
    _, decode, _ = KINDS[contract]
    for changed in ({}, {"trial": 7}, {"news": "fine"}):
        value = msgspec.json.encode(json.loads(_golden(contract)[0]) | {"version": 2} | changed)
        with pytest.raises(
            FormatError, match=f"the {contract} has version 2, this Headrace reads version 1. Run a newer"
        ):
            decode(value)


@pytest.mark.parametrize("contract", KINDS)
@pytest.mark.parametrize("value", [b"", b"hello", b"[]", b"{}", b'{"version":1}', b'{"version":1,"trial":"\xff"}'])
def test_what_is_neither_is_refused(contract, value):
    _, decode, _ = KINDS[contract]
    with pytest.raises(FormatError, match=f"no {contract}"):
        decode(value)


def test_lake_holds_each_verdict_once_with_its_numbers_as_columns(tmp_path):
    with open_project(make_project(tmp_path)) as project:
        for _ in range(2):
            trial = start_trial(project)
            decisions, events = make_crowd(trial, visitors=60, rates=(0.1, 0.25))
            write(project, decisions=decisions, events=events)
            stop_at(project, trial, hours=10)
            given = [stop(project, "taste-home") for _ in range(3)]
            assert len({encode_verdict(one) for one in given}) == 1
        rows = project.query("SELECT * FROM verdicts ORDER BY trial").table().to_pylist()
        assert [row["trial"] for row in rows] == ["taste-home-1", "taste-home-2"]
        verdict = given[-1]
        assert decode_verdict(rows[-1]["verdict"].encode()) == verdict
        assert (rows[-1]["control_views"], rows[-1]["treatment_ratio"]) == (
            verdict.control.views,
            verdict.treatment.ratio,
        )
        assert (rows[-1]["lift_low"], rows[-1]["lift_high"]) == verdict.lift_interval
        assert (rows[-1]["p"], rows[-1]["outcome"]) == (verdict.p, verdict.outcome)
