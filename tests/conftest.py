"""Every test sees four CPU devices."""

import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)  # before the backend starts
jax.config.update("jax_disable_most_optimizations", True)  # tests compile more than they compute

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The checkout, with train.py, eval.py and configs."""
    return ROOT


@pytest.fixture
def tiny_config():
    """A run of a few seconds: digits, a small MLP, SD-Dropout, 8 steps an epoch."""
    from sdd_jax import config as base
    from sdd_jax.models import models

    config = base.default()
    config.augment.pad = 1
    config.model = models.options("mlp", width=16, depth=1)
    config.optimizer.learning_rate = 0.05
    config.batch_size = 176
    config.duration = "4 epochs"
    config.log_every = "4 steps"
    return config
