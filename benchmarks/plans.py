"""Plans of :mod:`benchmarks.reproduce`: recipes to train over seeds, and the figures of their table."""

import dataclasses
from collections.abc import Iterable, Mapping

# Heading: name of the metric, factor, decimals.
Figures = Mapping[str, tuple[str, float, int]]

FIGURES: Figures = {
    "validation %": ("validation/accuracy", 100, 2),
    "accuracy %": ("eval/accuracy", 100, 2),
    "NLL": ("eval/nll", 1, 3),
    "ECE %": ("eval/ece", 100, 1),
    "NLL, scaled": ("eval/calibration/scaled/nll", 1, 3),
    "ECE %, scaled": ("eval/calibration/scaled/ece", 100, 1),
    "AUROC %, ODIN, CIFAR-10": ("eval/ood/cifar10/odin/auroc", 100, 1),
    "AUROC %, ODIN, MNIST": ("eval/ood/mnist/odin/auroc", 100, 1),
    "FGSM 2/255, accuracy %": ("eval/adversarial/fgsm/2/accuracy", 100, 1),
    "corrupted, accuracy %": ("eval/corruption/generated/mean_accuracy", 100, 1),
}
COMPARED_FIGURES: Figures = {
    "train accuracy %": ("train/accuracy", 100, 1),
    "accuracy %": ("eval/accuracy", 100, 1),
    "NLL": ("eval/calibration/scaled/nll", 1, 3),
    "ECE %": ("eval/calibration/scaled/ece", 100, 1),
    "ECE %, raw": ("eval/ece", 100, 1),
    "AUROC %, photos": ("eval/ood/photos/msp/auroc", 100, 1),
}
CALIBRATED: Figures = {
    name: figure for name, figure in COMPARED_FIGURES.items() if name.startswith(("NLL", "ECE"))
}
BOXES_FIGURES: Figures = {
    "AP %": ("eval/ap", 100, 1),
    "AP50 %": ("eval/ap50", 100, 1),
} | CALIBRATED
MAPS_FIGURES: Figures = {
    "mIoU %": ("eval/miou", 100, 1),
    "accuracy %": ("eval/accuracy", 100, 1),
} | CALIBRATED
DISTILLATION_FIGURES: Figures = {
    f"{name}, error %": (f"eval/distillation/{key}/error", 100, 2)
    for name, key in {"Standard": "standard", "MC(100)": "mc", "Distilled": "distilled"}.items()
} | {
    "gap closed %": ("eval/distillation/gap_closed", 100, 0),
    "KL from MC, Standard": ("eval/distillation/standard/kl_from_mc", 1, 3),
    "KL from MC, Distilled": ("eval/distillation/distilled/kl_from_mc", 1, 3),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A recipe.

    Attributes:
      label: head of its column in the table.
      card: recipe card with its argument.
      published: the published figure.
      options: further arguments of ``train.py``, but not for the teacher.
      teacher: card of a teacher to train first. The rows and seeds of a plan share it: as in the paper,
        whose table has no deviation for the teachers, the distillation is what is repeated.
      method: method of which this is one of several values; the validation split selects one of them.
    """

    label: str
    card: str
    published: str = ""
    options: tuple[str, ...] = ()
    teacher: str = ""
    method: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A table.

    Attributes:
      rows: recipes by the name of their result files.
      figures: lines of the table; those that no run has are left out.
      evaluation: arguments of ``eval.py``.
      ood: data sets of the check ``ood``.
      published: heading of the published figures.
      baseline: method that the others are compared with, seed by seed; empty: the table has all rows.
    """

    rows: Mapping[str, Row]
    figures: Figures
    evaluation: tuple[str, ...]
    ood: tuple[str, ...] = ()
    published: str = ""
    baseline: str = ""


CHECKS = "--checks=accuracy,calibration,ood,adversarial,corruption"
PAPER = "configs/cifar100_resnet18.py"
SMALL = "configs/cifar100_50_per_class.py"
BIRDS = "configs/cub100.py"


def _values(
    method: str, key: str, label: str, card: str, option: str, values: Iterable[object], *fixed: str
) -> dict[str, Row]:
    """The rows of a method: one for each value of ``option``, a format, beside the options ``fixed``."""
    return {
        f"{key}-{value}": Row(
            f"{label} {value}", card, options=(*fixed, option.format(value)), method=method
        )
        for value in values
    }


def _weights(card: str, weights: Iterable[float], *fixed: str) -> dict[str, Row]:
    """The rows of SD-Dropout: one for each weight, beside the options ``fixed``."""
    return _values("SD-Dropout", "sd_dropout", "weight", card, WEIGHT, weights, *fixed)


def _compared(rows: Mapping[str, Row]) -> Plan:
    """A plan whose methods are compared with cross-entropy."""
    return Plan(
        rows=rows,
        figures=COMPARED_FIGURES,
        evaluation=("--checks=accuracy,calibration,ood",),
        baseline="cross-entropy",
    )


def _tuned(
    ce: str, sd_dropout: str, decays: Iterable[str], selected: str, weights: Iterable[float]
) -> Plan:
    """A plan that tunes the weight decay for cross-entropy, then one number of each other method.

    Args:
      ce: card with cross-entropy alone.
      sd_dropout: card of which SD-Dropout's weight is tuned.
      decays: values of the weight decay.
      selected: the decay that the validation split selected for cross-entropy; the others have it, too.
      weights: values of SD-Dropout's weight.
    """
    decay = DECAY.format(selected)
    return _compared(
        _values("cross-entropy", "ce", "weight decay", ce, DECAY, decays)
        | _values(
            "label smoothing", "label_smoothing", "smoothing", ce, SMOOTHING, (0.1, 0.2, 0.4), decay
        )
        | _values("dropout", "dropout", "rate", ce, DROPOUT, (0.3, 0.5, 0.7), decay)
        | _weights(sd_dropout, weights, decay)
    )


def _task(card: str, baseline: str, figures: Figures, weights: Iterable[float]) -> Plan:
    """A plan that compares SD-Dropout with the loss of a task, by a card with validation images."""
    held_out = "--config.dataset.validation=0.1"
    return Plan(
        rows={"ce": Row("", f"{card}:ce", options=(held_out,), method=baseline)}
        | _weights(card, weights, held_out),
        figures=figures,
        evaluation=("--checks=accuracy,calibration",),
        baseline=baseline,
    )


DECAY, WEIGHT = "--config.optimizer.weight_decay={}", "--config.sd_dropout.weight={}"
SMOOTHING = "--config.objective={{'name': 'label_smoothing', 'smoothing': {}}}"
DROPOUT = "--config.objective={{'name': 'dropout_cross_entropy', 'dropout_rate': {}}}"
DECAYS = ("1e-4", "5e-4", "2e-3")

_CIFAR100 = {
    "ce": ("CE", ":ce", "74.8 ± 0.3"),
    "sd_dropout": ("SD-Dropout", "", "76.8 ± 0.3"),
    "clean_student": ("SD-Dropout, clean student", ":clean_student", "76.8 ± 0.3"),
    "cs_kd": ("CS-KD", ":cs_kd", "77.3 ± 0.2"),
    "cs_kd-sd_dropout": ("CS-KD + SD-Dropout 0.1", ":cs_kd,sd_dropout", "77.2 ± 0.4"),
    "ddgsd": ("DDGSD", ":ddgsd", "76.7 ± 0.5"),
    "ddgsd-sd_dropout": ("DDGSD + SD-Dropout 0.1", ":ddgsd,sd_dropout", "77.2 ± 0.1"),
    "byot": ("BYOT", ":byot", "77.0 ± 0.1"),
    "byot-sd_dropout": ("BYOT + SD-Dropout 0.1", ":byot,sd_dropout", "77.4 ± 0.2"),
    "dml": ("DML", ":dml", "78.9"),
    "dml-sd_dropout": ("DML + SD-Dropout 0.1", ":dml,sd_dropout", "78.8"),
}
# The paper's errors of teacher, ensemble and student; of students of the training images as they are,
# but NiN's, which it reports for perturbed ones alone.
_QUICK = "18.15 / 16.78 / 17.15"
_DISTILLATION = {
    "quick": ("CIFAR-10 Quick", "quick_cifar10.py", _QUICK),
    "quick-short": (
        "CIFAR-10 Quick, teacher in a fifth of its time",
        "quick_cifar10.py:short",
        _QUICK,
    ),
    "nin": ("CIFAR-10 NiN", "nin_cifar.py", "11.16 / 11.04 / 11.14"),
    "all_conv": ("CIFAR-10 AllConv", "all_conv_cifar.py", "11.20 / 10.60 / 10.59"),
    "nin-cifar100": ("CIFAR-100 NiN", "nin_cifar.py:cifar100", "35.28 / 35.05 / 35.20"),
    "all_conv-cifar100": (
        "CIFAR-100 AllConv",
        "all_conv_cifar.py:cifar100",
        "32.46 / 30.99 / 31.88",
    ),
}

PLANS: dict[str, Plan] = {
    "cifar100": Plan(
        rows={
            name: Row(label, PAPER + argument, published, ("--config.model.dtype=bfloat16",))
            for name, (label, argument, published) in _CIFAR100.items()
        },
        figures=FIGURES,
        evaluation=(CHECKS, "--config.eval.epsilons=(1.0, 2.0, 4.0)"),
        ood=("cifar10", "mnist"),
        published="accuracy in the authors' logs, %",
    ),
    "cifar100-50-per-class": Plan(
        rows={"ce": Row("CE", f"{SMALL}:ce")}
        | _values(
            "SD-Dropout", "sd_dropout", "SD-Dropout, weight", SMALL, WEIGHT, (0.02, 0.1, 1.0)
        ),
        figures=FIGURES,
        evaluation=(CHECKS, "--config.eval.epsilons=(2.0,)", "--config.eval.max_images=1000"),
        ood=("cifar10", "mnist"),
    ),
    "cifar100-50-fitted": _compared(
        _values("cross-entropy", "ce", "weight decay", f"{SMALL}:ce,fitted", DECAY, DECAYS)
        | _weights(f"{SMALL}:sd_dropout,fitted", (0.02, 0.1, 1.0), DECAY.format("2e-3"))
    ),
    "cifar100-50-tuned": _tuned(  # goes on from where the search of the decay above ended
        f"{SMALL}:ce,fitted",
        f"{SMALL}:sd_dropout,fitted",
        ("2e-3", "4e-3", "8e-3"),
        "4e-3",
        (0.1, 0.3, 1.0),
    ),
    "cub100-paper": _compared(  # the paper's weight decay, 1e-4
        {"ce": Row("", f"{BIRDS}:ce", method="cross-entropy")}
        | _weights(BIRDS, (0.1, 0.3, 1.0))
        | {
            "byot": Row("", f"{BIRDS}:byot", method="BYOT"),
            "byot-sd_dropout": Row(
                "weight 0.1", f"{BIRDS}:byot,sd_dropout", method="BYOT + SD-Dropout"
            ),
        }
    ),
    "cub100-tuned": _tuned(f"{BIRDS}:ce", f"{BIRDS}:ce", DECAYS, "2e-3", (0.1, 0.3, 1.0)),
    "scenes-maps": _task(
        "configs/segment_scenes.py", "cross-entropy", MAPS_FIGURES, (0.01, 0.1, 1.0)
    ),
    "scenes-boxes": _task(
        "configs/detect_scenes.py", "focal loss", BOXES_FIGURES, (0.01, 0.1, 1.0)
    ),
    "distillation": Plan(
        rows={
            name: Row(label, f"configs/distill_{card}", published, teacher=f"configs/{card}")
            for name, (label, card, published) in _DISTILLATION.items()
        }
        | {
            f"quick-short-{name}": Row(
                label,
                "configs/distill_quick_cifar10.py:short",
                options=(f"--config.{option}",),
                teacher="configs/quick_cifar10.py:short",
            )
            for name, label, option in (
                ("32", "32 hidden units in place of 64", "model.hidden=32"),
                ("8", "8 hidden units", "model.hidden=8"),
                ("perturbed", "perturbed inputs", "inputs=perturbed"),
            )
        },
        figures=DISTILLATION_FIGURES,
        evaluation=("--checks=distillation",),
        published="the paper's errors, %",
    ),
}
