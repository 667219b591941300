"""Tasks: what the labels of a data set are. Each module registers one; ``base`` has the interface."""

from sdd_jax.tasks.base import Decisions, Task, Window, figures, of_labels, selecting, tasks
from sdd_jax.tasks.classification import Classification

__all__ = [
    "Classification",
    "Decisions",
    "Task",
    "Window",
    "figures",
    "of_labels",
    "selecting",
    "tasks",
]
