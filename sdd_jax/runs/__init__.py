"""Runs on disk: the workdir, its checkpoints, its log, and networks loaded from it."""

from sdd_jax.runs.checkpoints import Checkpoints
from sdd_jax.runs.files import write_bytes, write_text
from sdd_jax.runs.metrics_log import MetricsLog
from sdd_jax.runs.trained_network import (
    UNSTATED,
    TrainedNetwork,
    abstract_variables,
    build_network,
    changed_data,
    load_trained_network,
    network_facts,
    restore,
)
from sdd_jax.runs.workdir import (
    SameRun,
    differing,
    load_imports,
    open_workdir,
    read_config,
    read_metrics,
    read_record,
    replace_duration,
    teacher_workdirs,
    write_config,
)

__all__ = [
    "UNSTATED",
    "Checkpoints",
    "MetricsLog",
    "SameRun",
    "TrainedNetwork",
    "abstract_variables",
    "build_network",
    "changed_data",
    "differing",
    "load_imports",
    "load_trained_network",
    "network_facts",
    "open_workdir",
    "read_config",
    "read_metrics",
    "read_record",
    "replace_duration",
    "restore",
    "teacher_workdirs",
    "write_bytes",
    "write_config",
    "write_text",
]
