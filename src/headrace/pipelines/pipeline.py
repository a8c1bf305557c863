"""A pipeline: steps in their order, how often they run, and what follows; it knows nothing of models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from headrace.base.clock import read_duration
from headrace.base.errors import ProjectError


class Step(Protocol):
    """What a pipeline runs, such as the fit of a model; what it puts out bears its name."""

    @property
    def name(self) -> str:
        """Its name in the project."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of what it reads: other steps, and tables."""


class Sequel(Protocol):
    """What may follow a run that brought forth something new, such as an experiment."""

    @property
    def name(self) -> str:
        """Its name in the project."""


@dataclass(frozen=True)
class Pipeline:
    """Steps that run one after the other, once in `every`, and what follows when all are done.

    A step that fails is tried again `retries` times, then the run has failed and the steps after it are left out.
    """

    name: str
    every: str = field(kw_only=True)
    steps: tuple[Step, ...] = field(kw_only=True)
    then: Sequel | None = field(default=None, kw_only=True)
    retries: int = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.replace("-", "").replace("_", "").isalnum():
            raise ProjectError(f"Pipeline({self.name!r}): a name has letters, digits, '-' and '_'")
        read_duration(self.every, f"Pipeline({self.name!r}): every")
        found = self.steps
        if not isinstance(found, tuple) or not found or not all(hasattr(step, "inputs") for step in found):
            raise ProjectError(f"Pipeline({self.name!r}): steps={found!r}; give it models, as a tuple: steps=(ranker,)")
        names = [step.name for step in found]
        for place, step in enumerate(found):
            if step.name in names[:place]:
                raise ProjectError(f"Pipeline({self.name!r}): the step {step.name!r} stands there twice")
            late = [name for name in step.inputs if name in names[place + 1 :]]
            if late:
                raise ProjectError(f"Pipeline({self.name!r}): {step.name!r} reads {late[0]!r}, which comes after it")
        if self.then is not None and not hasattr(self.then, "name"):
            raise ProjectError(f"Pipeline({self.name!r}): then={self.then!r} is no Experiment")
        if not isinstance(self.retries, int) or not 0 <= self.retries <= 10:
            raise ProjectError(f"Pipeline({self.name!r}): retries={self.retries!r} must be 0 to 10")

    @property
    def every_us(self) -> int:
        """How much time of the project's clock lies between two runs."""
        return read_duration(self.every)
