"""Headrace, from click to lift: a large-scale machine-learning system in Python.

The rooms, in the order in which a click passes through them:

- `events`    what happened: the envelope of an event, the taxonomy, a simulated world
- `collect`   the doors in: Segment's HTTP protocol, write keys, the visitor's cookie
- `topics`    the durable log: append, read, groups, retention, replay
- `tables`    the lake: each record once, snapshots, history
- `engines`   where SQL runs
- `features`  what is known of people and items, the same in training rows and online
- `models`    fit, pack as bundles, register
- `endpoints` answer requests for pages, and write down why
- `experiments` who sees what, and what it changed
- `pipelines` steps and their order, by the project's clock
- `stats`     pure mathematics
- `console`   the command line
- `base`      what every room may lean on

`project.py` joins them; `profile.py` reads the URLs that choose where everything lives.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.base.errors import HeadraceError
    from headrace.endpoints.endpoint import Carousel, Page
    from headrace.events.dimension import Attribute, Dimension
    from headrace.events.event import Event
    from headrace.experiments.experiment import Experiment
    from headrace.experiments.metric import Metric
    from headrace.features import item, person
    from headrace.pipelines import Pipeline
    from headrace.project import OpenProject, Project
    from headrace.project import open_project as open  # noqa: A004 - headrace.open reads as it should
    from headrace.topics import Record, Topic, open_topic, open_topics

__version__ = "0.1.0"

__all__ = [
    "Attribute",
    "Carousel",
    "Dimension",
    "Event",
    "Experiment",
    "HeadraceError",
    "Metric",
    "OpenProject",
    "Page",
    "Pipeline",
    "Project",
    "Record",
    "Topic",
    "item",
    "open",
    "open_topic",
    "open_topics",
    "person",
]

_HOMES = {
    "Attribute": "headrace.events.dimension:Attribute",
    "Dimension": "headrace.events.dimension:Dimension",
    "Pipeline": "headrace.pipelines:Pipeline",
    "item": "headrace.features:item",
    "person": "headrace.features:person",
    "Carousel": "headrace.endpoints.endpoint:Carousel",
    "Experiment": "headrace.experiments.experiment:Experiment",
    "Metric": "headrace.experiments.metric:Metric",
    "Page": "headrace.endpoints.endpoint:Page",
    "Event": "headrace.events.event:Event",
    "HeadraceError": "headrace.base.errors:HeadraceError",
    "OpenProject": "headrace.project:OpenProject",
    "Project": "headrace.project:Project",
    "Record": "headrace.topics:Record",
    "Topic": "headrace.topics:Topic",
    "open": "headrace.project:open_project",
    "open_topic": "headrace.topics:open_topic",
    "open_topics": "headrace.topics:open_topics",
}


def __getattr__(name: str) -> Any:
    """Returns a root export, imported when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
