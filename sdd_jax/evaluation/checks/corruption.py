"""Accuracy on corrupted images."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np

from sdd_jax.data.copies import on_disk
from sdd_jax.errors import InputError, require
from sdd_jax.evaluation import corruptions, metrics
from sdd_jax.evaluation.batching import HostArray, Network
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.corrupted_folders import corrupted_folders
from sdd_jax.evaluation.evaluator import EvaluationSetup, Evaluator
from sdd_jax.evaluation.results import CheckResult, Headline, Plot, Table
from sdd_jax.options import Count
from sdd_jax.paths import given_path
from sdd_jax.prng import keys_at, stream_key

# (name of the corruption, logits, labels), severity by severity
CorruptedLogits = Iterator[tuple[str, np.ndarray, np.ndarray]]

NUM_OFFICIAL = 19  # corruptions in the published files
METRICS = ("accuracy", "nll", "ece")
SEVERITIES = corruptions.SEVERITIES


@checks.register("corruption")
@dataclasses.dataclass(frozen=True)
class CorruptionRobustness(Check):
    """Accuracy, NLL and ECE on images with common corruptions, at five severities.

    With ``corruption_dir``, the images are those of the official CIFAR-10-C, CIFAR-100-C or ImageNet-C;
    without it, the test images under those of CIFAR-C's corruptions that are given by a formula. The
    metrics are named ``official`` or ``generated`` accordingly.

    Attributes:
      corruption_dir: folder of ``NAME.npy`` files and ``labels.npy``, or of images
        ``NAME/SEVERITY/CLASS/*.JPEG``, decoded batch by batch; the sorted names of the classes are the
        labels 0, 1, ...
      max_images: number of test images to corrupt, the first of the split; 0: all. The official files
        are used whole.

    References:
      Hendrycks and Dietterich, `Benchmarking Neural Network Robustness to Common Corruptions and
      Perturbations <https://arxiv.org/abs/1903.12261>`_, 2019.
    """

    title: ClassVar[str] = "Corruptions"
    one_label = True
    inputs = ("images",)
    corruption_dir: str = ""
    max_images: Count = 0

    def requirement(self, setup: EvaluationSetup) -> str:
        """Applies to every run; ``corruption_dir`` must hold images of its shape."""
        if self.corruption_dir:
            _open(self.corruption_dir, setup)
        return ""

    def __call__(self, evaluator: Evaluator) -> CheckResult:
        """Evaluates each corruption at each severity."""
        if self.corruption_dir:
            kind, count = "official", len(evaluator.labels)
            corrupted = _official(self.corruption_dir, evaluator)
        else:
            kind, count = "generated", self.max_images or len(evaluator.labels)
            corrupted = _generated(evaluator, count)
        results: dict[str, list[dict[str, float]]] = {}
        num_images = 0
        by_image: dict[str, list[np.ndarray]] = {}
        for name, logits, labels in corrupted:
            by_severity, log_probs = results.setdefault(name, []), metrics.log_softmax(logits)
            by_severity.append(metrics.compute(log_probs, labels, *METRICS))
            for metric, image in metrics.contributions(log_probs, labels, *METRICS).items():
                by_image.setdefault(metric, []).append(image)
            num_images = len(labels)
        prefix = f"corruption/{kind}"
        values = {
            f"{prefix}/{name}/{severity}/{metric}": value
            for name, by_severity in results.items()
            for severity, at_severity in zip(SEVERITIES, by_severity, strict=True)
            for metric, value in at_severity.items()
        }
        for metric in METRICS:
            values[f"{prefix}/mean_{metric}"] = float(
                np.mean([at[metric] for by_severity in results.values() for at in by_severity])
            )
        accuracy = {
            name: [at["accuracy"] for at in by_severity] for name, by_severity in results.items()
        }
        clean = metrics.top_k_accuracy(
            metrics.log_softmax(evaluator.logits[:count]), evaluator.labels[:count]
        )
        return CheckResult(
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
                    "Left: mean over the corruptions at each severity; severity 0 is the clean images. "
                    "Right: mean over the severities of each corruption.",
                    _draw,
                    (clean, accuracy),
                    _seen(clean, accuracy),
                    size=(11, 4.6),
                ),
            ),
            tables=(_table(kind, accuracy),),
            notes=(_note(kind, len(results), num_images),),
            by_image={
                f"{prefix}/mean_{metric}": [np.mean(each, axis=0)]
                for metric, each in by_image.items()
            },
        )


def _generated(evaluator: Evaluator, count: int) -> CorruptedLogits:
    shape = evaluator.setup.dataset.image_shape
    for name in corruptions.names(shape[-1]):
        corrupt = evaluator.compiled(_corrupt, gather=False, name=name)
        logits = evaluator.compiled(Network.logits)
        for severity in SEVERITIES:
            key = stream_key(evaluator.setup.seed, f"corruption/{name}/{severity}")
            scalars = key, corruptions.parameters(name, severity, shape)
            yield (
                name,
                evaluator.stream(
                    _program(corrupt, logits, evaluator.variables, scalars),
                    evaluator.images[:count],
                    evaluator.position[:count],
                ),
                evaluator.labels[:count],
            )


def _program(corrupt: Callable, logits: Callable, variables, scalars) -> Callable:
    return lambda *shares: logits(variables, (corrupt({}, shares, scalars),), ())


def _corrupt(network, variables, images, position, key, parameters, *, name):
    return corruptions.corrupt(name, keys_at(key, position), images, parameters)


def _official(folder: str, evaluator: Evaluator) -> CorruptedLogits:
    for name, by_severity in _open(folder, evaluator.setup).items():
        for images, labels in by_severity:
            yield name, evaluator.logits_of(images), labels


def _open(folder: str, setup: EvaluationSetup) -> dict[str, list[tuple[HostArray, np.ndarray]]]:
    """Opens the images of each corruption at each severity, memory-mapped or lazy, and their labels.

    Raises:
      InputError: files are missing, or are not images and labels of the run's data set.
    """
    field = "corruption_dir"
    path, shape = on_disk(given_path(folder, field=field), field=field), setup.dataset.image_shape
    classes = setup.dataset.num_classes
    if not any(path.glob("*.npy")) and any(child.is_dir() for child in path.glob("[!.]*")):
        folders, labels = corrupted_folders(
            path, SEVERITIES, image_shape=shape, num_classes=classes, field=field
        )
        return {name: [(images, labels) for images in each] for name, each in folders.items()}
    arrays = {}
    for file in sorted(path.glob("*.npy")):
        try:
            arrays[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # on damaged files, NumPy raises errors of many types
            raise InputError(f"{file} cannot be read: {error}", field=field) from error
    labels = arrays.pop("labels", None)
    if labels is None or not arrays:
        allowed = "NAME.npy and labels.npy files, or folders NAME/SEVERITY/CLASS"
        raise InputError(f"must hold {allowed}, got {folder!r}", field=field)
    require(
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
        require(
            images.dtype == np.uint8 and images.shape == (len(labels), *shape),
            f"{field}: {name}.npy",
            f"{images.dtype} {images.shape}",
            f"uint8 {(len(labels), *shape)}",
        )
    by_severity = np.split(np.asarray(labels, np.int32), len(SEVERITIES))
    return {
        name: list(zip(np.split(images, len(SEVERITIES)), by_severity, strict=True))
        for name, images in arrays.items()
    }


def _note(kind: str, count: int, num_images: int) -> str:
    if kind == "generated":
        return (
            f"Generated: {count} corruptions, those of CIFAR-C that are formulas, with its severities "
            f"for 32x32 pixels, applied to {num_images:,} test images. Not comparable with results on "
            "the official files."
        )
    partial = "" if count == NUM_OFFICIAL else f" of {NUM_OFFICIAL}; the mean is over these alone"
    return f"Official files: {count} corruptions{partial}."


def _table(kind: str, accuracy: dict[str, list[float]]) -> Table:
    rows = [
        [name.replace("_", " "), *(f"{100 * value:.1f}" for value in [*values, np.mean(values)])]
        for name, values in accuracy.items()
    ]
    means = np.mean(list(accuracy.values()), axis=0)
    rows.append(["mean", *(f"{100 * value:.1f}" for value in [*means, means.mean()])])
    header = ["severity", *map(str, SEVERITIES), "mean"]
    return Table(f"Accuracy (%) under {kind} corruptions", header, rows)


def _seen(clean: float, accuracy: dict[str, list[float]]) -> str:
    mean = np.mean(list(accuracy.values()), axis=0)
    hardest = min(accuracy, key=lambda name: np.mean(accuracy[name]))
    return (
        f"accuracy {100 * clean:.1f} % on clean images, {100 * mean[0]:.1f} % at severity 1, "
        f"{100 * mean[-1]:.1f} % at severity 5; lowest under {hardest.replace('_', ' ')}, "
        f"{100 * np.mean(accuracy[hardest]):.1f} %"
    )


def _draw(figure, runs) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    height, names = 0.8 / len(runs), []
    for i, (run, ((clean, accuracy), style)) in enumerate(runs.items()):
        names = list(accuracy)
        table = 100 * np.array(list(accuracy.values()))  # corruptions x severities
        left.plot([0, *SEVERITIES], [100 * clean, *table.mean(axis=0)], **style)
        bar = np.arange(len(names)) - 0.4 + height * (i + 0.5)
        right.barh(bar, table.mean(axis=1), height, color=style["color"], label=run)
    right.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    right.invert_yaxis()
    right.set_xlabel("accuracy (%)")
    left.set_xlabel("severity")
    left.set_ylabel("accuracy (%)")
    if len(runs) > 1:
        figure.legend(
            *right.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
        )
