"""What several recipe cards share."""

from ml_collections import ConfigDict

from sdd_jax import config as base
from sdd_jax.models import models
from sdd_jax.training.schedules import schedules


def sd_dropout_cifar(dataset: str, model: str, argument: str) -> ConfigDict:
    """The recipe of the SD-Dropout paper for CIFAR, to the letter.

    SGD at 0.1, momentum 0.9, weight decay 1e-4 on all parameters, batch 128, 200 epochs with the
    learning rate divided by 10 after 100 and 150, no warm-up; random crop with padding 4, flip.

    Args:
      dataset: "cifar10" or "cifar100".
      model: a network in CIFAR form.
      argument: "sd_dropout" (weight 1) or "ce" (weight 0); "runlocal" shrinks it for a laptop.
    """
    words = base.arguments(argument, ("sd_dropout", "ce", "runlocal"))
    local = "runlocal" in words
    config = base.default()
    config.dataset.name = dataset
    config.dataset.mean = (0.4914, 0.4822, 0.4465)
    config.dataset.std = (0.2023, 0.1994, 0.2010)
    config.augment.pad = 4
    config.augment.flip = True
    config.model = models.options(model, stem="cifar", width=16 if local else 64)
    config.sd_dropout.weight = 0.0 if "ce" in words else 1.0
    config.schedule = schedules.options("step", milestones=("100 epochs", "150 epochs"))
    config.duration = "3 epochs" if local else "200 epochs"
    config.checkpoint_every = "1 epochs" if local else "10 epochs"
    return config
