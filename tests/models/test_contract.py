"""The contracts of the registry: a manifest, what made a bundle and what the gate said, as a golden file has them."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from headrace.base.errors import FormatError
from headrace.models.gate import Gate, decide, decode_gate, encode_gate
from headrace.models.model import Bundle, pack_texts, unpack
from headrace.models.provenance import Fit, decode_fit, encode_fit
from headrace.models.validate import Measures, Report

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts"
GOLDEN = CONTRACTS / "bundle.golden.json"
HOUR_US = 3_600_000_000


def make_bundle():
    """Returns a bundle with every part that a click model's has."""
    table = {"version": 7, "incarnation": "01kc8w2m800000000000000000", "positions": [408, 402]}
    column = {
        "version": 1, "name": "taste_1d", "kind": "count", "event": "Product Clicked", "item": "product_id",
        "dimension": "items", "by": ["person", "@genre"], "value": "", "window_us": 24 * HOUR_US, "hop_us": HOUR_US,
    }  # fmt: skip
    return Bundle(
        "ranker",
        "click",
        {"metric": "ctr", "within_us": HOUR_US // 2, "l2": 30.0, "most_weight": 10.0, "columns": [column]},
        {"tables": {"decisions": table, "events": table}, "at_us": 1_767_571_200_000_000, "rows": 340, "clicks": 21},
        {
            "items": pack_texts(["item-1", "item-2"]),
            "categories": pack_texts(["drama", ""]),
            "base": np.array([-2.5, -0.75]),
            "weights": np.array([0.5]),
            "contexts": np.array([-0.25]),
            "means": np.array([0.125]),
            "scales": np.array([0.25]),
        },
    )


def make_report(**more):
    """Returns a report that passes."""
    good, plain = Measures(0.1494, 0.536, 0.481, 1.05), Measures(0.1506, 0.504, 0.452, 1.01)
    known = {
        "version": 1, "split_us": 1_767_571_200_000_000, "trained": 16_300, "judged": 4_100, "pages": 410,
        "clicks": 228, "examination": -0.9, "held_out": good, "popularity": plain, "bundle": good,
        "least_gain": 0.016, "agreement": 0.98, "broken": 0, "idle": ("latest_1h",),
    }  # fmt: skip
    return Report(**(known | more))


def make_rows():
    """Returns the manifest of a bundle, and the rows that say what made it and what the gate said of it."""
    fit = Fit(
        version=1, model="ranker", seconds=1.25, seed=7, code="9c" * 16,
        environment={"machine": "x86_64", "numpy": "2.4.6", "python": "3.11.7"}, features={"taste_1d": "5f" * 8},
    )  # fmt: skip
    return {
        "manifest": make_bundle().manifest.decode(),
        "fit": encode_fit(fit).decode(),
        "gate": encode_gate(decide(make_report())).decode(),
    }


def test_rows_equal_the_golden_file_byte_for_byte():
    assert json.dumps(make_rows(), ensure_ascii=False, indent=1) + "\n" == GOLDEN.read_text(encoding="utf-8")


def test_golden_rows_are_read_as_they_are_written():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert unpack(make_bundle().packed).manifest.decode() == golden["manifest"]
    assert encode_fit(decode_fit(golden["fit"].encode())).decode() == golden["fit"]
    assert encode_gate(decode_gate(golden["gate"].encode())).decode() == golden["gate"]


def test_page_explains_every_field_and_shows_the_golden_rows():
    text = (CONTRACTS / "bundle.md").read_text(encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    names = [
        *json.loads(golden["manifest"]),
        *(name for kind in (Fit, Gate, Report) for name in kind.__struct_fields__),
    ]
    assert [name for name in names if f"| `{name}` |" not in text] == []
    assert golden["gate"] in text


@pytest.mark.parametrize("decode", [decode_fit, decode_gate])
def test_rows_of_another_version_are_refused_by_name(decode):
    with pytest.raises(FormatError, match="has version 2, this Headrace reads version 1"):
        decode(b'{"version":2}')
    with pytest.raises(FormatError, match=r"is no (fit|gate)"):
        decode(b'{"version":1}')


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"clicks": 49}, "49 clicks on 4,100 viewed items were judged, 50 are needed"),
        ({"broken": 3, "bundle": None, "agreement": None}, "3 of 4,100 scores are no numbers"),
        ({"held_out": None, "popularity": None, "bundle": None, "least_gain": None, "agreement": None},
         "nothing can be learned from the rows before the split"),
        ({"least_gain": -0.03}, "-0.030 or more, which must be above -0.02"),
        ({"held_out": Measures(0.16, 0.536, 0.481, 1.05)}, "its log loss is 0.1600, that of position and popularity"),
        ({"held_out": Measures(0.14, 0.536, 0.481, 2.5)}, "it expects 2.50 clicks for each one that came"),
        ({"bundle": Measures(0.14, 0.536, 0.481, 0.1)}, "the bundle expects 0.10 clicks for each one that came"),
        ({"agreement": -0.98}, "the scores of the bundle and of that fit correlate by -0.98"),
    ],
)  # fmt: skip
def test_gate_refuses_what_fails_one_check_and_says_only_that(more, says):
    gate = decide(make_report(**more))
    assert not gate.passed
    assert len(gate.reasons) == 1
    assert says in gate.reasons[0]


def test_gate_passes_what_cannot_be_judged_by_rows_and_says_so():
    assert decide(None) == Gate(version=1, passed=True, reasons=decide(None).reasons)
    assert decide(None).reasons == ("it learns no weights, so nothing is judged before a trial",)
    assert msgspec.json.decode(encode_gate(decide(None)))["report"] is None
