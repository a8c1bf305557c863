"""Spark's side of spark.py: runs the scripts that come in, one a line, in Spark's own Python.

The first line is the session's configuration, every other `{"script": text}`. The answer to a script is a line too:
`{"printed": text}`, or `{"failed": traceback}`. Nothing here may import what only the tests' environment has.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from typing import Any, TextIO


def answer_scripts(scripts: TextIO, answers: TextIO) -> None:
    """Answers every script until the input ends."""
    # pytest looks for examples in this file too, where there is no Spark.
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]").appName("tests")
    for name, value in json.loads(scripts.readline()).items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    for line in scripts:
        answers.write(json.dumps(run(json.loads(line)["script"], spark.newSession())) + "\n")
        answers.flush()


def run(script: str, spark: Any) -> dict[str, str]:
    """Returns what a script printed, or how it failed."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(script, "<script>", "exec"), {"__name__": "__main__", "spark": spark})
    except Exception:  # noqa: BLE001 a script of a test may fail in any way; the test hears of it
        return {"failed": printed.getvalue() + traceback.format_exc()}
    return {"printed": printed.getvalue()}


if __name__ == "__main__":
    # The JVM writes to the output that it inherits; the answers need one that is theirs alone.
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answer_scripts(sys.stdin, own)
