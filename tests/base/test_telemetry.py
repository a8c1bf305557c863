"""Metrics of several processes, in a text that a strict Prometheus parser accepts."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import subprocess
import sys

import pytest

from headrace.base.telemetry import Metric, Metrics, get_logger, quantile, read_text, read_values, start_logging

METRICS = (
    Metric("shop_visits_total", "Visits, by door.", labels={"door": ("front", "back"), "way": ("in", "out")}),
    Metric("shop_open", "Whether it is open.", "gauge"),
    Metric("shop_wait_seconds", "How long people wait.", "histogram", buckets=(0.01, 0.1, 1.0)),
    Metric("shop_pay_seconds", "By means.", "histogram", labels={"means": ("cash", "card")}, buckets=(0.5, 2.5)),
)

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)\Z")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"(?:,|\Z)')


def parse_strictly(text):
    """Returns {family: {(name, labels): value}}; asserts all that promtool asserts, and order besides."""
    assert text.endswith("\n")
    families, kinds = {}, {}
    current = None
    for line in text.splitlines():
        assert line == line.strip()
        if line.startswith("# HELP "):
            _, _, name, help_text = line.split(" ", 3)
            assert NAME.match(name)
            assert name not in families, f"{name} comes twice"
            assert help_text.strip()
            current, families[name] = name, {}
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current, "TYPE stands right below HELP"
            assert not families[name]
            assert name not in kinds
            assert kind in ("counter", "gauge", "histogram")
            kinds[name] = kind
        else:
            name, labels, value = SAMPLE.match(line).groups()
            assert belongs(name, current, kinds[current]), f"{name} stands below {current}"
            pairs = LABEL.findall(labels or "")
            assert LABEL.sub("", labels or "") == ""
            assert len(dict(pairs)) == len(pairs)
            key = (name, tuple(sorted(pairs)))
            assert key not in families[current], f"{key} comes twice"
            families[current][key] = float(value)
    for name, samples in families.items():
        check(name, kinds[name], samples)
    return families


def belongs(name, family, kind):
    parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
    return name in [family + part for part in parts]


def check(family, kind, samples):
    assert samples
    if kind == "counter":
        assert family.endswith("_total"), f"{family}: a counter's name ends with _total"
        assert all(value >= 0 for value in samples.values())
    if kind != "histogram":
        return
    groups = {}
    for (name, labels), value in samples.items():
        rest = tuple(pair for pair in labels if pair[0] != "le")
        group = groups.setdefault(rest, {"buckets": []})
        if name.endswith("_bucket"):
            group["buckets"].append((float(dict(labels)["le"]), value))
        else:
            group[name.rpartition("_")[2]] = value
    for group in groups.values():
        bounds = [bound for bound, _ in group["buckets"]]
        counts = [count for _, count in group["buckets"]]
        assert bounds == sorted(bounds)
        assert bounds[-1] == math.inf
        assert counts == sorted(counts), "buckets are cumulative"
        assert counts[-1] == group["count"]
        assert "sum" in group


def test_the_text_is_what_prometheus_reads(tmp_path):
    for folder in (None, tmp_path):
        metrics = Metrics(METRICS, folder=folder)
        metrics.count("shop_visits_total", "front", "in").add(3)
        metrics.count("shop_open").set(1)
        for value in (0.005, 0.01, 0.05, 0.5, 7.0):
            metrics.measure("shop_wait_seconds").observe(value)
        metrics.measure("shop_pay_seconds", "card").observe(1.0)
        found = parse_strictly(metrics.text())
        assert found["shop_visits_total"][("shop_visits_total", (("door", "front"), ("way", "in")))] == 3
        assert found["shop_open"] == {("shop_open", ()): 1}
        waits = found["shop_wait_seconds"]
        assert [v for (name, _), v in waits.items() if name.endswith("_bucket")] == [2, 3, 4, 5]
        assert waits[("shop_wait_seconds_sum", ())] == pytest.approx(7.565)
        assert found["shop_pay_seconds"][("shop_pay_seconds_count", (("means", "cash"),))] == 0


def test_every_series_is_there_from_the_start_and_none_comes_later(tmp_path):
    metrics = Metrics(METRICS, folder=tmp_path)
    before = set(metrics.values())
    assert sum(len(samples) for samples in parse_strictly(metrics.text()).values()) == len(before) == 4 + 1 + 6 + 10
    with pytest.raises(KeyError):
        metrics.count("shop_visits_total", "window", "in")
    assert set(read_values(tmp_path)) == before


def test_the_parser_of_this_test_is_strict():
    good = Metrics(METRICS).text()
    parse_strictly(good)
    lines = good.splitlines()
    for bad in (
        good[:-1],
        good.replace("# TYPE shop_open gauge\n", ""),
        good + lines[-1] + "\n",
        good.replace('le="0.1"} 0', 'le="0.1"} 7'),
        good.replace('le="+Inf"', 'le="9"'),
        good.replace("shop_wait_seconds_count 0", "shop_wait_seconds_count 1"),
        good.replace('door="front"', "door=front"),
        good.replace("shop_visits_total", "shop_visits"),
    ):
        assert bad != good
        with pytest.raises((AssertionError, AttributeError, KeyError)):
            parse_strictly(bad)


WORKER = """
import sys
from pathlib import Path
from headrace.base.telemetry import Metric, Metrics
metrics = Metrics(
    (Metric("work_total", "Work.", labels={"kind": ("a", "b")}),
     Metric("work_seconds", "Time.", "histogram", buckets=(0.1, 1.0))),
    folder=Path(sys.argv[1]), process=sys.argv[2],
)
for number in range(int(sys.argv[3])):
    metrics.count("work_total", "a").add()
    metrics.measure("work_seconds").observe(0.5)
print("done", flush=True)
sys.stdin.readline()
"""


def work(folder, name, number):
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, folder, name, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"done\n"
    return process


def end(process, number=signal.SIGKILL):
    os.kill(process.pid, number)
    process.communicate(timeout=10)


def test_any_process_tells_for_all_and_a_restarted_one_counts_on(tmp_path):
    first, second = work(tmp_path, "one", 100), work(tmp_path, "two", 11)
    assert read_values(tmp_path)['work_total{kind="a"}'] == 111
    end(first)
    again = work(tmp_path, "one", 5)
    found = parse_strictly(read_text(tmp_path))
    assert found["work_total"] == {
        ("work_total", (("kind", "a"),)): 116,
        ("work_total", (("kind", "b"),)): 0,
    }
    assert found["work_seconds"][("work_seconds_count", ())] == 116
    end(second)
    end(again)
    assert read_values(tmp_path)['work_total{kind="a"}'] == 116


def test_another_set_of_metrics_begins_anew_and_the_others_stay(tmp_path):
    Metrics(METRICS, folder=tmp_path, process="one").count("shop_open").set(1)
    Metrics(METRICS, folder=tmp_path, process="two").count("shop_open").set(1)
    Metrics(METRICS[:1], folder=tmp_path, process="one").count("shop_visits_total", "front", "in").add()
    values = read_values(tmp_path)
    assert (values["shop_open"], values['shop_visits_total{door="front",way="in"}']) == (1, 1)
    parse_strictly(read_text(tmp_path))


STARTING = """
import sys
from pathlib import Path
from headrace.base.telemetry import Metric, Metrics
for number in range(300):
    labels = {"n": tuple(f"{number}-{n}" for n in range(200))}
    Metrics((Metric("work_total", "Work.", labels=labels),), folder=Path(sys.argv[1]), process="one")
print("done", flush=True)
"""


def test_a_process_that_starts_is_never_seen_by_halves(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", STARTING, tmp_path], stdout=subprocess.PIPE)
    seen = 0
    while process.poll() is None:
        seen += len(read_values(tmp_path)) == 200
    assert process.communicate()[0] == b"done\n"
    assert seen > 20


def test_an_empty_file_after_a_power_loss_is_begun_anew(tmp_path):
    (tmp_path / "one.metrics").write_bytes(b"")
    assert read_values(tmp_path) == {}
    Metrics(METRICS, folder=tmp_path, process="one").count("shop_open").set(2)
    assert read_values(tmp_path)["shop_open"] == 2


def test_quantile_is_the_bound_of_its_bucket():
    metrics = Metrics(METRICS)
    assert quantile(metrics.values(), "shop_wait_seconds", 0.5) is None
    for value in [0.005] * 98 + [0.5, 5.0]:
        metrics.measure("shop_wait_seconds").observe(value)
    found = [quantile(metrics.values(), "shop_wait_seconds", q) for q in (0.5, 0.98, 0.99, 1.0)]
    assert found == [0.01, 0.01, 1.0, math.inf]


def test_logs_are_one_json_object_per_line(capsys):
    start_logging()
    try:
        get_logger("door").warning("%s came\nin", "ann")
        try:
            int("oh")
        except ValueError:
            get_logger("door").exception("no")
    finally:
        logging.getLogger("headrace").handlers.clear()
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("warning", "headrace.door", "ann came\nin")
    assert first["process"] == os.getpid()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["at"])
    assert "ValueError: invalid" in second["error"]


@pytest.mark.parametrize("length", [0, 4, 8, 120, -8, -1])
def test_a_damaged_file_does_not_hide_what_the_others_count(tmp_path, length):
    whole = Metrics(METRICS, folder=tmp_path, process="whole")
    whole.count("shop_open").set(1)
    data = (tmp_path / "whole.metrics").read_bytes()
    (tmp_path / "damaged.metrics").write_bytes(data[:length])
    (tmp_path / "noise.metrics").write_bytes(b"\xff" * 200)
    (tmp_path / "folder.metrics").mkdir()
    assert read_values(tmp_path) == whole.values()
    assert parse_strictly(read_text(tmp_path))
