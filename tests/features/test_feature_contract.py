"""The contract `feature`: the code, its page and its golden file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from features.test_kernel import FEATURES
from headrace.features import Column, list_columns

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts"
PAGE = (CONTRACTS / "feature.md").read_text()


def golden():
    """Returns the columns of the declared features as the golden file has them."""
    rows = [
        {"column": column, "identity": column.identity, "family": column.family} for column in list_columns(FEATURES)
    ]
    return "[\n" + ",\n".join(f" {msgspec.json.encode(row).decode()}" for row in rows) + "\n]\n"


def test_declared_features_equal_the_golden_file():
    assert golden() == (CONTRACTS / "feature.golden.json").read_text()


def test_golden_columns_are_read_and_keep_their_hashes():
    rows = msgspec.json.decode((CONTRACTS / "feature.golden.json").read_bytes())
    for row in rows:
        column = msgspec.convert(row["column"], Column)
        assert (column.identity, column.family) == (row["identity"], row["family"])
    assert {row["column"]["kind"] for row in rows} == {"count", "total", "last"}
    assert len({row["identity"] for row in rows}) == len(rows)


def test_page_explains_every_field_in_its_order_and_shows_a_golden_column():
    table = PAGE.partition("| field |")[2].partition("\n\n")[0]
    named = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert named == list(Column.__struct_fields__)
    shown = PAGE.partition("```json\n")[2].partition("\n```")[0]
    assert f'{{"column":{shown}' in (CONTRACTS / "feature.golden.json").read_text()
