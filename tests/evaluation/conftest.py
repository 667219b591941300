"""Trained runs, and networks with known logits, for everything that evaluates one."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.data import Dataset, Split
from sdd_jax.evaluation import EvaluationSetup, Evaluator


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """``{"ce": folder, "sd_dropout": folder}``: 12 epochs on digits with a validation split.

    Each has checkpoints at steps 48 and 96.
    """
    from sdd_jax import config as configs
    from sdd_jax.models import models
    from sdd_jax.train import train_and_evaluate

    folders = {}
    for name, weight in (("ce", 0.0), ("sd_dropout", 0.1)):
        config = configs.default()
        config.dataset.validation = 0.1
        config.model = models.options("mlp", width=48, depth=1)
        config.sd_dropout.weight = weight
        config.batch_size = 144
        config.duration = "12 epochs"
        config.eval_every = config.checkpoint_every = "6 epochs"
        folders[name] = tmp_path_factory.mktemp("evaluated") / name
        train_and_evaluate(config, str(folders[name]))
    return folders


class Linear(nn.Module):
    """Logits are a fixed linear function of the normalised pixels."""

    kernel: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]

    def features(self, images):
        return images.reshape(len(images), -1)

    def head(self, features):
        return features @ jnp.array(self.kernel) + jnp.array(self.bias)[None]

    def __call__(self, images, *, train=False):
        return self.head(self.features(images))


@pytest.fixture(scope="session")
def linear():
    """``linear(images, labels, kernel=, bias=)``: the evaluator of a :class:`Linear` network.

    The normalised pixels are those of ``images`` unless mean and std say otherwise.
    """

    def evaluator(images, labels, kernel=None, *, bias, mean=0.0, std=1 / 255, **setup):
        pixels, classes = np.prod(images.shape[1:]), len(bias)
        kernel = np.zeros((pixels, classes)) if kernel is None else kernel
        model = Linear(tuple(map(tuple, kernel.tolist())), tuple(bias))
        split = Split(images, np.asarray(labels, np.int32))
        channels = np.ones(images.shape[-1], np.float32)
        dataset = Dataset(
            "fake", classes, {"train": split, "test": split}, channels * mean, channels * std
        )
        defaults = {"seed": 0, "batch_size": 8, "load_dataset": lambda name: dataset}
        return Evaluator(EvaluationSetup(model, dataset, **(defaults | setup)), {})

    return evaluator
