"""CIFAR-10, Quick with dropout after every layer but the last: a teacher for Dropout Distillation.

Paper     Rota Bulo et al. 2016, Dropout Distillation (PMLR 48:99-107)
Command   python train.py --config=configs/quick_cifar10.py
Variants  :short (60 epochs; the same schedule in a fifth of the time)
Expected  test error 18.15 % (the paper's "Standard": dropout off at test time)

Not stated in the paper, chosen here: dropout rate 1/2 ("typically"), batch 128, weight decay 1e-4,
normalisation by the training images' mean and standard deviation.
"""

from sdd_jax import config as base
from sdd_jax.models import models
from sdd_jax.training.schedules import schedules


def get_config(argument: str = ""):
    """``argument``: ``short`` or nothing."""
    short = "short" in base.arguments(argument, ("short",))
    config = base.default()
    config.dataset.name = "cifar10"
    config.augment.flip = True
    config.model = models.options("quick")
    config.sd_dropout.weight = 0.0
    config.optimizer.learning_rate = 0.05
    config.schedule = schedules.options(
        "step", milestones=("40 epochs" if short else "200 epochs",)
    )
    config.duration = "60 epochs" if short else "300 epochs"
    config.checkpoint_every = "5 epochs"
    return config
