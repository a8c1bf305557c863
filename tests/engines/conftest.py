"""One engine and one lake for the tests of this folder."""

import pytest

from engines.lake import write_events
from headrace.engines import open_engine


@pytest.fixture
def engine(tmp_path):
    """An engine on one core, small enough to share the machine."""
    return open_engine("duckdb://?threads=1&memory=200MB", root=tmp_path)


@pytest.fixture
def events(tmp_path):
    """A table of two days with 100 rows each."""
    return write_events(tmp_path / "lake" / "events")


@pytest.fixture
def ask(engine, events):
    """Returns the rows of an answer."""

    def run(sql, **options):
        with engine.query(sql, **{"sources": [events], **options}) as result:
            return result.table().to_pylist()

    return run
