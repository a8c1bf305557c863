"""Models: what was fitted, from what, how good it is, and where it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from headrace.base.errors import DeadlineError, HeadraceError, StopError, UnavailableError
from headrace.base.http import Request, Response
from headrace.base.process import Companion, Life, Program
from headrace.base.telemetry import get_logger
from headrace.console import charts
from headrace.console.desk import Desk, button, lazily, pending, segment
from headrace.console.figures import count_of, format_bytes, format_seconds
from headrace.console.frame import (
    NOTHING,
    Html,
    Sheet,
    badge,
    code,
    empty,
    facts,
    figures,
    link,
    offsets,
    panel,
    put,
    table,
    tag,
    when,
)
from headrace.console.guard import audited, read_form, see
from headrace.project import open_project
from headrace.work import find_pipeline, run_pipeline

_LEAD = "Every bundle that was fitted, what the gate says of it, and what serves each page."
_NEXT = ("/experiments", "where visitors decide between two of them")
_GATES = {True: ("good", "passed"), False: ("bad", "refused"), None: ("", "not asked")}
_STATES = {"done": "good", "failed": "bad", "running": "warn"}
_RUN_SECONDS = 3600.0
_BEGINNING_SECONDS = 20.0
_LOOK_SECONDS = 0.2
_MOST_SHOWN = 12


class Models:
    """The pages /models and /models/BUNDLE, and the forms on them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._runs: set[asyncio.Task[None]] = set()

    async def all(self, request: Request) -> Sheet:
        """Returns what serves, the bundles, and what pipelines do."""
        sheet = Sheet("/models", "Models", _LEAD, NOTHING, _NEXT)
        found = await self._desk.ask(request, "models")
        if found is None:
            return pending(request, sheet, "Opening the registry")
        return replace(
            sheet, body=put(_serving(request, found), _bundles(found), _pipelines(request, found), _history(found))
        )

    async def one(self, request: Request) -> Sheet:
        """Returns the card of one bundle."""
        name = segment(request, "models")
        sheet = Sheet("/models", "Model", "What a bundle learned, from what, and how good it is.", NOTHING, _NEXT,
                      crumb=link("Models", "/models"))  # fmt: skip
        if "calibration" in request.query:
            return replace(sheet, body=await self._calibrate(request, name))
        found = await self._desk.ask(request, "model", bundle=name)
        if found is None:
            return pending(request, sheet, "Opening the registry")
        lead = put(f"A bundle of the model {found['name']}, ", _places(found["serves"]), ".")
        return replace(sheet, title=f"{found['name']} {found['hash'][:12]}", lead=lead, body=_card(found))

    async def _calibrate(self, request: Request, name: str) -> Html:
        try:
            return _calibration(await self._desk.ask(request, "calibration", bundle=name))
        except HeadraceError as error:
            return panel("Calibration", note=f"It cannot be drawn: {error}", id="calibration")

    async def roll_back(self, request: Request) -> Response:
        """Lets a page be served by what served it before, and shows what serves it now."""
        form = read_form(request)
        page, bundle = form.get("page", ""), form.get("bundle", "")
        async with audited(request, "model rollback", subject=page, given={"bundle": bundle}):
            await self._desk.changer.ask("roll back", page=page, bundle=bundle)
        return see("/models")

    async def run_pipeline(self, request: Request) -> Response:
        """Begins a run of a pipeline in a process of its own, and shows that it runs."""
        name = read_form(request).get("pipeline", "")
        find_pipeline(self._desk.project, name)
        async with audited(request, "pipeline run", subject=name) as outcome:
            outcome.text = "begun"
            run = asyncio.create_task(_watch(name, await self._begin(name)))
            self._runs.add(run)
            run.add_done_callback(self._runs.discard)
        return see("/models")

    async def _begin(self, name: str) -> Companion:
        """Returns a run that has begun; raises StopError for one that has not, as while another one goes on."""
        project = self._desk.project
        arguments = {"folder": str(project.folder), "profile": project.profile.name, "pipeline": name}
        program = Program(f"run-{name}", "headrace.console.page_models:run_apart", arguments)
        # In this thread: the kernel ends a child with the thread that has begun it.
        run = Companion(program)
        try:
            await asyncio.to_thread(run.wait_ready, _BEGINNING_SECONDS)
        except DeadlineError:
            get_logger("console").warning("a run of %s takes long to begin", name)
        except UnavailableError as error:
            await asyncio.to_thread(run.__exit__, None, None, None)
            raise StopError(
                f"no run of {name!r} has begun, and the log says why. Another one may go on: headrace pipeline status"
            ) from error
        return run

    async def close(self) -> None:
        """Ends what runs; it is gone on with by the runner, or by the next run."""
        runs = list(self._runs)
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)


async def _watch(name: str, run: Companion) -> None:
    """Returns once a run is over, or was ended because it took too long."""
    try:
        async with asyncio.timeout(_RUN_SECONDS):
            while run.poll() is None:
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        get_logger("console").error("a run of %s took more than %g s and is ended", name, _RUN_SECONDS)
    finally:
        await asyncio.to_thread(run.__exit__, None, None, None)


def run_apart(life: Life, *, folder: str, profile: str, pipeline: str) -> None:
    """Runs a pipeline once; it is ready when its first step has begun, with the run in the history."""
    with open_project(folder, profile=profile) as project:
        run_pipeline(project, find_pipeline(project, pipeline), told=lambda _: life.tell_ready())
        life.tell_ready()


# What stands on /models.


def _serving(request: Request, found: Mapping[str, Any]) -> Html:
    rows = []
    for one in found["champions"]:
        champion = one["champion"]
        if champion is None or not champion["bundle"]:
            rows.append((tag("strong", one["page"]), put("its fallback, the newest ", one["fallback"]), "-", "", ""))
            continue
        name = link(put(champion["model"], " ", code(champion["bundle"], short=True)), f"/models/{champion['bundle']}")
        why = put(champion["reason"], _of_trial(champion["trial"])) if champion["reason"] else champion["how"]
        form = button(request, "Roll back", "/models/roll-back", page=one["page"], bundle=champion["bundle"])
        rows.append((tag("strong", one["page"]), name, champion["how"], tag("span", why), form))
    if not rows:
        return NOTHING
    heads = ("page", "served by", "promoted by", "why", "")
    return panel("What serves", table("What serves each page", heads, rows, wide=3))


def _of_trial(trial: str | None) -> Html:
    return put(", in ", link(trial, f"/experiments/{trial.rpartition('-')[0]}")) if trial else NOTHING


def _bundles(found: Mapping[str, Any]) -> Html:
    missing = found["missing"]
    if not found["bundles"]:
        if not missing:
            return empty("No models", "No page or pipeline of project.py names a model: give a Carousel rank=.")
        return empty(
            "Nothing fitted yet",
            f"{', '.join(missing)} learn from the lake; a pipeline fits them in time, and so does the command.",
            f"headrace model fit {missing[0]}",
        )
    rows = [
        (
            link(one["name"], f"/models/{one['hash']}"),
            code(one["hash"], short=True),
            one["kind"],
            when(one["fitted_us"]),
            badge(*_GATES[one["passed"]]),
            tag("span", _places(one["serves"]) if one["serves"] else "-", class_="keep"),
            format_bytes(one["size"]),
        )
        for one in _shown(found["bundles"])
    ]
    heads = ("model", "bundle", "kind", "fitted", "offline gate", "serves", "size")
    notes: list[object] = []
    if len(found["bundles"]) > len(rows):
        notes = [f"The newest {_MOST_SHOWN}, and those that serve; all: ", tag("code", "headrace model list"), ". "]
    if missing:
        fit = tag("code", f"headrace model fit {missing[0]}")
        notes += ["Not fitted yet: ", ", ".join(missing), ". Fit with ", fit]
    return panel("Bundles", table("Bundles", heads, rows, numbers=(6,)), note=put(*notes))


def _shown(bundles: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [one for number, one in enumerate(bundles) if number < _MOST_SHOWN or one["serves"]]


def _places(serves: Sequence[Mapping[str, Any]]) -> Html:
    if not serves:
        return put("serving nowhere")
    return put(", ".join(f"{one['role']} of {one['trial'] or 'the page ' + one['page']}" for one in serves))


def _pipelines(request: Request, found: Mapping[str, Any]) -> Html:
    if not found["pipelines"]:
        return empty(
            "No pipelines", "project.py declares none, so models are fitted by hand only: Pipeline(every=...)."
        )
    rows = [
        (
            tag("strong", one["pipeline"]),
            tag("span", f"every {one['every']}", class_="keep"),
            put(" → ".join([*one["steps"], *([one["then"]] if one["then"] else [])])),
            badge(_STATES.get(one["state"], ""), one["state"]),
            tag("span", _due(one), class_="keep"),
            tag("span", one["error"] or one["note"]),
            button(request, "Run now", "/pipelines/run", pipeline=one["pipeline"]),
        )
        for one in found["pipelines"]
    ]
    heads = ("pipeline", "runs", "steps", "last run", "next", "noted", "")
    return panel("Pipelines", table("Pipelines", heads, rows, wide=5))


def _due(one: Mapping[str, Any]) -> str:
    if one["runner"] == "stopped":
        return "never: the runner is stopped"
    waits_us = one["next_us"] - one["now_us"]
    return "now" if waits_us <= 0 else f"in {format_seconds(waits_us / 1e6)}"


def _history(found: Mapping[str, Any]) -> Html:
    rows = [(when(one["at_us"]), one["pipeline"], _what(one)) for one in found["history"]]
    if not rows:
        return NOTHING
    return panel("What pipelines did", table("History of pipelines", ("at", "pipeline", "what"), rows, wide=2))


def _what(one: Mapping[str, Any]) -> object:
    if one["kind"] == "note":
        return one["text"]
    steps = ", ".join(f"{step['name']} {step['state']}" for step in one["steps"])
    return put(badge(_STATES.get(one["state"], ""), f"run {one['number']} {one['state']}"), " ", one["error"] or steps)


# The card.


def _card(found: Mapping[str, Any]) -> Html:
    gate = found["gate"]
    report = gate["report"] if gate else None
    return put(
        _summary(found, report),
        _gate(gate),
        _measures(report) if report else NOTHING,
        tag("div", _weights(found), _calibration_later(found), class_="pair") if found["weights"] else NOTHING,
        _source(found),
        tag("div", _top(found), _lineage(found), class_="pair"),
    )


def _summary(found: Mapping[str, Any], report: Mapping[str, Any] | None) -> Html:
    source = found["manifest"]["source"]
    learned = ("Learned from", f"{source.get('rows', 0):,}", "clicks")
    if "clicks" in source:
        learned = ("Learned from", f"{source['rows']:,}", f"viewed items, {source['clicks']:,} clicked")
    shown = [("Items it ranks", f"{found['items']:,}", format_bytes(found["size"])), learned]
    if report and report["held_out"] and report["popularity"]:
        held, popular = report["held_out"]["ndcg"], report["popularity"]["ndcg"]
        shown.append(("NDCG@10", f"{held:.3f}", f"popularity has {popular:.3f}"))
        shown.append(("Calibration", f"{report['held_out']['calibration']:.2f}", "clicks expected for each that came"))
    if found["fit"]:
        shown.append(("Fitted in", format_seconds(found["fit"]["seconds"]), f"by {found['fitted_by']}"))
    return figures(shown)


def _gate(gate: Mapping[str, Any] | None) -> Html:
    if gate is None:
        return panel("Offline gate", note="It was not asked about this bundle, so no trial may begin with it.")
    kind, text = ("good", "It may meet visitors in a trial") if gate["passed"] else ("bad", "It may not meet visitors")
    reasons = tag("ul", *[tag("li", reason) for reason in gate["reasons"]], class_="reasons")
    return panel("Offline gate", tag("p", badge(kind, text), class_="say"), reasons)


def _measures(report: Mapping[str, Any]) -> Html:
    rows = [
        (name, *([f"{one['log_loss']:.4f}", f"{one['ndcg']:.3f}", f"{one['recall']:.3f}", f"{one['calibration']:.2f}"]
                 if (one := report[key]) else ["-"] * 4))
        for name, key in (
            ("fitted before the split", "held_out"),
            ("popularity before the split", "popularity"),
            ("this bundle, fitted on all", "bundle"),
        )
    ]  # fmt: skip
    note = (
        f"{count_of(report['judged'], 'viewed item')} of {count_of(report['pages'], 'page')} since the split were "
        f"judged, {report['clicks']:,} of them clicked; what came before it was learned from."
    )
    heads = ("what ranks", "log loss", "NDCG@10", "recall@3", "expected by came")
    return panel("Against popularity", table("Measures", heads, rows, numbers=(1, 2, 3, 4)), note=note)


def _weights(found: Mapping[str, Any]) -> Html:
    ordered = sorted(found["weights"], key=lambda one: -abs(one["weight"]))
    rows = [(one["name"], one["weight"], f"{one['weight']:+.3f}") for one in ordered]
    note = "The change of the log-odds of a click when a feature grows by its own spread; 0 was the same in all."
    return panel("Features and their weights", charts.bars(rows, label="Weight of each feature"), note=note)


def _calibration_later(found: Mapping[str, Any]) -> Html:
    place = f"/models/{found['hash']}?calibration=1"
    return lazily(place, "calibration", "Reading the rows that were judged, which takes some seconds")


def _calibration(found: Mapping[str, Any] | None) -> Html:
    if not found or not found["bins"]:
        return panel("Calibration", note="Nothing to draw: the model cannot be judged by rows.", id="calibration")
    points = [(one["expected"], one["came"]) for one in found["bins"]]
    drawn = charts.calibration(
        points, label="Clicks that came, by the chance that was given", form=lambda v: f"{100 * v:g} %"
    )
    note = (
        f"Along: the chance of a click that the bundle gives. Up: the share that was clicked. {found['rows']:,} viewed "
        "items in ten groups; on the dashed line both are the same."
    )
    return panel("Calibration", drawn, note=note, id="calibration")


def _source(found: Mapping[str, Any]) -> Html:
    source, fit = found["manifest"]["source"], found["fit"]
    tables = [
        ("From", put(link(name, f"/tables/{name}"), f", version {one['version']}, up to ",
                     offsets(one["positions"])))
        for name, one in source.get("tables", {}).items()
    ]  # fmt: skip
    made: list[tuple[str, object]] = [("Data up to", when(source.get("at_us"))), ("Fitted", when(found["fitted_us"]))]
    if fit:
        made += [("Code", code(fit["code"])), ("Seed", fit["seed"])]
        made += [("On", ", ".join(f"{name} {version}" for name, version in fit["environment"].items()))]
    again = ("Make it again", tag("code", f"headrace model reproduce {found['hash'][:12]}"))
    note = "Data, code and machine, so that the same bytes can be fitted again."
    return panel("Where it comes from", facts([("Bundle", code(found["hash"])), *tables, *made, again]), note=note)


def _top(found: Mapping[str, Any]) -> Html:
    rows = [(number, tag("code", one["item"]), one["category"] or "-", f"{one['score']:.4f}")
            for number, one in enumerate(found["top"], start=1)]  # fmt: skip
    listed = table("What it ranks first", ("rank", "item", "category", "score"), rows, numbers=(0, 3))
    return panel("What a stranger would see", listed, note="Ranked for somebody of whom nothing is known.")


def _lineage(found: Mapping[str, Any]) -> Html:
    rows = [
        (tag("strong", code(one["hash"], short=True)) if one["hash"] == found["hash"]
         else link(code(one["hash"], short=True), f"/models/{one['hash']}"),
         when(one["fitted_us"]), ", ".join(f"{name} {version}" for name, version in one["versions"].items()),
         badge(*_GATES[one["passed"]]))
        for one in found["lineage"]
    ]  # fmt: skip
    trials = [put(link(one["id"], f"/experiments/{one['experiment']}"), " ") for one in found["trials"]]
    walk = tag("p", link("Walk from here, both ways", "/lineage", id=found["hash"]))
    heads = ("bundle", "fitted", "from versions", "gate")
    tested = tag("p", "Tested in ", *trials) if trials else tag("p", "In no trial yet.")
    return panel("Bundles of this model", table("Versions", heads, rows), tested, walk)
