"""The tree of commands, as data; each imports what it needs when it is called."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from headrace.base.errors import HeadraceError

EXIT_CODES = "exit codes: 0 done, 1 the answer is no, 2 the call is wrong, 3 something outside is unavailable"


@dataclass(frozen=True)
class Argument:
    """One argument or option of a command."""

    names: tuple[str, ...]
    help: str
    options: dict[str, Any] = field(default_factory=dict)


def _never(_: argparse.Namespace) -> bool:
    return False


def _always(_: argparse.Namespace) -> bool:
    return True


@dataclass(frozen=True)
class Command:
    """One command: its words, the function that does it, and what it takes."""

    words: str
    target: str
    help: str
    arguments: tuple[Argument, ...] = ()
    changes: Callable[[argparse.Namespace], Any] = _never
    """Whether a call changes something that others rely on, and so stands in the audit log."""


def _option(*names: str, text: str, **options: Any) -> Argument:
    return Argument(names, text, options)


JSON = _option("--json", text="print JSON, one object per line", action="store_true")
TOPIC = _option("topic", text="the topic's name")
TABLE = _option("name", text="the table's name", metavar="NAME")
USER = _option("name", text="the user's name", metavar="NAME")
EXPERIMENT = _option("name", text="the experiment's name in project.py", metavar="NAME")

COMMON = (
    _option("--project", text="the project's folder (default: the one you are in)", metavar="DIR", default="."),
    _option("--profile", text="the profile in headrace.toml (default: laptop, or HEADRACE_PROFILE)", metavar="NAME"),
)

COMMANDS = (
    Command(
        "init",
        "headrace.console.init:init",
        "write the smallest useful project into a folder",
        (
            _option("dir", text="the folder to make", metavar="DIR"),
            _option("--empty", text="declare no events", action="store_true"),
        ),
    ),
    Command(
        "demo",
        "headrace.console.demo:demo",
        "play the whole loop on a simulated product, from click to lift; exit code 1 if a check of it fails",
        (
            _option("--seconds", text="how long the verdict is waited for (default 120)", type=float, default=120.0),
            _option("--seed", text="the world's seed (default 1)", type=int, default=1),
            _option(
                "--personalisation",
                text="how far tastes differ, 0 for not at all (default 0.75)",
                type=float,
                default=0.75,
            ),
            _option("--once", text="end at the verdict, rather than at Ctrl-C", action="store_true"),
            _option("--no-browser", text="open no page in a browser", action="store_true"),
            _option("--dir", text="keep the demo's project in this folder", metavar="DIR"),
            JSON,
        ),
    ),
    Command(
        "up",
        "headrace.console.roles:up",
        "run the project's roles under one supervisor",
        (
            _option(
                "roles",
                text="the roles to run (default: all; endpoint and console only if it declares a page)",
                nargs="*",
                metavar="ROLE",
            ),
            JSON,
        ),
    ),
    Command(
        "status", "headrace.console.roles:status", "say what runs, how far readers lag, what the disk holds", (JSON,)
    ),
    Command(
        "plan",
        "headrace.console.plan:plan",
        "say what a profile needs, whether it can be reached and what would be made; it changes nothing",
        (JSON,),
    ),
    Command(
        "explain",
        "headrace.console.explain:explain",
        "walk back to what something came from, and on to what came of it; exit code 1 if nothing is known of it",
        (
            _option(
                "id",
                text="a recommendation_id, a messageId, a bundle's hash or model, a trial, or PERSON/ITEM",
                nargs="?",
                metavar="ID",
            ),
            _option("--openlineage", text="print all that is recorded as OpenLineage run events", action="store_true"),
            _option("--since", text="with --openlineage: of the time before now, such as 1d", metavar="TIME"),
            JSON,
        ),
    ),
    Command(
        "key create",
        "headrace.console.keys:create",
        "let somebody log in to the console; the password is asked for",
        (
            USER,
            _option(
                "--console",
                text="what the user may do there: viewer, operator or admin",
                choices=("viewer", "operator", "admin"),
                required=True,
            ),
            _option("--password-stdin", text="read the password as a line from stdin", action="store_true"),
            JSON,
        ),
        changes=_always,
    ),
    Command(
        "key list", "headrace.console.keys:list_keys", "list who may log in, and the names of the write keys", (JSON,)
    ),
    Command(
        "key revoke",
        "headrace.console.keys:revoke",
        "take a user of the console away, who is logged out at once",
        (USER,),
        changes=_always,
    ),
    Command(
        "verify",
        "headrace.console.verify:verify",
        "play the whole loop in worlds whose truth is known, and judge every room; exit code 1 if a check fails",
        (
            _option("--worlds", text="how many worlds (default 1)", type=int, default=1),
            _option("--seed", text="the first world's seed, the others follow (default 1)", type=int, default=1),
            _option("--visitors", text="how many come to a world (default 900)", type=int, default=900),
            _option(
                "--personalisation",
                text="how far tastes differ, 0 for not at all (default 0.75)",
                type=float,
                default=0.75,
            ),
            _option("--processes", text="how many worlds at once (default: one for each core)", type=int),
            _option("--dir", text="keep the worlds' projects in this folder", metavar="DIR"),
            JSON,
        ),
    ),
    Command(
        "break",
        "headrace.console.breaks:break_it",
        "do a running project harm on purpose, and show the alert that comes of it; exit code 1 if none comes",
        (
            _option("fault", text="duplicate, late, skew, srm, bots, drift, kill or disk", metavar="FAULT"),
            _option("--seconds", text="how long the alert is waited for (default 60)", type=float, default=60.0),
            _option("--role", text="whose process kill kills (default: settler)", default="settler"),
            _option("--key", text="the write key that events are sent with (default: dev)", default="dev"),
            _option("--yes", text="let disk take more than 5 GB for a moment", action="store_true"),
            JSON,
        ),
        changes=_always,
    ),
    Command(
        "topic create",
        "headrace.console.topics:create",
        "make a topic",
        (
            TOPIC,
            _option("--partitions", text="how many partitions, for ever (default 4)", type=int, default=4),
            _option("--retention-days", text="forget records after this long (default: never)", type=float),
        ),
        changes=_always,
    ),
    Command(
        "topic alter",
        "headrace.console.topics:alter",
        "change how long a topic keeps its records",
        (
            TOPIC,
            _option("--retention-days", text="forget records after this long; 0 is never", type=float, required=True),
        ),
        changes=_always,
    ),
    Command("topic list", "headrace.console.topics:list_topics", "list the topics with their sizes", (JSON,)),
    Command(
        "topic tail",
        "headrace.console.topics:tail",
        "show live messages as they come, until Ctrl-C",
        (
            TOPIC,
            _option("--last", text="begin this many records before the end (default 0)", type=int, default=0),
            _option("--max", text="stop after this many records", type=int),
            JSON,
        ),
    ),
    Command(
        "topic read",
        "headrace.console.topics:read",
        "print what a topic holds, from the start or an instant to the present end",
        (
            TOPIC,
            _option(
                "--from",
                text="earliest, an offset, or an instant like 2026-11-21T12:00",
                dest="start",
                default="earliest",
            ),
            _option("--partition", text="only this partition", type=int),
            _option("--max", text="stop after this many records", type=int),
            JSON,
        ),
    ),
    Command(
        "topic append",
        "headrace.console.topics:append",
        "append lines from stdin: plain values, or with --json objects with key, value, time_us, headers",
        (TOPIC, _option("--key", text="the key of all records"), JSON),
    ),
    Command(
        "topic replay",
        "headrace.console.topics:replay",
        "move a group's positions, which stops its running consumer, or let a table go on with a topic made anew",
        (
            TOPIC,
            _option("--group", text="the consumer group to move"),
            _option("--to", text="with --group: earliest, latest, an offset, or an instant like 2026-11-21T12:00"),
            _option("--fresh", text="empty this table and fill it from the topic's beginning", metavar="TABLE"),
            _option(
                "--continue",
                text="keep this table's rows and go on with what the topic holds",
                metavar="TABLE",
                dest="go_on",
            ),
            JSON,
        ),
        changes=_always,
    ),
    Command(
        "topic groups",
        "headrace.console.topics:groups",
        "list the groups that read a topic, with their positions and lag",
        (TOPIC, JSON),
    ),
    Command("table list", "headrace.console.tables:list_tables", "list the tables with their sizes and lag", (JSON,)),
    Command(
        "table describe",
        "headrace.console.tables:describe_table",
        "say what a table or view holds, whence it comes and how far it is",
        (TABLE, JSON),
    ),
    Command(
        "table history",
        "headrace.console.tables:history",
        "list the versions of a table, the newest first",
        (TABLE, _option("--limit", text="at most this many (default 20)", type=int, default=20), JSON),
    ),
    Command(
        "table sql",
        "headrace.console.sql:sql",
        "answer one SELECT over tables and views; it can read them and do nothing else",
        (
            _option("sql", text="one SELECT in DuckDB's dialect, or - for stdin", metavar="SQL"),
            _option("--csv", text="print CSV with a header", action="store_true"),
            _option("--parquet", text="write a Parquet file", metavar="FILE"),
            _option("--max", text="stop after this many rows (default: all, 40 where people read)", type=int),
            _option("--at", text="ask the tables as they were at a version, or at an instant", metavar="PLACE"),
            JSON,
        ),
    ),
    Command(
        "table load",
        "headrace.console.load:load",
        "load a file of items or users into the dimension that knows them: all of its rows or none",
        (
            _option("file", text="a CSV, JSON lines or Parquet file", metavar="FILE"),
            _option("--table", text="the dimension's name in project.py", metavar="NAME", required=True),
            _option(
                "--format", text="what the file is (default: as its suffix says)", choices=("csv", "jsonl", "parquet")
            ),
            JSON,
        ),
        changes=_always,
    ),
    Command(
        "table failed",
        "headrace.console.failed:failed",
        "list the events that stand as failed, or give them a second chance",
        (
            _option("--reason", text="only those that failed for this reason"),
            _option("--event", text="only those of this event", metavar="NAME"),
            _option("--group", text="count them by reason, with an example each", action="store_true"),
            _option("--replay", text="append them to clicks again; each comes in once at most", action="store_true"),
            _option("--max", text="at most this many (default: all, 20 where people read)", type=int),
            JSON,
        ),
        changes=lambda given: given.replay,
    ),
    Command(
        "table pin",
        "headrace.console.tables:pin",
        "keep a version of a table from being removed; without options list what is kept",
        (
            TABLE,
            _option("--owner", text="whom to ask about the pin"),
            _option("--reason", text="what the version is kept for"),
            _option("--version", text="the version (default: the newest)", type=int),
            _option("--remove", text="take this pin away", metavar="ID"),
            JSON,
        ),
        changes=lambda given: given.owner or given.remove,
    ),
    Command(
        "table maintain",
        "headrace.console.tables:maintain",
        "merge small files and write a checkpoint now, rather than when the keeper comes to it",
        (
            _option("name", text="the table's name (default: all)", nargs="?", metavar="NAME"),
            _option(
                "--vacuum", text="also delete files that only old versions need; pins refuse it", action="store_true"
            ),
            _option("--dry-run", text="only say what --vacuum would delete", action="store_true"),
            _option(
                "--keep-days",
                text="how old a version may be and still be readable (default 7)",
                type=float,
                default=7.0,
            ),
            JSON,
        ),
        changes=lambda given: not given.dry_run,
    ),
    Command(
        "feature get",
        "headrace.console.online:get",
        "show what a page made now would know of a person and of items",
        (
            _option("--person", text="the user, else the visitor", required=True),
            _option("--item", text="an item's id; several times for several", action="append", default=[]),
            JSON,
        ),
    ),
    Command(
        "feature backfill",
        "headrace.console.online:backfill",
        "make the online store anew from the lake, beside what serves, and let that serve",
        (JSON,),
        changes=_always,
    ),
    Command(
        "feature list",
        "headrace.console.features:list_features",
        "list the features that models read, a line for each window",
        (JSON,),
    ),
    Command(
        "feature describe",
        "headrace.console.features:describe_feature",
        "say what a feature counts, of whom, and over which windows",
        (_option("name", text="the feature's name in project.py, or that of one of its columns", metavar="NAME"), JSON),
    ),
    Command(
        "feature join",
        "headrace.console.features:join",
        "add to the labels of a file the features as they were known at the instant of each",
        (
            _option("labels", text="a .csv or .parquet file with at_us or at, and person, item ...", metavar="FILE"),
            _option("--features", text="the features to add, by their names", metavar="A,B", required=True),
            _option("--out", text="write a .parquet or .csv file", metavar="FILE"),
            JSON,
        ),
    ),
    Command(
        "feature diff",
        "headrace.console.features:diff",
        "compare what decisions were made of with what the lake gives; exit code 1 if any value differs",
        (
            _option(
                "--since", text="only decisions of this long before now, such as 1d (default: all)", metavar="TIME"
            ),
            _option("--page", text="only decisions of this page", metavar="NAME"),
            JSON,
        ),
    ),
    Command(
        "model fit",
        "headrace.console.models:fit",
        "fit a model from the lake as it is now; the newest fit serves where the project says",
        (_option("name", text="the model's name in project.py", metavar="NAME"), JSON),
        changes=_always,
    ),
    Command(
        "model list",
        "headrace.console.models:list_models",
        "list what was fitted, and where each of it serves",
        (JSON,),
    ),
    Command(
        "model describe",
        "headrace.console.models:describe_model",
        "say what a bundle was fitted from, what it holds and what it ranks first",
        (
            _option(
                "bundle",
                text="a bundle's hash or the beginning of it, or a model's name for its newest",
                metavar="HASH_OR_NAME",
            ),
            JSON,
        ),
    ),
    Command(
        "model compare",
        "headrace.console.bundles:compare",
        "show two bundles side by side, with what the gate measured of each",
        (
            _option("one", text="a bundle's hash or its beginning, or a model's name", metavar="A"),
            _option("other", text="the other one", metavar="B"),
            JSON,
        ),
    ),
    Command(
        "model promote",
        "headrace.console.bundles:promote",
        "let a bundle serve a page as its champion; exit code 1 if the gate refuses it",
        (
            _option("bundle", text="a bundle's hash or its beginning, or a model's name", metavar="HASH_OR_NAME"),
            _option("--page", text="the page's name in project.py", metavar="NAME", required=True),
            _option("--force", text="promote it even if the gate refuses", action="store_true"),
            JSON,
        ),
        changes=_always,
    ),
    Command(
        "model rollback",
        "headrace.console.bundles:roll_back",
        "let the champion before serve a page again, or its fallback if there was none",
        (
            _option("page", text="the page's name in project.py", metavar="PAGE"),
            _option("--reason", text="why, in a sentence; it stands in the registry", default="", metavar="TEXT"),
            JSON,
        ),
        changes=_always,
    ),
    Command(
        "model reproduce",
        "headrace.console.bundles:reproduce_model",
        "fit a bundle again from its pinned rows; exit code 1 if other bytes come of it",
        (
            _option("bundle", text="a bundle's hash or its beginning, or a model's name", metavar="HASH_OR_NAME"),
            JSON,
        ),
    ),
    Command(
        "experiment list",
        "headrace.console.experiments:list_experiments",
        "list the experiments that the project declares, with what became of each",
        (JSON,),
    ),
    Command(
        "experiment plan",
        "headrace.console.experiments:plan",
        "say how many visitors a trial needs and how long they take, from those logged so far",
        (EXPERIMENT, JSON),
    ),
    Command(
        "experiment aa",
        "headrace.console.experiments:split",
        "split logged visitors anew into arms that are the same; exit code 1 if these differ more often than by chance",
        (
            EXPERIMENT,
            _option("--splits", text="how often to split them (default 1000)", type=int, default=1000),
            JSON,
        ),
    ),
    Command(
        "experiment start",
        "headrace.console.experiments:start",
        "begin a trial of the bundles that stand now; exit code 1 if the A/A gate refuses",
        (
            EXPERIMENT,
            _option("--without-aa", text="leave the A/A gate out, and with it the plan", action="store_true"),
            JSON,
        ),
        changes=_always,
    ),
    Command(
        "experiment analyse",
        "headrace.console.experiments:analyse",
        "show what a trial would find if it were stopped now, or its verdict",
        (
            EXPERIMENT,
            _option("--html", text="write a report that opens in any browser, without a network", metavar="FILE"),
            JSON,
        ),
    ),
    Command(
        "experiment stop",
        "headrace.console.experiments:stop",
        "end a trial and give its verdict; exit code 1 if it is early, empty or unhealthy",
        (EXPERIMENT, JSON),
        changes=_always,
    ),
    Command(
        "experiment exposures",
        "headrace.console.experiments:exposures",
        "list who was in a trial, in which arm, with what they viewed and clicked",
        (
            EXPERIMENT,
            _option("--max", text="at most this many (default: all, 20 where people read)", type=int),
            JSON,
        ),
    ),
    Command(
        "pipeline run",
        "headrace.console.pipelines:run",
        "run a pipeline now, or go on with a run that was broken off; exit code 1 if a step failed",
        (_option("name", text="the pipeline's name in project.py", metavar="NAME"), JSON),
        changes=_always,
    ),
    Command(
        "pipeline status",
        "headrace.console.pipelines:status",
        "say of each pipeline what it did last, and when it is due next",
        (JSON,),
    ),
    Command(
        "pipeline history",
        "headrace.console.pipelines:history",
        "list what pipelines did and what became of it, the newest first",
        (
            _option("name", text="the pipeline's name (default: all)", nargs="?", metavar="NAME"),
            _option("--limit", text="at most this many (default 20)", type=int, default=20),
            JSON,
        ),
    ),
)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole tree."""
    parser = argparse.ArgumentParser(prog="headrace", description="From click to lift.", epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=_version(), help="print the version")
    words = parser.add_subparsers(dest="word", required=True, metavar="COMMAND")
    nouns: dict[str, Any] = {}
    for command in COMMANDS:
        noun, _, verb = command.words.partition(" ")
        if verb and noun not in nouns:
            text = f"{noun} commands: {', '.join(_verbs(noun))}"
            nouns[noun] = words.add_parser(noun, help=text).add_subparsers(dest="verb", required=True, metavar="VERB")
        place = nouns[noun] if verb else words
        leaf = place.add_parser(verb or noun, help=command.help, description=command.help, epilog=EXIT_CODES)
        for argument in (*command.arguments, *COMMON):
            leaf.add_argument(*argument.names, help=argument.help, **argument.options)
        leaf.set_defaults(command=command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    given = build_parser().parse_args(arguments)
    try:
        return _run(given)
    except HeadraceError as error:
        _print_error(error, as_json=getattr(given, "json", False))
        return error.exit_code
    except BrokenPipeError:
        # `headrace topic read clicks | head` ends quietly; what Python still holds has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _run(given: argparse.Namespace) -> int:
    module, _, name = given.command.target.partition(":")
    run = getattr(import_module(module), name)
    if given.command.changes(given):
        return int(import_module("headrace.console.acts").run_audited(given, run))
    return int(run(given) or 0)


def _print_error(error: HeadraceError, *, as_json: bool) -> None:
    name = type(error).__name__
    if as_json:
        print(json.dumps({"error": name, "message": str(error)}), file=sys.stderr)
    else:
        print(f"{name}: {error}", file=sys.stderr)


def _verbs(noun: str) -> list[str]:
    return [command.words.split()[1] for command in COMMANDS if command.words.startswith(f"{noun} ")]


def _version() -> str:
    package = import_module("headrace")
    return f"headrace {package.__version__}"
