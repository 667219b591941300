"""What one step minimises. An objective is a file here that registers a function; see ``base``."""

from sdd_jax.objectives.base import (
    Auxiliary,
    Batch,
    Clock,
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
    "Memory",
    "Objective",
    "Output",
    "Term",
    "View",
    "build",
    "objectives",
    "with_sd_dropout",
]
