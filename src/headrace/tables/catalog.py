"""What stands above the tables for those who ask in SQL: a typed view per event, sessions, funnels, words."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
import pyarrow as pa
from msgspec import Struct

from headrace.base.errors import CallError
from headrace.engines import Source, View
from headrace.engines.engine import quote_name, quote_text
from headrace.events.event import Event
from headrace.events.settled import EVENTS, SettledEvent
from headrace.events.taxonomy import TAXONOMY
from headrace.tables.codec import RECEIVED_DATE
from headrace.tables.table import Table, Tables

SESSIONS = "sessions"

_LARGEST_FLOAT = "1e300"  # As in `taxonomy.Number`: beyond it stand infinity and what poisons a sum.
_LARGEST_EXACT = "9007199254740992"  # 2 ** 53
_PLACES = {
    "log_partition": "Its partition in the topic of this name, the same as in `clicks`.",
    "log_offset": "Its offset in the topic of this name.",
    RECEIVED_DATE: "The day of `received_us` in UTC; the files are divided by it.",
}
_NOT_IN_VIEWS = ("properties",)


def find_sources(
    tables: Tables, events: Iterable[Event], sql: str, *, at: Callable[[Table], Table]
) -> tuple[list[Source], list[View]]:
    """Returns the tables and views that a text may mean; `at` may choose another version of each table.

    Only those are opened: a damaged table spoils no question to another one.
    """
    names, declared, lowered = tables.names(), list(events), sql.lower()
    named = {name for name in names if name.lower() in lowered}
    if EVENTS in names and any(view.name in lowered for view in make_views(declared, (), taken=names)):
        named.add(EVENTS)
    opened = {name: at(tables.open(name)) for name in names if name in named}
    sources = [
        Source(name, opened[name].schema, opened[name].local_files, opened[name].partitions)
        if name in opened
        else Source(name, pa.schema([]), ())
        for name in names
    ]
    columns = opened[EVENTS].schema.names if EVENTS in opened else ()
    return sources, make_views(declared, columns, taken=names) if EVENTS in names else []


def make_views(events: Iterable[Event], columns: Sequence[str], *, taken: Collection[str] = ()) -> list[View]:
    """Returns the views over `events`: `sessions`, and one for each declared event, in snake case.

    `columns` are the columns of `events`, `taken` the names that tables have already.

    >>> [view.name for view in make_views([Event("Product Clicked")], ["event", "properties"], taken=["events"])]
    ['sessions', 'product_clicked']
    """
    names = {name.lower() for name in taken}
    views = [View(_free(SESSIONS, names), _sessions_sql())]
    views += [View(_free(snake_case(event.name), names), event_sql(event, columns)) for event in events]
    return views


def event_sql(event: Event, columns: Sequence[str]) -> str:
    """Returns the SELECT of an event's view: all columns of `events`, and its properties as typed columns.

    A property of a wrong type is NULL, and so is an int beyond 64 bits, which the settler takes; one that is called
    like a column of `events` is called NAME_property.
    """
    kept = [name for name in columns if name not in _NOT_IN_VIEWS]
    taken = {name.lower() for name in kept}
    fields = [
        f"{_typed(f'json_extract(properties, {_path(name)})', kind)} "
        f"AS {quote_name(_free(name, taken, suffix='property'))}"
        for name, kind in _property_kinds(event).items()
    ]
    listed = ",\n  ".join([*map(quote_name, kept), *fields])
    # Every name and text in it is quoted.
    return f"SELECT\n  {listed}\nFROM {EVENTS}\nWHERE type = 'track' AND event = {quote_text(event.name)}"


def _property_kinds(event: Event) -> dict[str, Any]:
    canonical = TAXONOMY.get(event.name)
    kinds = {field.encode_name: field.type for field in msgspec.structs.fields(canonical)} if canonical else {}
    return kinds | dict(event.fields)


def item_sql(event: Event) -> str:
    """Returns a SELECT with a row for each item that an event names: all of `events`, `item`, `category` and `known`.

    What is no id is NULL, as for `read_items`. The category is the property beside the item's id; `known` is what the
    item's dimension knew of it, as JSON, and NULL where it knew nothing.

    >>> print(item_sql(Event("Product Clicked", item="product_id")).splitlines()[1].strip()[:60])
    SELECT *, json_transform(properties, '{"product_id":"JSON","
    """
    outer, listed, inner = (event.item or "").rpartition("[]")
    parts = [part for part in inner.split(".") if part]
    if not event.item or "[]" in outer:
        raise CallError(f"Event({event.name!r}): item={event.item!r} names no item that a table can be made of")
    kind: Any = {parts[-1]: "JSON", "category": "VARCHAR"} if parts else "JSON"
    for part in reversed(parts[:-1]):
        kind = {part: kind}
    place = "".join(f".{quote_name(part)}" if not part.isidentifier() else f".{part}" for part in parts)
    beside = "".join(f".{part}" for part in parts[:-1]) + ".category"
    json = "properties"
    for part in filter(None, outer.split(".")):
        json = f"json_extract({json}, {_path(part)})"
    shape = quote_text(msgspec.json.encode([kind] if listed else kind).decode())
    one = f"unnest(json_transform({json}, {shape}))" if listed else f"json_transform({json}, {shape})"
    category = f"one{beside}" if parts else "NULL::VARCHAR"
    rows = f"SELECT *, {one} AS one FROM {_EVENTS} WHERE type = 'track' AND event = {quote_text(event.name)}"  # noqa: S608 - quoted
    item = _ITEM.format(json=f"one{place}")
    found = f"SELECT * EXCLUDE (one), {item} AS item, {category} AS category FROM (\n  {rows}\n)"  # noqa: S608 - quoted
    return f"SELECT *, {_KNOWN} AS known FROM ({found})"  # noqa: S608 - made of texts in this file


def below_sql(positions: Sequence[int]) -> str:
    """Returns the condition that a row of a topic's table lies below these offsets, one for each partition.

    >>> below_sql((3, 0))
    'log_offset < ([3, 0])[log_partition + 1]'
    """
    return f"log_offset < ([{', '.join(map(str, map(int, positions)))}])[log_partition + 1]"


# A table that no sink has opened since has no such column yet. DuckDB drops the empty half, and filters the other.
_EVENTS = f"(SELECT * FROM {EVENTS} UNION ALL BY NAME SELECT NULL::VARCHAR AS attributes WHERE false)"  # noqa: S608 - a name of ours

# A pointer finds whatever an id holds, where a path would read some as its own signs; a map takes four times as long.
_KNOWN = "json_extract(attributes, '/' || replace(replace(item, '~', '~0'), '/', '~1'))"

# Text and whole numbers, as `read_items` takes them; objects, fractions and true name nothing.
_ITEM = (
    "CASE WHEN json_type({json}) = 'VARCHAR' THEN {json} ->> '$' "
    "WHEN regexp_full_match({json}::VARCHAR, '[0-9]+') THEN {json}::VARCHAR END"
)


def snake_case(name: str) -> str:
    """Returns an event's name as that of a view.

    >>> snake_case("Product List Viewed"), snake_case("3D Shown"), snake_case("videoAdStarted")
    ('product_list_viewed', 'event_3d_shown', 'video_ad_started')
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    plain = re.sub(r"\W+", "_", words).strip("_").lower()
    return plain if plain and not plain[0].isdigit() else f"event_{plain}".rstrip("_")


def _free(name: str, taken: set[str], *, suffix: str = "") -> str:
    """Returns the name, or with a suffix the first that nothing has; it is taken from then on."""
    found, number = name, 2
    while found.lower() in taken:
        found = f"{name}_{suffix}" if suffix and found == name else f"{name}_{number}"
        number += 1
    taken.add(found.lower())
    return found


def _typed(json: str, kind: Any) -> str:
    """Returns the SQL that reads a JSON value as a kind, NULL where it is of another; as `read_properties` does."""
    options = _options(kind)
    if len(options) > 1 or options[0] not in _SCALARS:
        return _nested(json, options)
    return _SCALARS[options[0]].format(json=json)


def _options(kind: Any) -> list[Any]:
    """Returns what a kind may be beside nothing, without annotations."""
    if get_origin(kind) in (UnionType, Union):
        return [one for option in get_args(kind) if option is not type(None) for one in _options(option)]
    return _options(get_args(kind)[0]) if hasattr(kind, "__metadata__") else [kind]


def _nested(json: str, options: Sequence[Any]) -> str:
    if len(options) == 1 and get_origin(options[0]) is list:
        (element,) = get_args(options[0])
        variable = f"x{json.count('lambda')}"
        read = _typed(variable, element)
        return (
            f"CASE json_type({json}) WHEN 'ARRAY' THEN "
            f"list_transform(CAST({json} AS JSON[]), lambda {variable}: {read}) END"
        )
    if len(options) == 1 and isinstance(options[0], type) and issubclass(options[0], Struct):
        members = ", ".join(
            f"{quote_text(name)}: {_typed(f'json_extract({json}, {_path(name)})', kind)}"
            for name, kind in ((field.encode_name, field.type) for field in msgspec.structs.fields(options[0]))
        )
        return f"CASE json_type({json}) WHEN 'OBJECT' THEN {{{members}}} END"
    # What may be text or a list or an object stays as it is: a text its characters, the others JSON.
    return f"({json} ->> '$')"


_SCALARS: Mapping[Any, str] = {
    # DuckDB calls a whole number beyond 64 bits a DOUBLE, and keeps its digits all the same.
    str: (
        "CASE WHEN json_type({json}) IN ('VARCHAR', 'UBIGINT', 'BIGINT') OR (json_type({json}) = 'DOUBLE' "
        "AND regexp_full_match({json} ->> '$', '-?[0-9]+')) THEN {json} ->> '$' END"
    ),
    float: (
        "CASE WHEN json_type({json}) IN ('VARCHAR', 'UBIGINT', 'BIGINT', 'DOUBLE') "
        f"AND abs(TRY_CAST({{json}} ->> '$' AS DOUBLE)) <= {_LARGEST_FLOAT} "
        "THEN TRY_CAST({json} ->> '$' AS DOUBLE) END"
    ),
    int: (
        "CASE WHEN json_type({json}) IN ('VARCHAR', 'UBIGINT', 'BIGINT', 'DOUBLE') THEN "
        "CASE WHEN regexp_full_match({json} ->> '$', '-?[0-9]+') THEN TRY_CAST({json} ->> '$' AS BIGINT) "
        f"WHEN abs(TRY_CAST({{json}} ->> '$' AS DOUBLE)) <= {_LARGEST_EXACT} "
        "AND trunc(TRY_CAST({json} ->> '$' AS DOUBLE)) = TRY_CAST({json} ->> '$' AS DOUBLE) "
        "THEN CAST(TRY_CAST({json} ->> '$' AS DOUBLE) AS BIGINT) END END"
    ),
    bool: (
        "CASE WHEN json_type({json}) IN ('BOOLEAN', 'VARCHAR', 'UBIGINT') THEN "
        "CASE lower({json} ->> '$') WHEN 'true' THEN true WHEN '1' THEN true "
        "WHEN 'false' THEN false WHEN '0' THEN false WHEN '-0' THEN false END END"
    ),
}


def _sessions_sql() -> str:
    """Returns the SELECT of sessions: who, when, how long, how many, from which page to which, on what."""
    return """WITH placed AS (
  SELECT *, struct_pack(at := event_us, offset_ := log_offset) AS place, type IN ('page', 'screen') AS is_page,
    CASE WHEN type IN ('page', 'screen') THEN coalesce(json_extract_string(properties, '$.path'), name) END AS page
  FROM events
)
SELECT
  session_id,
  any_value(visitor) AS visitor,
  arg_max(person, place) AS person,
  make_timestamp(min(event_us)) AT TIME ZONE 'UTC' AS started,
  make_timestamp(max(event_us)) AT TIME ZONE 'UTC' AS ended,
  (max(event_us) - min(event_us)) / 1e6 AS duration_seconds,
  count(*) AS events,
  count(*) FILTER (is_page) AS pages,
  arg_min(page, place) AS entry,
  arg_max(page, place) AS exit,
  bool_or(bot) AS bot,
  arg_min(device, place) AS device
FROM placed
GROUP BY session_id"""


def funnel_sql(steps: Sequence[str], *, within_seconds: float) -> str:
    """Returns the SELECT of a funnel: how many people did these events in this order, all within a time.

    A row for each step: step, event, persons, of_first, of_previous. Each start of a person counts, and from each the
    earliest next event is taken; robots are left out.

    >>> print(funnel_sql(["Product Clicked", "Order Completed"], within_seconds=3600).splitlines()[-1])
    FROM counted ORDER BY step
    """
    if not steps or within_seconds <= 0:
        raise CallError(f"a funnel needs steps and a time, found steps {list(steps)!r}, {within_seconds:g} seconds")
    numbered = list(enumerate(steps, start=1))
    return _FUNNEL.format(
        listed=", ".join(map(quote_text, dict.fromkeys(steps))),
        first=quote_text(steps[0]),
        # Every text in it is quoted, and every number one of ours.
        steps="".join(
            _STEP.format(number=number, before=number - 1, step=quote_text(step), within_us=round(within_seconds * 1e6))
            for number, step in numbered[1:]
        ),
        counts="\n  UNION ALL\n".join(_COUNT.format(number=number, step=quote_text(step)) for number, step in numbered),
    )


_FUNNEL = """WITH marked AS (
  SELECT person, event, event_us,
    row_number() OVER (PARTITION BY person ORDER BY event_us, log_partition, log_offset) AS place
  FROM events WHERE event IN ({listed}) AND NOT bot
),
step_1 AS (SELECT person, event_us AS began_us, place FROM marked WHERE event = {first}),{steps}
counted AS (
{counts}
)
SELECT step, event, persons,
  persons / nullif(first_value(persons) OVER (ORDER BY step), 0) AS of_first,
  persons / nullif(lag(persons) OVER (ORDER BY step), 0) AS of_previous
FROM counted ORDER BY step"""

_STEP = """
step_{number} AS (
  SELECT a.person, a.began_us, b.place
  FROM step_{before} AS a
  ASOF JOIN (SELECT * FROM marked WHERE event = {step}) AS b ON a.person = b.person AND a.place < b.place
  WHERE b.event_us - a.began_us <= {within_us}
),"""

_COUNT = "  SELECT {number} AS step, {step} AS event, count(DISTINCT person) AS persons FROM step_{number}"


@lru_cache(maxsize=16)
def column_sentences(kind: type[Struct] = SettledEvent) -> Mapping[str, str]:
    """Returns what each column of a contract's table holds, from the sentences below the Struct's members.

    >>> column_sentences()["bot"]
    'Whether the user agent says that it is a robot.'
    """
    return {**dict(_sentences(kind)), **_PLACES}


def _sentences(kind: type[Struct]) -> Iterator[tuple[str, str]]:
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except OSError:
        # Installed without its source.
        return
    assert isinstance(definition, ast.ClassDef)
    for member, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name) and isinstance(text, ast.Expr):
            yield member.target.id, ast.literal_eval(text.value)


def _path(name: str) -> str:
    return quote_text('$."' + name + '"')
