"""What starting Headrace costs: modules and CPU, the best of several runs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from ast import literal_eval

RUNS = 5

COUNT = """
import sys, time
before, started = set(sys.modules), time.process_time()
import headrace
print(len(set(sys.modules) - before), time.process_time() - started)
"""

EXPORTS = """
import sys
from ast import literal_eval
import headrace
names = set(headrace.__all__)
assert names <= set(dir(headrace))
assert not names & set(vars(headrace)), "root exports load lazily"
for name in names:
    assert getattr(headrace, name) is not None
try:
    headrace.Evnt
except AttributeError as error:
    print(error)
heavy = {"pandas", "duckdb", "pyspark", "torch", "mlflow", "confluent_kafka", "numba", "scipy", "pyarrow", "deltalake"}
print(sorted(heavy & set(sys.modules)))
"""


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"}
    ).stdout


def cpu_seconds(*arguments):
    """Returns the CPU that a command took, in and below it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_importing_headrace_is_cheap():
    runs = [python("-c", COUNT).split() for _ in range(RUNS)]
    assert max(int(modules) for modules, _ in runs) <= 120
    assert min(float(seconds) for _, seconds in runs) <= 0.150


def test_help_is_quick_and_names_every_command():
    assert min(cpu_seconds("-m", "headrace", "--help") for _ in range(RUNS)) <= 0.300
    text = python("-m", "headrace", "--help")
    for word in ("init", "demo", "up", "status", "topic"):
        assert f"\n    {word} " in text
    assert "exit codes: 0 done, 1 the answer is no, 2 the call is wrong, 3 something outside is" in text


def test_root_exports_load_lazily_and_bring_nothing_heavy():
    assert python("-c", EXPORTS).splitlines() == ["module 'headrace' has no attribute 'Evnt'", "[]"]


def test_no_door_loads_what_reads_the_lake():
    found = python("-c", "import sys, headrace.doors, headrace.console.pages; print(sorted(sys.modules))")
    heavy = {"pandas", "duckdb", "pyarrow", "deltalake", "numba", "scipy", "confluent_kafka"}
    assert not heavy & set(literal_eval(found))
