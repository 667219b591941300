"""Objectives: training losses. Each module registers one by name; ``base`` has the interface."""

from sdd_jax.objectives.base import (
    Auxiliary,
    Batch,
    Clock,
    Forward,
    Memory,
    Objective,
    Output,
    Term,
    View,
    objectives,
)
from sdd_jax.objectives.sd_dropout import build, with_sd_dropout

__all__ = [
    "Auxiliary",
    "Batch",
    "Clock",
    "Forward",
    "Memory",
    "Objective",
    "Output",
    "Term",
    "View",
    "build",
    "objectives",
    "with_sd_dropout",
]
