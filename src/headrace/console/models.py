"""headrace model: fit, list, describe."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.base.errors import CallError, unknown_name
from headrace.collect.app import CLICKS
from headrace.console.show import (
    format_bytes,
    format_seconds,
    format_time,
    print_facts,
    print_lines,
    print_table,
    working,
)
from headrace.endpoints.carousel import find_best
from headrace.endpoints.serving import Shelf
from headrace.learn import find_fit, find_gate, find_model, read_offline_gate, read_tables, wait_for_lake
from headrace.learn import fit as fit_model
from headrace.models import Bundle, open_bundle
from headrace.models.gate import GATE, Gate, decode_gate
from headrace.models.provenance import FIT
from headrace.models.registry import Fitted
from headrace.models.validate import Measures, Report
from headrace.project import OpenProject, open_project

SHOWN_HASH = 12
"""So much of a hash is shown to people; commands take it as well as the whole."""

Place = Mapping[str, str | None]
"""Where a bundle serves: a page, and as what: `champion`, `fallback`, or an arm of a trial."""

_TOP = 10
_PASSED = {True: "passed", False: "refused", None: "-"}
# Nobody's id: what it is ranked by is what somebody gets of whom nothing is known.
_STRANGER = ""


def opened(given: argparse.Namespace) -> OpenProject:
    """Returns the project that a command is about."""
    return open_project(given.project, profile=given.profile)


# fit.


def fit(given: argparse.Namespace) -> None:
    """Fits a model from the lake as it is now, and says what the gate says of it."""
    with opened(given) as project:
        began_at = time.monotonic()
        with working(f"fitting {given.name} from the lake"):
            find_model(project, given.name)
            if CLICKS in project.topics.names():
                # What was clicked before the command is learned from.
                wait_for_lake(project)
            bundle = fit_model(project, given.name)
        seconds = time.monotonic() - began_at
        found = {**_summary(bundle), "seconds": round(seconds, 3), "serves": _find_places(project).get(bundle.hash, [])}
        gate = find_gate(project, bundle.hash)
    if given.json:
        print_lines([{**found, "gate": msgspec.to_builtins(gate)}])
        return
    print_facts(
        (
            ("bundle", found["hash"]),
            ("model", f"{found['name']}, {found['kind']}"),
            ("learned", f"{found['items']:,} items from {_rows_text(bundle.source)}"),
            ("from", _tables_text(bundle.source)),
            ("took", f"{seconds:.2f} s"),
            ("serves", _places_text(found["serves"])),
        )
    )
    if gate.report is not None:
        print_facts(gate_facts(gate))
        print_measures(gate.report)


def _summary(bundle: Bundle) -> dict[str, Any]:
    return {
        "hash": bundle.hash,
        "name": bundle.name,
        "kind": bundle.kind,
        "rows": bundle.source["rows"],
        "items": len(open_bundle(bundle).items),
        "versions": _versions(bundle.source),
        "fitted_us": bundle.source["at_us"],
    }


def _versions(source: Mapping[str, Any]) -> dict[str, int]:
    return {name: found["version"] for name, found in read_tables(source).items()}


def _tables_text(source: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}, version {version}" for name, version in _versions(source).items()) or "unknown"


def _rows_text(source: Mapping[str, Any]) -> str:
    rows = source.get("rows", 0)
    return f"{rows:,} viewed items, {source['clicks']:,} clicked" if "clicks" in source else f"{rows:,} clicks"


def gate_facts(gate: Gate) -> list[tuple[str, str]]:
    """Returns what the gate says, a line for each reason."""
    first = "✓ passes" if gate.passed else "✗ refuses"
    facts = [("gate", first), *(("", reason) for reason in gate.reasons)]
    if gate.report is not None and gate.report.idle:
        facts.append(("idle", f"{', '.join(gate.report.idle)}: the same in all rows, so without weight"))
    return facts


def print_measures(report: Report) -> None:
    """Prints what was measured after the split, side by side."""
    print()
    print_table(
        ("after the split", "log loss", "NDCG@10", "recall@3", "expected / came"),
        [
            (name, *measured(found))
            for name, found in (
                ("fitted before it", report.held_out),
                ("popularity before it", report.popularity),
                ("this bundle, fitted on all", report.bundle),
            )
        ],
    )


def measured(found: Measures | None) -> tuple[str, ...]:
    """Returns log loss, NDCG, recall and calibration as texts."""
    if found is None:
        return ("-",) * 4
    return f"{found.log_loss:.4f}", f"{found.ndcg:.3f}", f"{found.recall:.3f}", f"{found.calibration:.2f}"


# list.


def list_models(given: argparse.Namespace) -> None:
    """Lists the bundles, the newest first, with where each serves."""
    with opened(given) as project:
        rows = list_bundles(project)
        missing = [model.name for model in project.declared.models if model.name not in {row["name"] for row in rows}]
    if given.json:
        print_lines(rows)
        return
    print_table(
        ("model", "bundle", "kind", "size", "fitted at", "gate"),
        [
            (
                row["name"],
                row["hash"][:SHOWN_HASH],
                row["kind"],
                format_bytes(row["size"]),
                format_time(row["fitted_us"])[:19],
                _PASSED[row["passed"]],
            )
            for row in rows
        ],
        empty="no bundles yet",
    )
    serving = [(row, place) for row in rows for place in row["serves"]]
    if serving:
        print()
        print_table(
            ("page", "serves as", "model", "bundle"),
            [(place["page"], _role_text(place), row["name"], row["hash"][:SHOWN_HASH]) for row, place in serving],
        )
    for name in missing:
        print(f"{name} was not fitted yet. Fit it with: headrace model fit {name}")


def list_bundles(project: OpenProject) -> list[dict[str, Any]]:
    """Returns the bundles as `model list --json` shows them, the newest first."""
    places, gates = _find_places(project), _find_gates(project)
    return [_listed(fitted, places, gates) for fitted in project.registry.bundles()]


def _find_gates(project: OpenProject) -> dict[str, bool]:
    """Returns of each bundle that the gate was asked about whether it passed."""
    return {name: decode_gate(entry.value).passed for name, entry in project.registry.newest(GATE).items()}


def _listed(fitted: Fitted, places: Mapping[str, Sequence[Place]], gates: Mapping[str, bool]) -> dict[str, Any]:
    return {
        "name": fitted.name,
        "hash": fitted.hash,
        "kind": fitted.kind,
        "size": fitted.size,
        "fitted_us": fitted.at_us,
        "versions": _versions(msgspec.json.decode(fitted.manifest)["source"]),
        "passed": gates.get(fitted.hash),
        "serves": list(places.get(fitted.hash, ())),
    }


def _find_places(project: OpenProject) -> dict[str, list[Place]]:
    """Returns where each bundle serves, as an endpoint would decide now: on which pages, in which arms."""
    shelf = Shelf(lambda: project.registry, project.declared.pages)
    shelf.refresh()
    places: dict[str, list[Place]] = {}
    for page, serving in shelf.servings.items():
        for role, served in (("champion", serving.champion), ("fallback", serving.fallback), *serving.arms.items()):
            if served is not None:
                trial = serving.trial.id if serving.trial is not None and role in serving.arms else None
                places.setdefault(served.hash, []).append({"page": page, "role": role, "trial": trial})
    return places


def _role_text(place: Place) -> str:
    return str(place["role"]) if place["trial"] is None else f"{place['role']} of {place['trial']}"


def _places_text(places: Sequence[Place]) -> str:
    return ", ".join(f"{place['page']} as {_role_text(place)}" for place in places) or "nowhere"


# describe.


def describe_model(given: argparse.Namespace) -> None:
    """Says what a bundle holds, whence, and what it ranks first."""
    with opened(given) as project:
        found = describe_bundle(project, find_bundle(project, given.bundle))
    if given.json:
        print_lines([found])
        return
    _show(found)


def find_bundle(project: OpenProject, name: str) -> Fitted:
    """Returns the bundle of a hash or of its beginning, else the newest one of a model."""
    bundles = project.registry.bundles()
    begins = [one for one in bundles if one.hash.startswith(name)] if name else []
    if len(begins) > 1 and len(name) < SHOWN_HASH:
        raise CallError(f"{len(begins)} bundles begin with {name!r}; write more of the hash: headrace model list")
    named = [one for one in bundles if one.name == name]
    models = [model.name for model in project.declared.models]
    if not named and not begins and name in models:
        raise CallError(f"there is no bundle of {name!r} yet. Fit one with: headrace model fit {name}")
    if not named and not begins:
        raise unknown_name("bundle or model", name, {*models, *(one.name for one in bundles)})
    return (named or begins)[0]


def describe_bundle(project: OpenProject, fitted: Fitted) -> dict[str, Any]:
    """Returns a bundle as `model describe --json` shows it."""
    bundle = project.registry.load(fitted.hash)
    scorer = open_bundle(bundle)
    scores = scorer.scores(_STRANGER)
    top = [
        {"item": scorer.items[number], "category": scorer.categories[number], "score": float(scores[number])}
        for number in find_best(scores, min(_TOP, len(scorer.items))).tolist()
    ]
    fit, gate = find_fit(project, fitted.hash), read_offline_gate(project, fitted.hash)
    return {
        **_listed(fitted, _find_places(project), _find_gates(project)),
        "items": len(scorer.items),
        "manifest": msgspec.json.decode(fitted.manifest),
        "fit": msgspec.to_builtins(fit) if fit else None,
        "fitted_by": made.by if (made := project.registry.newest(FIT).get(fitted.hash)) else None,
        "gate": msgspec.to_builtins(gate) if gate else None,
        "top": top,
    }


def _show(found: Mapping[str, Any]) -> None:
    manifest = found["manifest"]
    source, parameters = manifest["source"], manifest["parameters"]
    columns = [column["name"] for column in parameters.get("columns", ())]
    print_facts(
        (
            ("bundle", found["hash"]),
            ("model", f"{found['name']}, {found['kind']}"),
            ("parameters", ", ".join(_parameter(*one) for one in parameters.items() if one[0] != "columns") or "none"),
            *([("features", ", ".join(columns))] if columns else []),
            ("size", f"{format_bytes(found['size'])}, {found['items']:,} items from {_rows_text(source)}"),
            ("fitted at", format_time(found["fitted_us"])),
            *_source_facts(source),
            *(_fit_facts(found["fit"], found["fitted_by"]) if found["fit"] else []),
            ("serves", _places_text(found["serves"])),
        )
    )
    if found["gate"]:
        gate = msgspec.convert(found["gate"], Gate)
        print_facts(gate_facts(gate))
        if gate.report is not None:
            print_measures(gate.report)
    print()
    print_table(
        ("array", "kind", "shape", "hash"),
        [
            (name, array["kind"], " x ".join(map(str, array["shape"])), array["hash"][:SHOWN_HASH])
            for name, array in manifest["arrays"].items()
        ],
    )
    print()
    print_table(
        ("rank", "item", "category", "score for a stranger"),
        [
            (rank, one["item"], one["category"] or "-", f"{one['score']:.4f}")
            for rank, one in enumerate(found["top"], start=1)
        ],
    )


def _parameter(name: str, value: Any) -> str:
    if name.endswith("_us"):
        return f"{name.removesuffix('_us')} {format_seconds(value / 1e6)}"
    return f"{name} {value}"


def _source_facts(source: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = []
    for name, table in read_tables(source).items():
        positions = ", ".join(f"{p}/{offset}" for p, offset in enumerate(table["positions"]))
        facts.append(("from", f"{name}, version {table['version']}"))
        facts.append(("positions", f"{positions} of topic {name} {table['incarnation']}"))
    return facts


def _fit_facts(fit: Mapping[str, Any], by: str) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in fit["environment"].items())
    return [
        ("took", f"{fit['seconds']:.2f} s, by {by}"),
        ("code", f"{fit['code']}, seed {fit['seed']}"),
        ("on", versions),
    ]
