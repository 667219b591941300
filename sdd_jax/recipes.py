"""Recipes that several cards share: those of the two papers, and that of the embedded scenes."""

from ml_collections import ConfigDict

from sdd_jax import config as configs
from sdd_jax.data.engines import engines
from sdd_jax.models import models
from sdd_jax.objectives import objectives
from sdd_jax.training.optimizers import optimizers
from sdd_jax.training.schedules import schedules

SPREADS = ("two_heads", "dirichlet", "gaussian")  # of a student
METHODS = ("cs_kd", "ddgsd", "byot", "dml", "clean_student")


def sd_dropout_cifar(dataset: str, model: str, argument: str) -> ConfigDict:
    """The recipe of the SD-Dropout paper for CIFAR.

    SGD with learning rate 0.1, momentum 0.9, weight decay 1e-4 on all parameters, batch 128, 200 epochs.
    The learning rate is divided by 10 after 100 and 150 epochs, without warm-up. Random crop with
    padding 4, flip.

    Args:
      dataset: "cifar10" or "cifar100".
      model: a network in CIFAR form.
      argument: words of the card, see :func:`_sd_dropout`.
    """
    config = _sd_dropout(dataset, model, "cifar", argument)
    config.dataset.mean = (0.4914, 0.4822, 0.4465)
    config.dataset.std = (0.2023, 0.1994, 0.2010)
    config.augment.pad = 4
    return config


def sd_dropout_fine_grained(dataset: str, model: str, argument: str) -> ConfigDict:
    """The recipe of the SD-Dropout paper for CUB-200-2011 and Stanford Dogs: as for CIFAR, batch 32.

    Random resized crops of 224 pixels, flip; for the test, the short side at 256 and the central crop of
    224; ImageNet's mean and standard deviation.

    Args:
      dataset: "caltech_birds2011" or "stanford_dogs".
      model: a network in ImageNet form.
      argument: words of the card, see :func:`_sd_dropout`.
    """
    config = _photographs(_sd_dropout(dataset, model, "imagenet", argument), argument)
    config.batch_size = 32
    return config


def sd_dropout_imagenet(model: str, argument: str) -> ConfigDict:
    """The recipe of the SD-Dropout paper for ImageNet: batch 256, 90 epochs.

    The learning rate is divided by 10 every 30 epochs. There is no warm-up;
    ``--config.schedule.warmup="5 epochs"`` adds one.

    Args:
      model: a network in ImageNet form.
      argument: words of the card, see :func:`_sd_dropout`.
    """
    config = _photographs(_sd_dropout("imagenet2012", model, "imagenet", argument), argument)
    config.batch_size = 256
    config.schedule.milestones = ("30 epochs", "60 epochs")
    config.duration = "1 epochs" if _is_local(argument) else "90 epochs"
    config.checkpoint_every = "1 epochs"
    return config


def _sd_dropout(dataset: str, model: str, stem: str, argument: str) -> ConfigDict:
    """The common part of the SD-Dropout paper's recipes.

    Args:
      dataset: name of the data set.
      model: name of the network.
      stem: the network's stem, "cifar" or "imagenet".
      argument: "sd_dropout" (weight 1, the default); "ce" (cross-entropy alone); or one of ``METHODS``,
        alone or with "sd_dropout" (weight 0.1). "runlocal" shrinks the run for a laptop.
    """
    words, local = _words(argument), _is_local(argument)
    method = next(iter(words & set(METHODS)), None)
    config = configs.default()
    config.dataset.name = dataset
    config.augment.flip = True
    config.model = models.options(model, stem=stem, width=16 if local else 64)
    config.sd_dropout.weight = 0.0 if "ce" in words else 1.0
    if method:
        config.objective = objectives.options(method)
        config.sd_dropout.weight = 0.1 if "sd_dropout" in words else 0.0
    config.schedule = schedules.options("step", milestones=("100 epochs", "150 epochs"))
    config.duration = "3 epochs" if local else "200 epochs"
    config.checkpoint_every = "1 epochs" if local else "10 epochs"
    return config


def _photographs(config: ConfigDict, argument: str) -> ConfigDict:
    """Sets the options for photographs of any size: streamed, cropped and normalised as for ImageNet."""
    config.dataset.image_size = 64 if _is_local(argument) else 224
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    config.engine = engines.options("streamed")
    config.eval.batch_size = 250
    return config


def _words(argument: str) -> set[str]:
    return configs.words(
        argument,
        ("sd_dropout", "ce", *METHODS, "runlocal"),
        alternatives=[("ce", *METHODS), ("sd_dropout", "ce")],
    )


def _is_local(argument: str) -> bool:
    return "runlocal" in _words(argument)


def scenes(dataset: str, model: ConfigDict, argument: str, *, weight: float) -> ConfigDict:
    """The recipe for digits on photographs: AdamW, batch 32, 15 epochs.

    Args:
      dataset: "scenes", "scenes:labels" or "scenes:boxes".
      model: options of the network.
      argument: "sd_dropout" (the default), or "ce" for the loss of the task alone.
      weight: that of SD-Dropout.
    """
    rows = ("sd_dropout", "ce")
    words = configs.words(argument, rows, alternatives=[rows])
    config = configs.default()
    config.dataset.name = dataset
    config.model = model
    config.sd_dropout.weight = 0.0 if "ce" in words else weight
    config.optimizer = optimizers.options("adamw", learning_rate=0.005)
    config.batch_size = 32
    config.duration = "15 epochs"
    config.eval_every = config.checkpoint_every = "5 epochs"
    return config


def dropout_teacher(dataset: str, model: str) -> ConfigDict:
    """The Dropout-Distillation paper's recipe for teachers: SGD, momentum 0.9, L2, flips on CIFAR.

    The paper does not state the batch size, the L2 coefficient, the dropout rate ("typically 1/2") or
    the preprocessing. Here they are 128, 1e-4 or the value of the network's own paper, 1/2, and
    normalisation by the training images' mean and standard deviation.

    Args:
      dataset: "mnist", "cifar10" or "cifar100".
      model: one of the paper's networks.
    """
    config = configs.default()
    config.dataset.name = dataset
    config.augment.flip = dataset != "mnist"
    config.model = models.options(model, dropout_rate=0.5)
    config.sd_dropout.weight = 0.0
    config.checkpoint_every = "5 epochs"
    return config


def quick_teacher(*, short: bool) -> ConfigDict:
    """Quick on CIFAR-10: learning rate 0.05 for 200 epochs, 0.005 for 100; a fifth if ``short``."""
    config = dropout_teacher("cifar10", "quick")
    config.optimizer.learning_rate = 0.05
    milestone = "40 epochs" if short else "200 epochs"
    config.schedule = schedules.options("step", milestones=(milestone,))
    config.duration = "60 epochs" if short else "300 epochs"
    return config


def lenet_teacher(*, all_layers: bool) -> ConfigDict:
    """LeNet or LeNetAll on MNIST: learning rate 1e-3 for 20 epochs, 1e-4 for 10."""
    config = dropout_teacher("mnist", "lenet_all" if all_layers else "lenet")
    config.optimizer.learning_rate = 1e-3
    config.schedule = schedules.options("step", milestones=("20 epochs",))
    config.duration = "30 epochs"
    return config


def all_conv_teacher(dataset: str) -> ConfigDict:
    """All-CNN-C: weight decay 1e-3, 350 epochs; learning rate divided by 10 after 200, 250 and 300."""
    config = dropout_teacher(dataset, "all_conv")
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 1e-3
    milestones = ("200 epochs", "250 epochs", "300 epochs")
    config.schedule = schedules.options("step", milestones=milestones)
    config.duration = "350 epochs"
    return config


def nin_teacher(dataset: str) -> ConfigDict:
    """Network in Network: the learning rate is divided by 10 twice; the epochs are our choice."""
    config = dropout_teacher(dataset, "nin")
    config.optimizer.learning_rate = 0.05
    config.schedule = schedules.options("step", milestones=("200 epochs", "250 epochs"))
    config.duration = "300 epochs"
    return config


def distilled(
    teacher: ConfigDict, workdir: str, *, last_learning_rate: float, inputs: str
) -> ConfigDict:
    """The student of a teacher: the same network, from the teacher's parameters, without dropout.

    20 epochs at the teacher's last learning rate and 10 at a tenth of it, one mask per image and step;
    the data of the teacher's run.

    Args:
      teacher: the config of the teacher's run.
      workdir: default workdir of the teacher's run.
      last_learning_rate: learning rate at the end of the teacher's training.
      inputs: "perturbed", "train" or "unlabelled:NAME". The paper's default is "perturbed", and "train"
        is as good in its table. On CIFAR-10 with Quick only "train" was: with a fifth of its pixels
        black the teacher recognises nothing, and the student learns its opinion of noise
        (docs/results.md).
    """
    config = teacher.copy_and_resolve_references()
    config.inputs = inputs
    config.teacher = workdir
    config.objective = objectives.options("distill")
    config.optimizer.learning_rate = last_learning_rate
    config.schedule = schedules.options("step", milestones=("20 epochs",))
    config.duration = "30 epochs"
    return config


def keeping_spread(config: ConfigDict, words: set[str]) -> ConfigDict:
    """The config of a student that keeps the spread that a word of the card names, if there is one."""
    for spread in words & set(SPREADS):
        config.objective = objectives.options(f"distill_{spread}")
        config.model.spread = spread
    return config
