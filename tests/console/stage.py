"""A project with something on every page of the console: tables, bundles, a trial that ended, alerts, a report."""

from __future__ import annotations

import time
from functools import cache

import msgspec
import numpy as np

from console.audience import HOUR, ask, copy, fill, now_us, respond
from console.conftest import Shop
from headrace.models import Bundle
from headrace.models.gate import GATE, VERSION, Gate, encode_gate
from headrace.models.model import pack_texts
from headrace.models.registry import Entry
from headrace.models.validate import VERSION as REPORT_VERSION
from headrace.models.validate import Measures
from headrace.models.validate import Report as Judged
from headrace.project import open_project
from headrace.verify.report import Line, Report, write_report
from headrace.watch.alert import FILE, Alert

NAME = "taste-home"
NASTY = "<script>alert(1)</script>&amp;"


def make_stage(factory):
    """Returns a shop of one's own in which a trial has ended, and one event has failed; it is made once in a run."""
    return copy(_make_stage(factory.getbasetemp() / "stage"), factory.mktemp("pages"))


@cache
def _make_stage(folder):
    folder.mkdir()
    shop = Shop(folder)
    fill(shop)
    for _ in range(2):
        respond(shop, ask(shop, [f"ann-{number}" for number in range(60)]))
        now_us(shop, later=2 * HOUR)
    assert shop.call("experiment", "start", NAME, "--without-aa")[0] == 0
    for hour in range(2):
        pages = ask(shop, [f"bob-{hour}-{number}" for number in range(60)])
        respond(shop, pages, seed=hour, click=lambda page: 0.4 if page["arm"] == "treatment" else 0.15)
        now_us(shop, later=HOUR)
    now_us(shop, later=2 * HOUR)
    shop.click({"type": "track", "event": "", "messageId": "bad", "anonymousId": "ann"})
    shop.run()
    assert shop.call("experiment", "stop", NAME)[0] in (0, 1)
    state = folder / ".headrace"
    add_ranker(folder)
    write_report(state, make_report())
    (state / FILE).write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in make_alerts()))
    return shop


def add_ranker(folder):
    """Adds a bundle that learned weights, as a click model has them, with what the gate said of it."""
    columns = [{"name": name} for name in ("taste_1d", "appeal_7d")]
    arrays = {
        "weights": np.array([0.4, -0.1]),
        "base": np.array([-2.0, -0.5]),
        "items": pack_texts(["item-1"]),
        "categories": pack_texts(["comedy"]),
        "counts": np.ones(1),
    }
    source = {"at_us": 1, "rows": 900, "clicks": 80, "tables": {}}
    bundle = Bundle("old-ranker", "popularity", {"half_life_us": 1, "columns": columns}, source, arrays)
    some = Measures(log_loss=0.2, ndcg=0.5, recall=0.3, calibration=1.1)
    judged = Judged(
        version=REPORT_VERSION, split_us=1, trained=700, judged=200, pages=20, clicks=60, examination=-0.5,
        held_out=some, popularity=some, bundle=some, least_gain=-0.1, agreement=0.9, broken=0, idle=(),
    )  # fmt: skip
    gate = Gate(version=VERSION, passed=False, reasons=("NDCG@10 is lower than popularity's",), report=judged)
    with open_project(folder) as project:
        project.registry.add(bundle, Entry(0, GATE, bundle.hash, encode_gate(gate), 1, "ann"))


def make_report():
    """Returns a report in which one check fails."""
    known = {"room": "events", "text": "1,000 acknowledged = 998 settled + 2 failed", "false_alarm": 0.0}
    return Report(
        made_us=int(time.time() * 1e6),
        seed=7,
        worlds=1,
        seconds=41.5,
        lines=(
            Line(name="every acknowledged event is settled or failed", state="holds", **known),
            Line(name=NASTY, state="fails", **{**known, "false_alarm": 1e-6}, witness="m-" + "x" * 80),
            Line(name="the cluster gives the same rows", state="left out", **known),
        ),
    )


def make_alerts():
    """Returns the lines of an alert that was closed, and of one that is open."""
    known = {"at_us": int(time.time() * 1e6), "project_us": 1, "advice": "Look at it with: headrace status"}
    lag = {"id": "a-1", "kind": "lag", "subject": "sink", "text": "The sink is 90,000 records behind.", **known}
    drift = {"id": "a-2", "kind": "drift", "subject": "taste_1d", "text": f"PSI is 0.31 {NASTY}", **known}
    return [Alert(state="open", **lag), Alert(state="closed", **lag), Alert(state="open", **drift)]
