"""What several recipe cards share: the recipes of the two papers."""

from collections.abc import Callable

from ml_collections import ConfigDict

from sdd_jax import config as base
from sdd_jax.data.engines import engines
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
    config = _sd_dropout(dataset, model, "cifar", argument)
    config.dataset.mean = (0.4914, 0.4822, 0.4465)
    config.dataset.std = (0.2023, 0.1994, 0.2010)
    config.augment.pad = 4
    return config


def sd_dropout_fine_grained(dataset: str, model: str, argument: str) -> ConfigDict:
    """The recipe of the SD-Dropout paper for CUB-200-2011 and Stanford Dogs: as for CIFAR, batch 32.

    Random crops of any size and shape resized to 224 pixels, flip; the test images' short side at 256,
    224 in the middle; ImageNet's mean and standard deviation.

    Args:
      dataset: "caltech_birds2011" or "stanford_dogs".
      model: a network in ImageNet form.
      argument: "sd_dropout" (weight 1) or "ce" (weight 0); "runlocal" shrinks it for a laptop.
    """
    config = _of_any_size(_sd_dropout(dataset, model, "imagenet", argument), argument)
    config.batch_size = 32
    return config


def sd_dropout_imagenet(model: str, argument: str) -> ConfigDict:
    """The recipe of the SD-Dropout paper for ImageNet: batch 256, 90 epochs, divided by 10 every 30.

    There is no warm-up; ``--config.schedule.warmup="5 epochs"`` adds one.

    Args:
      model: a network in ImageNet form.
      argument: "sd_dropout" (weight 1) or "ce" (weight 0); "runlocal" shrinks it for a laptop.
    """
    config = _of_any_size(_sd_dropout("imagenet2012", model, "imagenet", argument), argument)
    config.batch_size = 256
    config.schedule.milestones = ("30 epochs", "60 epochs")
    config.duration = "1 epochs" if _is_local(argument) else "90 epochs"
    config.checkpoint_every = "1 epochs"
    return config


def _sd_dropout(dataset: str, model: str, stem: str, argument: str) -> ConfigDict:
    """What the paper's recipes have in common."""
    local = _is_local(argument)
    config = base.default()
    config.dataset.name = dataset
    config.augment.flip = True
    config.model = models.options(model, stem=stem, width=16 if local else 64)
    config.sd_dropout.weight = 0.0 if "ce" in _words(argument) else 1.0
    config.schedule = schedules.options("step", milestones=("100 epochs", "150 epochs"))
    config.duration = "3 epochs" if local else "200 epochs"
    config.checkpoint_every = "1 epochs" if local else "10 epochs"
    return config


def _of_any_size(config: ConfigDict, argument: str) -> ConfigDict:
    """With photographs of any size, streamed, in the view of ImageNet's networks."""
    config.dataset.image_size = 64 if _is_local(argument) else 224
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    config.engine = engines.options("streamed")
    config.eval.batch_size = 250
    return config


def _words(argument: str) -> set[str]:
    return base.arguments(argument, ("sd_dropout", "ce", "runlocal"))


def _is_local(argument: str) -> bool:
    return "runlocal" in _words(argument)


def beside_sd_dropout(
    recipe: Callable[[str], ConfigDict], method: str, argument: str
) -> ConfigDict:
    """Another self-distillation method by the same recipe, alone or with SD-Dropout at weight 0.1.

    Args:
      recipe: one of the SD-Dropout paper's, from its argument.
      method: the name of an objective.
      argument: "sd_dropout" adds the term; "runlocal" as in the recipe.
    """
    words = base.arguments(argument, ("sd_dropout", "runlocal"))
    config = recipe(",".join({"ce"} | words - {"sd_dropout"}))
    config.objective = objectives.options(method)
    config.sd_dropout.weight = 0.1 if "sd_dropout" in words else 0.0
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
