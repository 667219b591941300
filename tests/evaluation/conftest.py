"""Two small trained runs, cross-entropy and SD-Dropout, for everything that evaluates one."""

import pytest


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """``{"ce": folder, "sd_dropout": folder}``: digits with a validation split, 98 % and a bit less."""
    from sdd_jax import config as base
    from sdd_jax.models import models
    from sdd_jax.training.loop import train_and_evaluate

    folders = {}
    for name, weight in (("ce", 0.0), ("sd_dropout", 0.1)):
        config = base.default()
        config.dataset.validation = 0.1
        config.model = models.options("mlp", width=48, depth=1)
        config.sd_dropout.weight = weight
        config.batch_size = 144
        config.duration = "12 epochs"
        config.eval_every = config.checkpoint_every = config.duration
        folders[name] = tmp_path_factory.mktemp("evaluated") / name
        train_and_evaluate(config, str(folders[name]))
    return folders
