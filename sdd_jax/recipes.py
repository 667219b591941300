"""What several recipe cards share: the recipes of the two papers."""

from ml_collections import ConfigDict

from sdd_jax import config as base
from sdd_jax.models import models
from sdd_jax.objectives import objectives
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


def dropout_teacher(dataset: str, model: str) -> ConfigDict:
    """What the Dropout-Distillation paper says of its teachers: SGD, momentum 0.9, L2, flips on CIFAR.

    It does not say the batch size, the strength of L2, the dropout rate ("typically 1/2") or the
    preprocessing; here they are 128, 1e-4 or the network's own paper's, 1/2, and normalisation by the
    training images' mean and standard deviation.

    Args:
      dataset: "mnist", "cifar10" or "cifar100".
      model: one of the paper's networks.
    """
    config = base.default()
    config.dataset.name = dataset
    config.augment.flip = dataset != "mnist"
    config.model = models.options(model, dropout_rate=0.5)
    config.sd_dropout.weight = 0.0
    config.checkpoint_every = "5 epochs"
    return config


def quick_teacher(*, short: bool) -> ConfigDict:
    """Quick on CIFAR-10: 0.05 for 200 epochs and 0.005 for 100; a fifth of it if ``short``."""
    config = dropout_teacher("cifar10", "quick")
    config.optimizer.learning_rate = 0.05
    milestone = "40 epochs" if short else "200 epochs"
    config.schedule = schedules.options("step", milestones=(milestone,))
    config.duration = "60 epochs" if short else "300 epochs"
    return config


def lenet_teacher(*, all_layers: bool) -> ConfigDict:
    """LeNet or LeNetAll on MNIST: 1e-3 for 20 epochs and 1e-4 for 10."""
    config = dropout_teacher("mnist", "lenet_all" if all_layers else "lenet")
    config.optimizer.learning_rate = 1e-3
    config.schedule = schedules.options("step", milestones=("20 epochs",))
    config.duration = "30 epochs"
    return config


def all_conv_teacher(dataset: str) -> ConfigDict:
    """All-CNN-C: 350 epochs, weight decay 1e-3, divided by 10 after 200, 250 and 300 epochs."""
    config = dropout_teacher(dataset, "all_conv")
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 1e-3
    milestones = ("200 epochs", "250 epochs", "300 epochs")
    config.schedule = schedules.options("step", milestones=milestones)
    config.duration = "350 epochs"
    return config


def nin_teacher(dataset: str) -> ConfigDict:
    """Network in Network: the learning rate is divided by 10 twice; when, is our choice."""
    config = dropout_teacher(dataset, "nin")
    config.optimizer.learning_rate = 0.05
    config.schedule = schedules.options("step", milestones=("200 epochs", "250 epochs"))
    config.duration = "300 epochs"
    return config


def distilled(
    teacher: ConfigDict, workdir: str, *, last_learning_rate: float, inputs: str
) -> ConfigDict:
    """The student of a teacher: the same network, from the teacher's parameters, without dropout.

    20 epochs at the teacher's last learning rate and 10 at a tenth of it, one mask for each image at
    each step; the data as in the teacher's run.

    Args:
      teacher: the config of the teacher's run.
      workdir: of the teacher's run, where the command line does not say otherwise.
      last_learning_rate: with which the teacher's training ended.
      inputs: "perturbed" (the paper's default), "train" or "unlabelled:NAME".
    """
    config = teacher
    config.inputs = inputs
    config.teacher = workdir
    config.objective = objectives.options("distill")
    config.optimizer.learning_rate = last_learning_rate
    config.schedule = schedules.options("step", milestones=("20 epochs",))
    config.duration = "30 epochs"
    return config
