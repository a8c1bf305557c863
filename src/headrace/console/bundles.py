"""headrace model: compare, promote, rollback, reproduce."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import msgspec

from headrace import loop
from headrace.console.models import SHOWN_HASH, find_bundle, gate_facts, measured, opened
from headrace.console.show import format_time, print_facts, print_lines, print_table, working
from headrace.experiments.promotion import Champion
from headrace.learn import find_gate, reproduce
from headrace.models.gate import Gate
from headrace.models.registry import Fitted
from headrace.project import OpenProject

# compare.


def compare(given: argparse.Namespace) -> None:
    """Shows two bundles side by side: what they were made of, and what the gate measured of each."""
    with opened(given) as project, working("reading what the gate says of both"):
        found = [_compared(project, find_bundle(project, name)) for name in (given.one, given.other)]
    if given.json:
        print_lines(found)
        return
    print_table(("", *(f"{row['name']} {row['hash'][:SHOWN_HASH]}" for row in found)), _compared_rows(found))
    splits = {row["gate"]["report"]["split_us"] for row in found if row["gate"]["report"]}
    if len(splits) > 1:
        print("\nThey were judged on other rows: what came after another split. Only a trial compares them.")


def _compared(project: OpenProject, fitted: Fitted) -> dict[str, Any]:
    manifest = msgspec.json.decode(fitted.manifest)
    return {
        "name": fitted.name,
        "hash": fitted.hash,
        "kind": fitted.kind,
        "fitted_us": fitted.at_us,
        "parameters": manifest["parameters"],
        "rows": manifest["source"].get("rows"),
        "gate": msgspec.to_builtins(find_gate(project, fitted.hash)),
    }


def _compared_rows(found: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    gates = [msgspec.convert(row["gate"], Gate) for row in found]
    rows = [
        ("fitted at", *(format_time(row["fitted_us"])[:19] for row in found)),
        ("rows", *(f"{row['rows']:,}" for row in found)),
        ("gate", *("passed" if gate.passed else "refused" for gate in gates)),
    ]
    names = {name: None for row in found for name in row["parameters"] if name != "columns"}
    rows += [(name, *(str(row["parameters"].get(name, "-")) for row in found)) for name in names]
    reports = [gate.report for gate in gates]
    rows.append(("judged clicks", *(f"{report.clicks:,}" if report else "-" for report in reports)))
    for place, name in enumerate(("log loss", "NDCG@10", "recall@3", "expected / came")):
        rows.append((name, *(measured(report.held_out if report else None)[place] for report in reports)))
    rows.append(("popularity's NDCG@10", *(measured(report.popularity if report else None)[1] for report in reports)))
    return rows


# promote.


def promote(given: argparse.Namespace) -> int:
    """Lets a bundle serve a page from now on; returns 1 if the gate refuses it."""
    with opened(given) as project:
        fitted = find_bundle(project, given.bundle)
        with working("asking the gate"):
            gate = find_gate(project, fitted.hash)
        if not gate.passed and not given.force:
            _print_refused(fitted, gate, as_json=given.json)
            return 1
        reason = "" if gate.passed else f"forced past the gate: {gate.reasons[0]}"
        champion = loop.promote(project, given.page, fitted.hash, how="hand", reason=reason)
    if given.json:
        print_lines([{"promoted": True, **msgspec.to_builtins(champion), "gate": msgspec.to_builtins(gate)}])
        return 0
    print_facts([*_champion_facts(champion), *([("forced", reason)] if reason else [])])
    return 0


def _champion_facts(champion: Champion) -> list[tuple[str, str]]:
    name = f"{champion.bundle} of {champion.model}" if champion.bundle else "none: the fallback serves"
    return [("champion", name), ("page", champion.page), ("before", champion.before or "the fallback")]


def _print_refused(fitted: Fitted, gate: Gate, *, as_json: bool) -> None:
    if as_json:
        print_lines([{"promoted": False, "bundle": fitted.hash, "gate": msgspec.to_builtins(gate)}])
        return
    print_facts((("bundle", f"{fitted.hash} of {fitted.name} is not promoted"), *gate_facts(gate)))


# rollback.


def roll_back(given: argparse.Namespace) -> None:
    """Lets the champion before serve a page again."""
    with opened(given) as project:
        champion = loop.roll_back(project, given.page, reason=given.reason)
    if given.json:
        print_lines([msgspec.to_builtins(champion)])
        return
    print_facts([*_champion_facts(champion), *([("reason", champion.reason)] if champion.reason else [])])


# reproduce.


def reproduce_model(given: argparse.Namespace) -> int:
    """Fits a bundle again from the rows that it was made of; returns 1 if other bytes come of it."""
    with opened(given) as project:
        fitted = find_bundle(project, given.bundle)
        with working(f"fitting {fitted.name} from the rows of then"):
            found = reproduce(project, fitted.hash)
    row: Mapping[str, Any] = {
        "bundle": fitted.hash,
        "again": found.again.hash,
        "same": found.is_same,
        "differences": list(found.differences),
    }
    if given.json:
        print_lines([row])
    else:
        what = "✓ the same bytes" if found.is_same else "✗ other bytes"
        facts = [("bundle", fitted.hash), ("again", found.again.hash), ("found", what)]
        print_facts([*facts, *(("differs", text) for text in found.differences)])
    return int(not found.is_same)
