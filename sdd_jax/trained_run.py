"""A trained run for use from Python: predictions, uncertainty, and export."""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from sdd_jax import data, hosts
from sdd_jax.config import complete_record
from sdd_jax.data import inputs as kinds
from sdd_jax.data.inputs import Images, Inputs
from sdd_jax.devices import replicate
from sdd_jax.errors import InputError, require, within, writing
from sdd_jax.evaluation import EvaluationSetup, Evaluator, metrics, records
from sdd_jax.evaluation.batching import Network
from sdd_jax.experiment import sd_dropout_rate
from sdd_jax.mc_dropout import DropoutEnsemble, Prediction
from sdd_jax.models import pretrained
from sdd_jax.options import Positive, Size, validate
from sdd_jax.paths import Path, given_path
from sdd_jax.runs import (
    UNSTATED,
    abstract_variables,
    build_network,
    changed_data,
    network_facts,
    read_config,
    read_record,
    restore,
    write_bytes,
    write_config,
)
from sdd_jax.runs.workdir import CONFIG_FILE
from sdd_jax.tasks import Classification, Task, tasks

FIELD = "path"


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun:
    """The network of a run with the parameters of a checkpoint, and what its images must be.

    Images are raw, uint8 ``[N, H, W, C]``, or ``[N, H, W]`` for a network of grey images. They are
    normalised as those of the training, and computed in batches on all devices. Images of another size
    are an error: :func:`sdd_jax.data.resized` changes their size and number of channels.

    In place of images, a run may take features, floating-point ``[N, D]``, or token ids, integers
    ``[N, L]``. Where the labels of its data are ``[N, H, W]``, one for each pixel, its results are
    ``[N, H, W, K]`` in place of ``[N, K]``. Those of a detector are detections ``[N, P, 6]``: left, top,
    width and height in pixels, class, and logit or score, from the highest.

    Attributes:
      config: the complete config.
      model: the network, a linen module that takes normalised images.
      variables: parameters and batch statistics, as host arrays. The parameters are their exponential
        moving average if the run keeps one.
      step: the step of the checkpoint.
      num_classes: K.
      image_shape: ``(H, W, C)``; or the shape of an input of another kind.
      mean: float32 ``[C]``, channel means of pixels in [0, 1], or means of features.
      std: float32 ``[C]``, channel standard deviations, likewise.
      task: what the labels of its data are.
      inputs: the kind of its inputs.
      temperature: the temperature that the check ``calibration`` fitted at this step; None if it has not
        been evaluated, had no validation split, or stopped at its lower bound.
    """

    config: ConfigDict = dataclasses.field(repr=False)
    model: nn.Module = dataclasses.field(repr=False)
    variables: dict[str, Any] = dataclasses.field(repr=False)
    step: int
    num_classes: int
    image_shape: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray
    temperature: float | None = None
    task: Task = dataclasses.field(default_factory=Classification)
    inputs: Inputs = dataclasses.field(default_factory=Images)

    def predict(
        self, images: ArrayLike, *, temperature: float | Literal["fitted"] = 1.0
    ) -> np.ndarray:
        """Computes class probabilities, softmax(z / T) of the logits z, dropout off.

        If an example may have any number of labels, they are sigmoid(z / T), one for each label.

        Args:
          images: uint8 ``[N, H, W, C]``.
          temperature: T, greater than 0; or "fitted", the attribute ``temperature``.

        Returns:
          float32 ``[N, K]``.

        Raises:
          ValueError: images of another dtype or shape, or no such temperature.
        """
        if temperature == "fitted":
            if self.temperature is None:
                raise ValueError(
                    f"temperature: none is fitted for step {self.step}; train with a validation split, "
                    "run the check calibration, and load the run again"
                )
            temperature = self.temperature
        if not (isinstance(temperature, int | float | np.floating) and 0 < temperature < math.inf):
            raise ValueError(f"temperature must be 'fitted' or above 0, got {temperature!r}")
        outputs = self.logits(images).astype(np.float64)
        return self.task.probabilities(outputs, float(temperature)).astype(np.float32)

    def logits(self, images: ArrayLike) -> np.ndarray:
        """Computes logits, float32 ``[N, K]``, dropout off; see :meth:`predict`."""
        evaluator, number = self._evaluator(images)
        return evaluator.logits[:number]

    def features(self, images: ArrayLike) -> np.ndarray:
        """Computes penultimate features, float32 ``[N, D]``, dropout off; see :meth:`predict`."""
        evaluator, number = self._evaluator(images)
        return evaluator.map(Network.features, evaluator.images)[:number]

    def uncertainty(self, images: ArrayLike) -> Prediction:
        """Computes the mean posterior and the spread of a student of an ensemble, in one pass.

        The numbers are those that :meth:`mc_dropout` estimates for the teacher, from many passes. The
        mean is that of :meth:`predict`, except for ``model.spread`` "gaussian", of which ``predict`` is
        the posterior at the mean logits.

        Args:
          images: uint8 ``[N, H, W, C]``.

        Returns:
          In float32: probabilities ``[N, K]``, entropy, expected entropy and mutual information ``[N]``.

        Raises:
          ValueError: images of another dtype or shape, or a network without a spread.
        """
        if self.config.model.spread == "none":
            raise ValueError(
                "the network has no spread: train it with an objective that gives one, such as "
                "distill_dirichlet, or use mc_dropout"
            )
        evaluator, number = self._evaluator(images)
        return Prediction(*(x[:number] for x in evaluator.prediction_of(evaluator.images)))

    def mc_dropout(
        self, images: ArrayLike, *, num_samples: int = 100, seed: int = 0, rate: float = 0.0
    ) -> Prediction:
        """Averages the predictions of ``num_samples`` dropout masks, as the check ``mc_dropout`` does.

        The dropout is the network's own. A network without any gets dropout on its features, at the rate
        of the SD-Dropout that it was trained with. The masks of an image depend on ``seed`` and on its
        index.

        Args:
          images: uint8 ``[N, H, W, C]``.
          num_samples: m, at least 1.
          seed: seed of the masks.
          rate: dropout rate on the features, in place of that dropout; 0: keep it.

        Returns:
          The prediction of :func:`sdd_jax.mc_dropout`, in float32: probabilities ``[N, K]``, entropy,
          expected entropy and mutual information ``[N]``. If an example may have any number of labels,
          each of them is a choice between no and yes: ``[N, K, 2]`` and ``[N, K]``.

        Raises:
          ValueError: images of another dtype or shape, a number out of range, no dropout, or a detector.
        """
        if not self.task.fixed_decisions:
            raise ValueError(
                f"the {self.task.noun}s of two masks differ, so that there is no mean of them"
            )
        if num_samples < 1 or not 0 <= rate < 1:
            raise ValueError(
                f"num_samples must be at least 1 and rate in [0, 1), got {num_samples} and {rate}"
            )
        (evaluator, number), ensemble = self._evaluator(images, seed), None
        mask_rate = evaluator.setup.mask_rate(rate)
        if mask_rate is None:
            raise ValueError("rate must be above 0: the run was trained without dropout")
        for sample in range(num_samples):
            outputs = evaluator.sampled_logits(sample, rate=mask_rate).astype(np.float64)
            logits = self.task.classes(outputs)
            ensemble = DropoutEnsemble.of(logits) if ensemble is None else ensemble.add(logits)
        assert ensemble is not None  # num_samples is at least 1
        return Prediction(*(x[:number].astype(np.float32) for x in ensemble.prediction()))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Exports the run to ``model.safetensors`` and ``config.json``, which :func:`load` reads.

        The arrays are named by their path, as in ``params/backbone/stem_conv/kernel``. A network can
        also start from the file, see ``config.model.init``. Both files are data: nothing in them is
        executed. The Python files that the run imports are copied into ``imports/``.

        Args:
          folder: created if necessary; an earlier export is replaced.

        Raises:
          InputError: the folder holds a run.
          WriteError: a file cannot be written.
        """
        target = given_path(folder, field="folder")
        holds_run = (target / "checkpoints").exists()
        require(not holds_run, "folder", os.fspath(folder), "another folder than that of a run")
        if not hosts.first():
            return
        arrays = {  # safetensors would write other strides in the wrong order
            name: np.asarray(x, order="C")
            for name, x in flatten_dict(self.variables, sep="/").items()
        }
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
        write_bytes(target / pretrained.FILE, safetensors.numpy.save(arrays))
        facts = {
            "step": self.step,
            "temperature": self.temperature,
            "network": {
                "num_classes": self.num_classes,
                "image_shape": list(self.image_shape),
                "mean": self.mean.tolist(),
                "std": self.std.tolist(),
                "task": self.task.name,
                "inputs": self.inputs.name,
            },
            "weights": {"sha256": pretrained.digest(target)},
        }
        write_config(target, self.config, facts)

    @functools.cached_property
    def _on_devices(self) -> Any:
        return replicate(self.variables)

    def _evaluator(self, images: ArrayLike, seed: int = 0) -> tuple[Evaluator, int]:
        """The evaluator of the images, and their number.

        They are padded to one of few sizes, each of which is compiled once.
        """
        array = np.asarray(images)
        if array.ndim == 3 and self.image_shape[-1] == 1:
            array = array[..., None]
        if not self.inputs.fits(array) or array.shape[1:] != self.image_shape:
            raise self._refused(images)
        try:
            array = self.inputs.validated(self.inputs.name, array)
        except InputError as error:
            raise self._refused(images) from error
        batch_size = self.config.eval.batch_size
        rows = min(batch_size, 2 ** math.ceil(math.log2(max(len(array), 1))))
        padding = max(0, rows - len(array))
        padded = np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
        split = data.Split(padded, np.zeros(len(padded), np.int32))
        dataset = data.Dataset(
            self.config.dataset.name,
            self.num_classes,
            {"test": split},
            self.mean,
            self.std,
            self.task,
            self.inputs,
        )
        setup = EvaluationSetup(
            model=self.model,
            dataset=dataset,
            seed=seed,
            batch_size=batch_size,
            load_dataset=lambda name: data.load_other(name, self.config.dataset),
            sd_dropout_rate=sd_dropout_rate(self.config),
        )
        return Evaluator(setup, self._on_devices), len(array)

    def _refused(self, images: ArrayLike) -> ValueError:
        size = ", ".join(map(str, self.image_shape))
        got = f"got {np.asarray(images).dtype} {list(np.shape(images))}"
        if self.inputs.name == "images":
            return ValueError(
                f"images must be uint8 [N, {size}], {got}; sdd_jax.data.resized changes the size of "
                "uint8 images"
            )
        return ValueError(f"inputs must be {self.inputs.name} [N, {size}], {got}")


def load(
    path: str | os.PathLike,
    *,
    checkpoint: str | int = "latest",
    trust_imports: bool = False,
    num_classes: int | None = None,
    image_shape: Sequence[int] | None = None,
    mean: Sequence[float] | np.ndarray | None = None,
    std: Sequence[float] | np.ndarray | None = None,
) -> TrainedRun:
    """Loads a trained run, or an export of :meth:`TrainedRun.save_pretrained`, without its data.

    The last four arguments are for runs of earlier versions, whose record lacks them. Without them, such
    a run needs its data set.

    Args:
      path: folder of the run, or of the export.
      checkpoint: "latest", "best" (on the validation split) or a step.
      trust_imports: execute the Python files that the config of the run imports.
      num_classes: K.
      image_shape: ``(H, W, C)``.
      mean: channel means of pixels in [0, 1], with which images are normalised.
      std: channel standard deviations, likewise.

    Returns:
      The run; see :class:`TrainedRun`.

    Raises:
      InputError: there is no run or no such checkpoint, or one that cannot be read; the config imports
        files; or the record lacks a field and the data set cannot be loaded. It is a ValueError.

    Example:
      >>> import sdd_jax
      >>> run = sdd_jax.load("runs/digits")  # doctest: +SKIP
      >>> run.predict(images).argmax(axis=-1)  # doctest: +SKIP
    """
    folder = given_path(path, field=FIELD)
    record = read_record(folder, field=FIELD)
    if not trust_imports:
        read_config(folder, field=FIELD)  # refuses a config that imports files
    config = complete_record(record["config"])
    arguments = {"num_classes": num_classes, "image_shape": image_shape, "mean": mean, "std": std}
    given = {k: np.asarray(value).tolist() for k, value in arguments.items() if value is not None}
    network = _network(folder, record, config, given)
    model = build_network(config, network["num_classes"])
    inputs = kinds.KINDS[network["inputs"]]
    like = abstract_variables(model, network["image_shape"], inputs.dtype)
    if (folder / pretrained.FILE).exists() and not (folder / "checkpoints").exists():
        step, temperature, variables = _exported(folder, record, like)
        require(
            str(checkpoint) in ("latest", str(step)), "checkpoint", checkpoint, f"{step}, or latest"
        )
    else:
        step, variables = restore(folder, like, checkpoint, field=FIELD)
        temperature = _fitted_temperature(folder, step)
    return TrainedRun(
        config,
        model,
        variables,
        step,
        network["num_classes"],
        network["image_shape"],
        np.asarray(network["mean"], np.float32),
        np.asarray(network["std"], np.float32),
        temperature,
        tasks.get(network["task"])(),
        inputs,
    )


def _network_options(
    *,
    num_classes: Size = 1,
    image_shape: tuple[Size, ...] = (),
    mean: tuple[float, ...] = (),
    std: tuple[Positive, ...] = (),
    task: str = "classification",
    inputs: str = "images",
) -> None:
    """Types and ranges of :func:`sdd_jax.runs.network_facts`."""


def _network(
    folder: Path, record: Mapping[str, Any], config: ConfigDict, given: dict[str, Any]
) -> dict[str, Any]:
    """The number of classes, shape, mean and std: as given, as recorded, or else of the data set."""
    known = UNSTATED | _recorded(folder, record, config) | given
    if missing := [
        name for name in ("num_classes", "image_shape", "mean", "std") if name not in known
    ]:
        known = _of_data_set(folder, config, missing) | known
    with within("" if given else f"{folder / CONFIG_FILE}: network"):
        network = validate(_network_options, known)
        shape, known_tasks, named = network["image_shape"], tasks.names(), network["inputs"]
        require(network["task"] in known_tasks, "task", network["task"], " or ".join(known_tasks))
        require(named in kinds.KINDS, "inputs", named, " or ".join(kinds.KINDS))
        is_image = named == "images"
        require(len(shape) == 3 if is_image else len(shape) > 0, "image_shape", shape, "(H, W, C)")
        channels = kinds.KINDS[named].channels(shape)
        for name in ("mean", "std"):
            fits = len(network[name]) == channels
            require(fits, name, network[name], f"{channels} numbers, one for each channel")
    return network


def _recorded(folder: Path, record: Mapping[str, Any], config: ConfigDict) -> dict[str, Any]:
    """What the record states; version 0.2 wrote the number of classes and the shape with the data."""
    try:
        if "network" in record:
            return dict(record["network"])
        known = {name: config.dataset[name] for name in ("mean", "std") if config.dataset[name]}
        if "data" in record:
            known["num_classes"] = record["data"]["classes"]
            known["image_shape"] = record["data"]["train"]["shape"]
        return known
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / CONFIG_FILE} cannot be read: {error!r}", field=FIELD
        ) from error


def _of_data_set(folder: Path, config: ConfigDict, missing: Sequence[str]) -> dict[str, Any]:
    try:
        dataset = data.load(config.seed, **config.dataset)
        if different := changed_data(folder, dataset, field=FIELD):
            raise InputError("; ".join(different))
    except InputError as error:
        arguments = ", ".join(f"{name}=..." for name in missing)
        raise InputError(
            f"the record of {folder}, of an earlier version, lacks {', '.join(missing)}, and its data "
            f"set is not there ({error}); give {arguments}",
            field=FIELD,
        ) from error
    return network_facts(dataset)


def _exported(
    folder: Path, record: Mapping[str, Any], like: dict[str, Any]
) -> tuple[int, float | None, dict[str, Any]]:
    """Step, temperature and variables of an export."""
    file = folder / pretrained.FILE
    with within(FIELD):
        arrays = pretrained.read(file)
        try:
            digest, step = record["weights"]["sha256"], int(record["step"])
            temperature = None if record["temperature"] is None else float(record["temperature"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder / CONFIG_FILE} cannot be read: {error!r}") from error
        if digest != pretrained.digest(file):
            raise InputError(
                f"{file} is damaged, or not the one that {CONFIG_FILE} was written for"
            )
        named = {name: (name, array) for name, array in arrays.items()}
        return step, temperature, pretrained.matched(named, like, file)


def _fitted_temperature(folder: Path, step: int) -> float | None:
    """The temperature that the check ``calibration`` recorded at this step, if it can be used."""
    record = records.read(folder / "eval").get("calibration")
    if record is None or record.step != step:
        return None
    temperature = record.metrics.get("calibration/temperature")
    return None if temperature == metrics.LOWEST_TEMPERATURE else temperature
