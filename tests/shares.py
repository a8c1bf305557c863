"""How a run's tests are shared out between processes: what is slow to start is started in one of them.

All that needs a service of the cluster stays together, and so does all that needs the browser; else a file's tests do.
The cluster's come first: they take longest, and what comes last should be short.
"""

import functools
import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_CLUSTER = "the cluster"
_TOGETHER = ("tests/clients/",)
# What a file asks for, and what a parameter of a shared fixture is called.
_ASKS = re.compile(r'service\("(?:kafka|hdfs|spark)"\)')
_NAMED = re.compile(r"[\[-](?:kafka|hdfs|cluster)[-\]]")


def share_of(nodeid):
    """Returns which share a test belongs to."""
    file, _, name = nodeid.partition("::")
    if _NAMED.search(name) or _asks_for_cluster(file):
        return _CLUSTER
    return next((folder for folder in _TOGETHER if file.startswith(folder)), file)


@functools.cache
def _asks_for_cluster(file):
    return bool(_ASKS.search((_ROOT / file).read_text(encoding="utf-8")))


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: share_of(item.nodeid) != _CLUSTER)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Shares(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return share_of(nodeid)

    config.option.loadscopereorder = False
    return Shares(config, log)
