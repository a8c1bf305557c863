"""Decides by DuckDB's own parser whether SQL only reads, and only tables that it was given.

DuckDB's switches are not enough: with external access off and one file allowed, `COPY TO` overwrote
that file, and `FROM 'file'` reads it past its table. So the tree is judged by what is known to be
harmless, and whatever is not known is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import duckdb

from headrace.base.errors import did_you_mean
from headrace.engines.duckdb_errors import read_failure
from headrace.engines.engine import Place, SqlError, show_place

# 200,000 nested `SELECT * FROM (` end the process with SIGSEGV inside DuckDB 2.0's parser, and so do
# 100,000 `DESCRIBE`; a million brackets hold it for 28 s, in which no deadline reaches it.
MAX_SQL_BYTES = 200_000
MAX_NESTING = 400

# Nor does a deadline reach the planner: 10,000 SELECTs in one UNION kept it longer than 40 s.
MAX_PARTS = 1000
MAX_NAMES = 100

_EXPLAIN = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*explain(\s+analyze)?\b", re.IGNORECASE | re.DOTALL)
_SHOWING = re.compile(r"\b(?:desc|describe|show|summarize)\b", re.IGNORECASE)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PLAIN_NODES = _words(
    "SELECT_NODE SET_OPERATION_NODE RECURSIVE_CTE_NODE CTE_NODE BASE_TABLE SUBQUERY JOIN TABLE_FUNCTION "
    "EXPRESSION_LIST EMPTY PIVOT SHOW_REF ORDER_MODIFIER LIMIT_MODIFIER LIMIT_PERCENT_MODIFIER "
    "DISTINCT_MODIFIER ORDER_DEFAULT ASCENDING DESCENDING"
)
_PLAIN_EXPRESSIONS = _words(
    "BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT DEFAULT FUNCTION LAMBDA LAMBDA_REF "
    "OPERATOR PARAMETER POSITIONAL_REFERENCE STAR SUBQUERY TYPE WINDOW"
)
_TABLE_FUNCTIONS = _words("generate_series json_each json_tree range repeat repeat_row unnest")

# Of what DuckDB calls volatile or constant within a query only, these read nothing but clock and dice.
_HARMLESS = _words(
    "current_date error gen_random_uuid get_current_time get_current_timestamp now random setseed today "
    "transaction_timestamp uuid uuidv4 uuidv7"
)
# These are constant to DuckDB, and yet plan other SQL or look at the database.
_NOT_HARMLESS = _words(
    "get_block_size json_deserialize_sql json_execute_serialized_sql json_serialize_plan json_serialize_sql "
    "parse_duckdb_log_message"
)
# A deadline does not reach into one call, and these compare each letter with each: two texts of 30,000 take
# levenshtein 3 s and the others longer than 8 s, of 300,000 a hundred times that (one core, DuckDB 2.0).
_QUADRATIC = _words("damerau_levenshtein editdist3 levenshtein")
# Nor does the bound on memory: one value of these is as large as a number in the SQL says.
_SIZED = _words("array_resize bitstring list_resize lpad repeat rpad")
_FORMATS = _words("format printf")
MAX_SIZE = 10_000_000
_WIDTH = re.compile(r"(?:\{\w*:|%)[^a-zA-Z{}]*?(\d{8,})")
# Schemas in whose name no function may be called; any other prefix is a column, as in `name.upper()`.
_SCHEMAS = _words("information_schema memory pg_catalog system temp")


@dataclass(frozen=True)
class Statement:
    """SQL that may run."""

    text: str
    """What to give to DuckDB."""
    sql: str
    """What the caller wrote."""
    shift: int
    """How much further right a place stands in `sql` than in `text`."""
    names: frozenset[str]
    """The sources and views that it mentions, as they are spelled in `known`."""

    def show(self, place: Place) -> str:
        """Returns the line of the caller's SQL for a place in `text`."""
        return show_place(self.sql, Place(place.start + self.shift, place.length))


@dataclass(frozen=True)
class Rules:
    """What a statement may mention."""

    known: Mapping[str, str]
    """Tables by their folded names."""
    refused: frozenset[str]
    """Functions that DuckDB has, and that are not pure."""


def fold(name: str) -> str:
    """Returns a name as DuckDB compares it: ASCII letters only, so that no look-alike passes for a table."""
    return name.lower() if name.isascii() else name


def make_rules(names: Collection[str], refused: frozenset[str]) -> Rules:
    """Returns the rules of a statement that may mention the tables `names`."""
    return Rules({fold(name): name for name in names}, refused)


@cache
def find_refused() -> frozenset[str]:
    """Returns the functions that may not be called: all that DuckDB itself does not call pure."""
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT DISTINCT function_name, schema_name = 'main' AND (function_type = 'macro' OR "
            "function_type IN ('scalar', 'aggregate', 'window') AND stability = 'CONSISTENT') FROM duckdb_functions()"
        ).fetchall()
    pure = {name for name, is_pure in rows if is_pure and not name.startswith("__internal")} - _NOT_HARMLESS
    return frozenset({name.lower() for name, _ in rows} | _NOT_HARMLESS) - {name.lower() for name in pure | _HARMLESS}


def read_statement(connection: duckdb.DuckDBPyConnection, sql: str, rules: Rules) -> Statement:
    """Returns the one SELECT that `sql` is, or raises SqlError."""
    _check_size(sql)
    explain = _EXPLAIN.match(sql)
    body, prefix = sql, ""
    if explain:
        body = sql[explain.end() :]
        prefix = "EXPLAIN ANALYZE" if explain[1] else "EXPLAIN"
    shift = len(sql[: len(sql) - len(body)].encode()) - len(prefix)
    draft = Statement(prefix + body, sql, shift, frozenset())
    tree = _parse(connection, body, draft)
    names = _Judge(rules, draft, len(prefix)).judge(tree)
    return Statement(draft.text, sql, shift, frozenset(names))


def _check_size(sql: str) -> None:
    if "\0" in sql or any("\ud800" <= c <= "\udfff" for c in sql):
        raise SqlError("the SQL holds a character that no text has (NUL, or half of a pair)")
    if len(sql.encode()) > MAX_SQL_BYTES:
        raise SqlError(f"the SQL is longer than {MAX_SQL_BYTES:,} bytes. Give values as parameters, or join a table")
    depth = deepest = 0
    for c in sql:
        if c in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in ")]}":
            depth = max(0, depth - 1)
    if deepest > MAX_NESTING or len(_SHOWING.findall(sql)) > MAX_NESTING:
        raise _too_deep()


def _too_deep() -> SqlError:
    return SqlError("the SQL is nested too deeply. Name its parts by WITH, or use IN (...) for many values")


def _parse(connection: duckdb.DuckDBPyConnection, body: str, draft: Statement) -> dict[str, Any]:
    try:
        statements = connection.extract_statements(body)
    except duckdb.Error as error:
        raise _parser_error(error, draft, len(draft.text) - len(body)) from error
    kinds = [statement.type.name for statement in statements]
    if not kinds:
        raise SqlError("the SQL is empty. Write one SELECT")
    if len(kinds) > 1 and set(kinds) != {"MULTI"}:
        raise SqlError(f"one statement is expected, {len(kinds)} were given ({', '.join(kinds)})")
    if kinds != ["SELECT"]:
        hint = " (PIVOT needs its values: FROM (PIVOT t ON c IN (...) USING ...))" if kinds[0] == "MULTI" else ""
        raise SqlError(f"{kinds[0]} is refused: SQL here only reads, so it must be one SELECT{hint}")
    row = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [body]).fetchone()
    assert row is not None
    try:
        tree = json.loads(row[0])
    except RecursionError as error:
        raise _too_deep() from error
    if tree["error"] or len(tree["statements"]) != 1:
        raise SqlError(
            f"the SQL cannot be checked, so it is refused: {tree.get('error_message', 'several statements')}"
        )
    first: dict[str, Any] = tree["statements"][0]
    return first


def _parser_error(error: duckdb.Error, draft: Statement, prefix: int) -> SqlError:
    failure = read_failure(error)
    if "expression depth" in failure.message:
        return _too_deep()
    if failure.place is None:
        return SqlError(failure.message)
    return SqlError(f"{failure.message}\n{draft.show(Place(failure.place.start + prefix, failure.place.length))}")


class _Judge:
    """Goes through a tree without recursion, and raises at the first thing that is not known to be harmless."""

    def __init__(self, rules: Rules, draft: Statement, prefix: int) -> None:
        self._rules = rules
        self._draft = draft
        self._prefix = prefix
        self._names: set[str] = set()
        self._num_parts = 0

    def judge(self, tree: dict[str, Any]) -> set[str]:
        """Returns the tables that the tree mentions."""
        stack: list[tuple[Any, frozenset[str]]] = [(tree, frozenset())]
        while stack:
            node, scope = stack.pop()
            if isinstance(node, list):
                stack.extend((child, scope) for child in node)
            elif isinstance(node, dict):
                self._check_node(node, scope)
                if node.get("class") != "CONSTANT":
                    stack.extend(_children(node, scope))
        return self._names

    def _check_node(self, node: dict[str, Any], scope: frozenset[str]) -> None:
        kind = node.get("type")
        expression = node.get("class")
        if expression is not None:
            if expression not in _PLAIN_EXPRESSIONS:
                self._refuse(node, f"{expression} is refused: it is not known to be harmless")
            if len(node.get("column_names", ())) > MAX_NAMES:
                raise _too_deep()
        elif isinstance(kind, str):
            self._check_part(node, kind, scope)
        if "function_name" in node:
            self._check_function(node)

    def _check_part(self, node: dict[str, Any], kind: str, scope: frozenset[str]) -> None:
        self._num_parts += kind in ("SELECT_NODE", "BASE_TABLE", "TABLE_FUNCTION")
        if self._num_parts > MAX_PARTS:
            raise SqlError(f"the SQL has more than {MAX_PARTS:,} SELECTs and tables. Ask in several queries")
        if kind not in _PLAIN_NODES:
            self._refuse(node, f"{kind.removesuffix('_QUERY_NODE')} is refused: SQL here only reads")
        if kind == "BASE_TABLE":
            self._check_table(node, scope)
        if kind == "SHOW_REF" and node.get("query") is None:
            self._refuse(node, "SHOW is refused; `headrace table list` lists the tables, DESCRIBE t its columns")
        if kind == "TABLE_FUNCTION" and fold(_path(node["function"])[-1]) not in _TABLE_FUNCTIONS:
            self._refuse(node, _function_refused(_path(node["function"])[-1]))

    def _check_table(self, node: dict[str, Any], scope: frozenset[str]) -> None:
        path = _path(node)
        name = fold(path[-1])
        if node.get("at_clause") is not None:
            self._refuse(node, "AT is refused: the version of a table is chosen outside the SQL")
        qualified = [fold(part) for part in path[:-1]] in (["main"], ["memory", "main"])
        if not qualified and len(path) > 1:
            self._refuse(node, f"no table {'.'.join(path)!r}; tables have one name, without a schema")
        if not qualified and name in scope:
            return
        if name not in self._rules.known:
            known = sorted(self._rules.known.values())
            listed = ", ".join(known) if known else "none yet"
            self._refuse(node, f"no table {path[-1]!r}.{did_you_mean(path[-1], known)}  known: {listed}")
        self._names.add(self._rules.known[name])

    def _check_function(self, node: dict[str, Any]) -> None:
        path = [fold(part) for part in _path(node)]
        if path[-1] in self._rules.refused and path[-1] not in _TABLE_FUNCTIONS:
            self._refuse(node, _function_refused(path[-1]))
        if len(path) > 1 and path[0] in _SCHEMAS:
            self._refuse(node, _function_refused(".".join(path)))
        if path[-1] in _QUADRATIC:
            self._refuse(node, f"the function {path[-1]!r} is refused: on long texts no deadline would stop it")
        if _size(path[-1], node["arguments"]) > MAX_SIZE:
            self._refuse(
                node, f"{path[-1]}() of more than {MAX_SIZE:,} is refused: the bound on memory would not hold it"
            )

    def _refuse(self, node: dict[str, Any], reason: str) -> NoReturn:
        start = node.get("query_location", -1)
        place = Place(start + self._prefix, node.get("query_location_length", 1))
        if 0 <= start < len(self._draft.text.encode()):
            raise SqlError(f"{reason}\n{self._draft.show(place)}")
        raise SqlError(reason)


def _function_refused(name: str) -> str:
    return f"the function {name!r} is refused: it may read or change something outside the tables"


def _size(function: str, arguments: list[dict[str, Any]]) -> int:
    """Returns the size of what a call makes, as far as a number in the SQL says it."""
    literals = [argument["expression"].get("literal", {}) for argument in arguments[:2]]
    if function in _SIZED:
        # The size comes second, but `name.repeat(5)` has no other argument.
        return max((int(one["text"]) for one in literals if one.get("kind") == "INTEGER"), default=0)
    if function in _FORMATS and literals and literals[0].get("kind") == "STRING":
        return max(map(int, _WIDTH.findall(literals[0]["text"])), default=0)
    return 0


def _path(node: dict[str, Any]) -> list[str]:
    path: list[str] = node["qualified_name"]["path"]
    return path


def _children(node: dict[str, Any], scope: frozenset[str]) -> Iterator[tuple[Any, frozenset[str]]]:
    """Yields what stands below a node, each with the names that WITH gives there.

    A name is known after its own definition and not in it, unless it is recursive: else
    `WITH a AS (FROM 'file'), "file" AS (...)` would hide a file behind a name.
    """
    if node.get("type") == "RECURSIVE_CTE_NODE":
        scope |= {fold(node["cte_name"])}
    for entry in (node.get("cte_map") or {}).get("map", ()):
        yield entry["value"], scope
        scope |= {fold(entry["key"])}
    for key, child in node.items():
        if key != "cte_map" and isinstance(child, dict | list):
            yield child, scope
