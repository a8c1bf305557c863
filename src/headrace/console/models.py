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
from headrace.learn import find_model, wait_for_lake
from headrace.learn import fit as fit_model
from headrace.models import Bundle, open_bundle
from headrace.models.registry import Fitted
from headrace.project import OpenProject, open_project

SHOWN_HASH = 12
"""So much of a hash is shown to people; commands take it as well as the whole."""

Place = Mapping[str, str | None]
"""Where a bundle serves: a page, and the trial and arm if it is not the page's fallback."""

_TOP = 10
# Nobody's id: what it is ranked by is what somebody gets of whom nothing is known.
_STRANGER = ""


def _opened(given: argparse.Namespace) -> OpenProject:
    return open_project(given.project, profile=given.profile)


# fit.


def fit(given: argparse.Namespace) -> None:
    """Fits a model from the lake as it is now."""
    with _opened(given) as project:
        began_at = time.monotonic()
        with working(f"fitting {given.name} from the lake"):
            find_model(project, given.name)
            if CLICKS in project.topics.names():
                # What was clicked before the command is learned from.
                wait_for_lake(project)
            bundle = fit_model(project, given.name)
        seconds = time.monotonic() - began_at
        found = {**_summary(bundle), "seconds": round(seconds, 3), "serves": _find_places(project).get(bundle.hash, [])}
    if given.json:
        print_lines([found])
        return
    print_facts(
        (
            ("bundle", found["hash"]),
            ("model", f"{found['name']}, {found['kind']}"),
            ("learned", f"{found['items']:,} items from {found['rows']:,} clicks"),
            ("from", f"{found['table']}, version {found['version']}"),
            ("took", f"{seconds:.2f} s"),
            ("serves", _places_text(found["serves"])),
        )
    )


def _summary(bundle: Bundle) -> dict[str, Any]:
    source = bundle.source
    return {
        "hash": bundle.hash,
        "name": bundle.name,
        "kind": bundle.kind,
        "rows": source["rows"],
        "items": len(open_bundle(bundle).items),
        "table": source["table"],
        "version": source["version"],
        "fitted_us": source["at_us"],
    }


# list.


def list_models(given: argparse.Namespace) -> None:
    """Lists the bundles, the newest first, with where each serves."""
    with _opened(given) as project:
        places = _find_places(project)
        rows = [_listed(fitted, places) for fitted in project.registry.bundles()]
        missing = [model.name for model in project.declared.models if model.name not in {row["name"] for row in rows}]
    if given.json:
        print_lines(rows)
        return
    print_table(
        ("model", "bundle", "kind", "size", "fitted at", "version"),
        [
            (
                row["name"],
                row["hash"][:SHOWN_HASH],
                row["kind"],
                format_bytes(row["size"]),
                format_time(row["fitted_us"])[:19],
                row["version"],
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


def _listed(fitted: Fitted, places: Mapping[str, Sequence[Place]]) -> dict[str, Any]:
    source = msgspec.json.decode(fitted.manifest)["source"]
    return {
        "name": fitted.name,
        "hash": fitted.hash,
        "kind": fitted.kind,
        "size": fitted.size,
        "fitted_us": fitted.at_us,
        "version": source.get("version"),
        "serves": list(places.get(fitted.hash, ())),
    }


def _find_places(project: OpenProject) -> dict[str, list[Place]]:
    """Returns where each bundle serves, as an endpoint would decide now: on which pages, in which arms."""
    shelf = Shelf(lambda: project.registry, project.declared.pages)
    shelf.refresh()
    places: dict[str, list[Place]] = {}
    for page, serving in shelf.servings.items():
        if serving.fallback is not None:
            places.setdefault(serving.fallback.hash, []).append({"page": page, "trial": None, "arm": None})
        for arm, served in serving.arms.items():
            assert serving.trial is not None
            places.setdefault(served.hash, []).append({"page": page, "trial": serving.trial.id, "arm": arm})
    return places


def _role_text(place: Place) -> str:
    return "fallback" if place["arm"] is None else f"{place['arm']} of {place['trial']}"


def _places_text(places: Sequence[Place]) -> str:
    return ", ".join(f"{place['page']} as {_role_text(place)}" for place in places) or "nowhere"


# describe.


def describe_model(given: argparse.Namespace) -> None:
    """Says what a bundle holds, whence, and what it ranks first."""
    with _opened(given) as project:
        found = _described(project, _find_bundle(project, given.bundle))
    if given.json:
        print_lines([found])
        return
    _show(found)


def _find_bundle(project: OpenProject, name: str) -> Fitted:
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


def _described(project: OpenProject, fitted: Fitted) -> dict[str, Any]:
    bundle = project.registry.load(fitted.hash)
    scorer = open_bundle(bundle)
    scores = scorer.scores(_STRANGER)
    top = [
        {"item": scorer.items[number], "category": scorer.categories[number], "score": float(scores[number])}
        for number in find_best(scores, min(_TOP, len(scorer.items))).tolist()
    ]
    return {
        **_listed(fitted, _find_places(project)),
        "items": len(scorer.items),
        "manifest": msgspec.json.decode(fitted.manifest),
        "top": top,
    }


def _show(found: Mapping[str, Any]) -> None:
    manifest = found["manifest"]
    source = manifest["source"]
    positions = ", ".join(f"{p}/{offset}" for p, offset in enumerate(source.get("positions", ())))
    print_facts(
        (
            ("bundle", found["hash"]),
            ("model", f"{found['name']}, {found['kind']}"),
            ("parameters", ", ".join(_parameter(*one) for one in manifest["parameters"].items()) or "none"),
            ("size", f"{format_bytes(found['size'])}, {found['items']:,} items from {source.get('rows', 0):,} clicks"),
            ("fitted at", format_time(found["fitted_us"])),
            ("from", f"{source.get('table')}, version {source.get('version')}"),
            ("positions", f"{positions} of topic {source.get('table')} {source.get('incarnation')}"),
            ("serves", _places_text(found["serves"])),
        )
    )
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
