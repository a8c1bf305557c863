"""How the columns of rows meet the columns of a table: aligned, evolved or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from headrace.base.errors import CallError

_WIDER = {
    (pa.int8(), pa.int16()),
    (pa.int8(), pa.int32()),
    (pa.int8(), pa.int64()),
    (pa.int16(), pa.int32()),
    (pa.int16(), pa.int64()),
    (pa.int32(), pa.int64()),
    (pa.float32(), pa.float64()),
}


@dataclass(frozen=True)
class Evolution:
    """What a schema asks of a table that stands: columns to add, and the schema if some must be wider."""

    added: tuple[pa.Field, ...]
    widened: pa.Schema | None


def plan_evolution(name: str, found: pa.Schema, asked: pa.Schema, partitions: Sequence[str]) -> Evolution:
    """Returns how `found` comes to hold what `asked` holds; raises CallError where it cannot."""
    added, fields, widened = [], {field.name: field for field in found}, False
    for field in asked:
        standing = fields.get(field.name)
        if standing is None:
            if not field.nullable:
                raise CallError(
                    f"{name}.{field.name}: found no such column, asked for one without nulls, which the "
                    "rows that stand would break. Let it be nullable"
                )
            added.append(field)
        elif standing.type != field.type and (field.type, standing.type) not in _WIDER:
            _check_wider(name, standing, field, partitions)
            fields[field.name] = field.with_nullable(standing.nullable)
            widened = True
    return Evolution(tuple(added), pa.schema([fields[name] for name in found.names]) if widened else None)


def _check_wider(name: str, found: pa.Field, asked: pa.Field, partitions: Sequence[str]) -> None:
    if (found.type, asked.type) not in _WIDER or found.name in partitions:
        raise CallError(
            f"{name}.{found.name}: found {found.type}, asked for {asked.type}. A column can only become a wider "
            "number of its kind (int32 to int64, float to double), and none that partitions the table"
        )


def align(name: str, rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns the rows with exactly the columns of a table; a column that is missing becomes nulls."""
    for column in rows.schema.names:
        if column not in schema.names:
            raise CallError(
                f"{name}.{column}: found no such column, asked to append {rows.schema.field(column).type}. "
                "Append with evolve=True, or evolve the table first"
            )
    if rows.schema.equals(schema):
        return rows
    return pa.Table.from_arrays([_column(name, rows, field) for field in schema], schema=schema)


def _column(name: str, rows: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    if field.name not in rows.schema.names:
        if not field.nullable:
            raise CallError(f"{name}.{field.name}: found a column without nulls, asked to append rows that lack it")
        return pa.chunked_array([pa.nulls(rows.num_rows, field.type)])
    found = rows.column(field.name)
    if found.type == field.type or pa.types.is_null(found.type) or (found.type, field.type) in _WIDER:
        return found.cast(field.type)
    if _is_same_kind(found.type, field.type):
        return found.cast(field.type)
    raise CallError(f"{name}.{field.name}: found {field.type}, asked to append {found.type}")


def _is_same_kind(found: pa.DataType, asked: pa.DataType) -> bool:
    # Other layouts of the same values: large or view strings, dictionaries of them.
    if pa.types.is_dictionary(found):
        found = found.value_type
    text = (pa.string(), pa.large_string(), pa.string_view())
    return (
        found == asked
        or (asked == pa.string() and found in text)
        or (asked == pa.binary() and found in (pa.large_binary(), pa.binary_view()))
    )
