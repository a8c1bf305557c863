"""The oracle: features by their definition, a loop over all events for each label, with nothing of ours but windows."""

from __future__ import annotations

import math

import msgspec

from headrace.events.event import read_items
from headrace.features.window import tail_of


def oracle(events, columns, labels):
    """Returns the values of each label, in the order of the columns.

    `events` are SettledEvents with the partition of each, as pairs; `labels` dicts with at_us, person, item, attributes
    such as `@genre`, and known or None.
    """
    return [[value_of(events, column, label) for column in columns] for label in labels]


def value_of(events, column, label):
    """Returns one column's value for one label."""
    counted = [
        (event.event_us, partition, event.src_offset, row)
        for event, partition in events
        if is_known(event, partition, label)
        and tail_of(label["at_us"], column.window_us) <= event.event_us < label["at_us"]
        for row in rows_of(event, column)
        if all(row[part] is not None and row[part] == label.get(part) for part in column.by)
    ]
    if column.kind == "count":
        return len(counted)
    if column.kind == "total":
        return sum(millionths(read_path(row["properties"], column.value)) for *_, row in counted) / 1e6
    texts = [(*place, row[column.value]) for *place, row in counted if row[column.value] is not None]
    return max(texts)[-1] if texts else None


def is_known(event, partition, label):
    """Returns whether a label knew an event."""
    if label.get("known"):
        return partition < len(label["known"]) and event.seq < label["known"][partition]
    return event.received_us < label["at_us"]


def rows_of(event, column):
    """Returns what an event says of each item that it names, or of none."""
    if event.type != "track" or event.event != column.event or event.bot:
        return []
    raw = event.properties if event.properties is not msgspec.UNSET else b"{}"
    about = {"person": event.person, "properties": msgspec.json.decode(raw)}
    if not column.item:
        return [about]
    attributes = {} if event.attributes is msgspec.UNSET else msgspec.json.decode(event.attributes)
    return [
        about | {"item": item, **texts_of(attributes.get(item) or {}, column)} for item in read_items(raw, column.item)
    ]


def texts_of(known, column):
    """Returns the attributes that a column names, as texts."""
    names = [name for name in (*column.by, column.value) if name.startswith("@")]
    values = {name: known.get(name[1:]) for name in names}
    return {
        name: value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, value in values.items()
    }


def read_path(properties, path):
    """Returns what stands at a path."""
    for part in path.split("."):
        properties = properties.get(part) if isinstance(properties, dict) else None
    return properties


def millionths(number):
    """Returns a number in millionths, 0 for what is none."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= 9e12:
        return 0
    return math.floor(float(number) * 1e6 + 0.5)
