"""Accuracy on corrupted images."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np

from sdd_jax.errors import InputError, check
from sdd_jax.evaluation import corruptions, metrics
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.findings import Findings, Headline, Plot, Table
from sdd_jax.evaluation.network import Network
from sdd_jax.training.random import keys_at, stream_key

OFFICIAL_COUNT = 19
SEVERITIES = corruptions.SEVERITIES
SCORES = ("accuracy", "nll", "ece")


@checks.register("corruption")
@dataclasses.dataclass(frozen=True)
class Corruption(Check):
    """Accuracy, NLL and ECE on images with common corruptions, at five severities.

    With ``corruption_dir``, the official CIFAR-10-C or CIFAR-100-C (Hendrycks and Dietterich,
    `Benchmarking Neural Network Robustness <https://arxiv.org/abs/1903.12261>`_, 2019); without, those
    of its corruptions that are simple formulas, applied to the test images. Every figure's name says
    which.

    Attributes:
      corruption_dir: folder of ``NAME.npy`` files and ``labels.npy``.
      max_images: how many images at most are corrupted, the first of the split; 0: all. The official
        files are read whole.
    """

    title: ClassVar[str] = "Corruptions"
    corruption_dir: str = ""
    max_images: int = 0

    def __post_init__(self):
        """Checks the options."""
        check(self.max_images >= 0, "config.eval.max_images", self.max_images, "0 or more")

    def requirement(self, subject) -> str:
        """Any run can have it, if the folder is what it must be."""
        if self.corruption_dir:
            _open(self.corruption_dir, subject)
        return ""

    def __call__(self, evaluation) -> Findings:
        """Figures by corruption and severity, and their means."""
        kind = "official" if self.corruption_dir else "generated"
        found: dict[str, list[dict[str, float]]] = {}
        if self.corruption_dir:
            produce = _official(self.corruption_dir, evaluation)
        else:
            produce = _generated(evaluation, self.max_images or len(evaluation.labels))
        for name, logits, labels in produce:
            scores = metrics.scores(metrics.log_softmax(logits), labels, *SCORES)
            found.setdefault(name, []).append(scores)
        prefix = f"corruption/{kind}"
        values = {
            f"{prefix}/{name}/{severity}/{metric}": value
            for name, by_severity in found.items()
            for severity, figures in zip(SEVERITIES, by_severity, strict=True)
            for metric, value in figures.items()
        }
        for metric in SCORES:
            values[f"{prefix}/mean_{metric}"] = float(
                np.mean([at[metric] for by_severity in found.values() for at in by_severity])
            )
        accuracy = {name: [f["accuracy"] for f in figures] for name, figures in found.items()}
        return Findings(
            values,
            headline=(
                Headline(f"{prefix}/mean_accuracy", f"accuracy, {kind} corruptions, %", 100),
                Headline(
                    f"{prefix}/mean_ece", f"ECE, {kind} corruptions, %", 100, higher_is_better=False
                ),
            ),
            plots=(
                Plot(
                    "corruption",
                    f"Accuracy under {kind} corruptions",
                    "Left the mean over corruptions at each severity, 0 for clean images; right the "
                    "mean over severities of each corruption.",
                    _draw,
                    {"clean": self._clean_accuracy(evaluation), "corrupted": accuracy},
                    size=(11, 4.6),
                ),
            ),
            tables=(_table(kind, accuracy),),
            notes=(_note(kind, len(found), len(labels)),),
        )

    def _clean_accuracy(self, evaluation) -> float:
        """Of the images that are corrupted."""
        count = len(evaluation.labels) if self.corruption_dir else self.max_images or None
        log_probs = metrics.log_softmax(evaluation.logits[:count])
        return metrics.top_k_accuracy(log_probs, evaluation.labels[:count])


def _generated(evaluation, count: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    shape = evaluation.images.shape[1:]
    for name in corruptions.names(shape[-1]):
        corrupt = evaluation.compiled(_corrupt, gather=False, name=name)
        logits = evaluation.compiled(Network.logits)
        for severity in SEVERITIES:
            key = stream_key(evaluation.subject.config.seed, f"corruption/{name}/{severity}")
            scalars = key, corruptions.parameters(name, severity, shape)
            yield (
                name,
                evaluation.stream(
                    _corrupted_logits(corrupt, logits, evaluation.variables, scalars),
                    evaluation.images[:count],
                    evaluation.position[:count],
                ),
                evaluation.labels[:count],
            )


def _corrupted_logits(corrupt: Callable, logits: Callable, variables, scalars) -> Callable:
    return lambda *shares: logits(variables, (corrupt({}, shares, scalars),), ())


def _corrupt(network, variables, images, position, key, parameters, *, name):
    return corruptions.corrupt(name, keys_at(key, position), images, parameters)


def _official(folder, evaluation) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    files, labels = _open(folder, evaluation.subject)
    count = len(labels) // len(SEVERITIES)
    for name, images in files.items():
        for i in range(len(SEVERITIES)):
            part = slice(i * count, (i + 1) * count)
            yield name, evaluation.logits_of(images[part]), labels[part]


def _open(folder: str, subject) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The memory-mapped images by corruption, and their labels.

    Raises:
      InputError: it is no such folder, or its images are not the run's kind.
    """
    path, shape = pathlib.Path(os.path.expanduser(folder)), subject.dataset.image_shape
    field = "config.eval.corruption_dir"
    arrays = {}
    for file in sorted(path.glob("*.npy")):
        try:
            arrays[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{field}: {file} cannot be read: {error}") from error
    labels = arrays.pop("labels", None)
    if labels is None or not arrays:
        raise InputError(f"{field}: must hold NAME.npy and labels.npy files, got {folder!r}")
    classes = subject.dataset.num_classes
    check(
        labels.ndim == 1
        and labels.dtype.kind in "iu"
        and len(labels) > 0
        and len(labels) % len(SEVERITIES) == 0
        and labels.min() >= 0
        and labels.max() < classes,
        f"{field}: labels.npy",
        f"{labels.dtype} {labels.shape}",
        f"the labels of five severities, in [0, {classes})",
    )
    for name, images in arrays.items():
        check(
            images.dtype == np.uint8 and images.shape == (len(labels), *shape),
            f"{field}: {name}.npy",
            f"{images.dtype} {images.shape}",
            f"uint8 {(len(labels), *shape)}",
        )
    return arrays, np.asarray(labels, np.int32)


def _note(kind: str, count: int, num_images: int) -> str:
    if kind == "generated":
        return (
            f"Generated: {count} corruptions, those of CIFAR-C that are simple formulas, with its "
            f"severities for 32x32 pixels, applied to {num_images:,} test images. Not comparable with "
            "figures on the official files."
        )
    missing = (
        "" if count == OFFICIAL_COUNT else f" of {OFFICIAL_COUNT}: the mean is over these alone"
    )
    return f"Official files: {count} corruptions{missing}."


def _table(kind: str, accuracy: dict[str, list[float]]) -> Table:
    rows = [
        [name.replace("_", " "), *(f"{100 * value:.1f}" for value in [*values, np.mean(values)])]
        for name, values in accuracy.items()
    ]
    means = np.mean(list(accuracy.values()), axis=0)
    rows.append(["mean", *(f"{100 * value:.1f}" for value in [*means, means.mean()])])
    header = ["severity", *map(str, SEVERITIES), "mean"]
    return Table(f"Accuracy (%) under {kind} corruptions", header, rows)


def _draw(figure, runs) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    height = 0.8 / len(runs)
    for i, (run, (data, style)) in enumerate(runs.items()):
        means = {name: 100 * np.mean(values) for name, values in data["corrupted"].items()}
        by_severity = np.mean(list(data["corrupted"].values()), axis=0)
        left.plot([0, *SEVERITIES], [100 * v for v in (data["clean"], *by_severity)], **style)
        place = np.arange(len(means)) - 0.4 + height * (i + 0.5)
        right.barh(place, list(means.values()), height, color=style["color"], label=run)
    right.set_yticks(range(len(means)), [name.replace("_", " ") for name in means])
    right.invert_yaxis()
    right.set_xlabel("accuracy (%)")
    left.set_xlabel("severity")
    left.set_ylabel("accuracy (%)")
    if len(runs) > 1:
        figure.legend(
            *right.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
        )
