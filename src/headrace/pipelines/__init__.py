"""Pipelines: steps and their order, run by the project's clock."""

from __future__ import annotations

from headrace.pipelines.pipeline import Pipeline, Step

__all__ = ["Pipeline", "Step"]
