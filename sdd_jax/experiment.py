"""Builds the parts of a run from its config, and checks the rules between fields."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from sdd_jax import data, models, objectives
from sdd_jax.config import complete, complete_record, is_operational
from sdd_jax.data.engines import Engine, engines
from sdd_jax.data.inputs import Images
from sdd_jax.devices import AXIS, all_devices
from sdd_jax.dropout import exclusive_masks_fit
from sdd_jax.errors import InputError, require, within
from sdd_jax.evaluation import EvaluationSetup
from sdd_jax.models import pretrained
from sdd_jax.paths import Path
from sdd_jax.prng import example_keys, settings, stream_key
from sdd_jax.runs import (
    TrainedNetwork,
    changed_data,
    load_trained_network,
    network_facts,
    read_config,
    teacher_workdirs,
)
from sdd_jax.training import durations
from sdd_jax.training.optimizers import Optimizer, optimizers
from sdd_jax.training.schedules import schedules
from sdd_jax.training.state import TrainState, create

PERTURBATION = 0.2  # probability of a black pixel in perturbed inputs (Rota Bulo et al., 2016)
NUM_SAMPLE_INPUTS = 256

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a training run.

    Attributes:
      config: the complete config.
      setup: the data set and the network, with the options of an evaluation.
      examples: the training examples of ``config.inputs``.
      engine: supplies the batches.
      objective: the loss to minimise.
      schedule_of: ``total_steps -> schedule``, the learning rate by step of a run of that length.
      optimizer: gradient transformation and parameter average.
      total_steps: number of training steps.
      log_every: steps between log lines.
      eval_every: steps between evaluations.
      checkpoint_every: steps between checkpoints.
      steps_per_call: training steps in one dispatch.
    """

    config: ConfigDict
    setup: EvaluationSetup
    examples: data.Split
    engine: Engine
    objective: objectives.Objective
    schedule_of: Callable[[int], optax.Schedule]
    optimizer: Optimizer
    total_steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    steps_per_call: int

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        return self.schedule_of(self.total_steps)

    def create_state(self) -> TrainState:
        """The state before the first step."""
        dataset, memory = self.setup.dataset, None
        if self.objective.memory is not None:
            memory = self.objective.memory.create(
                jnp.asarray(self.examples.labels), dataset.num_classes, self.config.batch_size
            )
        return create(
            self.setup.model,
            self.optimizer,
            seed=self.config.seed,
            image_shape=dataset.image_shape,
            dtype=dataset.inputs.dtype,
            initialise=self._initialise(),
            auxiliary=self.objective.auxiliary,
            memory=memory,
        )

    def _initialise(self) -> Callable[[jax.Array, Any], Any] | None:
        """Changes the network's initial values: to those of ``model.init``, or by the objective."""
        path = self.config.model.init
        if not path:
            return self.objective.initialise
        if self.objective.initialise is not None:
            raise InputError(
                f"must be empty where the objective sets the initial values, got {path!r}",
                field="init",
            )
        return lambda key, variables: pretrained.start_from(variables, path)

    def facts(self) -> dict[str, dict[str, Any]]:
        """What the run depends on beside its config, in JSON's types.

        Its data, what its network takes and returns, JAX's settings, and the initial parameters.
        """
        facts = {
            "data": self.setup.dataset.fingerprint(),
            "network": network_facts(self.setup.dataset),
            "jax_settings": settings(),
        }
        if path := self.config.model.init:
            facts["init"] = {"sha256": pretrained.digest(path)}
        if self.examples is not self.setup.dataset.splits["train"]:
            facts["inputs"] = self.examples.fingerprint()
        return facts

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state; the first access traces the network."""
        return jax.eval_shape(self.create_state)

    def constants(self) -> Any:
        """The objective's constants, from the first training inputs; None without any."""
        if self.objective.constants is None:
            return None
        raw = np.asarray(self.examples.images[:NUM_SAMPLE_INPUTS])
        # Renaming this stream would change the results of every run with constants.
        keys = example_keys(self.config.seed, "references", jnp.int32(0), jnp.arange(len(raw)))
        prepared = jax.jit(self.prepare)(keys, raw)
        return self.objective.constants(prepared, stream_key(self.config.seed, "references"))

    def prepare(self, keys: jax.Array, raw: Any) -> Any:
        """Augments and normalises raw inputs, or images with labels that move, with one key for each."""
        dataset, kind = self.setup.dataset, self.setup.dataset.inputs
        inputs, labels = raw if isinstance(raw, tuple) else (raw, None)
        options = _augmentation(self.config) | {"move": dataset.task.moved}
        augmented, labels = kind.augment(keys, inputs, labels, **options)
        prepared = kind.normalise(augmented, dataset.mean, dataset.std)
        return prepared if labels is None else (prepared, labels)


def _augmentation(config: ConfigDict) -> dict[str, Any]:
    """Options of :func:`sdd_jax.data.images.augment_pairs`."""
    perturbed = config.inputs == "perturbed"
    return {**config.augment, "drop_pixels": PERTURBATION if perturbed else 0.0}


def load_setup(config: ConfigDict) -> EvaluationSetup:
    """Loads the data and builds the network of a complete config.

    Raises:
      InputError: the config cannot be used.
    """
    with within("config.dataset"):
        dataset = data.load(config.seed, **config.dataset)
    model = models.build(config.model, num_classes=dataset.num_classes, axis_name=AXIS)
    return EvaluationSetup(
        model=model,
        dataset=dataset,
        seed=config.seed,
        batch_size=config.eval.batch_size,
        load_dataset=lambda name: data.load_other(name, config.dataset),
        load_teachers=(lambda: _load_teachers(config, dataset)) if config.teacher else None,
        sd_dropout_rate=sd_dropout_rate(config),
    )


def sd_dropout_rate(config: ConfigDict) -> float:
    """Mean rate of the SD-Dropout masks of a run; 0 if it trains without SD-Dropout."""
    term = config.sd_dropout
    mean_rate = sum(term.random_rate) / 2 if term.random_rate else term.rate
    return mean_rate if term.weight else 0.0


def load_experiment(config: ConfigDict) -> Experiment:
    """Loads the data and builds all parts of a run; compiles nothing.

    Raises:
      InputError: the config cannot be used.
    """
    config = complete(config)
    _check_fields(config)
    setup = load_setup(config)
    dataset, model = setup.dataset, setup.model
    objective = objectives.build(
        config.objective,
        config.sd_dropout,
        model=model,
        image_shape=dataset.image_shape,
        axis_name=AXIS,
        load_teachers=lambda: _load_teachers(config, dataset),
    )
    examples = _training_examples(config, dataset, objective)
    _check_parts(config, setup, objective, examples)
    engine = engines.build(
        config.engine,
        split=examples,
        batch_size=config.batch_size,
        sampler=objective.sampler,
        seed=config.seed,
    )

    def to_steps(field: str, duration: str, at_least: int = 1) -> int:
        return durations.steps(
            f"config.{field}", duration, engine.steps_per_epoch, at_least=at_least
        )

    total_steps = to_steps("duration", config.duration)

    def schedule(learning_rate: float, total: int = total_steps) -> optax.Schedule:
        return schedules.build(
            config.schedule,
            learning_rate=learning_rate,
            total_steps=total,
            to_steps=lambda option, duration: to_steps(f"schedule.{option}", duration, at_least=0),
        )

    experiment = Experiment(
        config=config,
        setup=setup,
        examples=examples,
        engine=engine,
        objective=objective,
        schedule_of=functools.partial(schedule, config.optimizer.learning_rate),
        optimizer=optimizers.build(config.optimizer, schedule=schedule),
        total_steps=total_steps,
        log_every=to_steps("log_every", config.log_every),
        eval_every=to_steps("eval_every", config.eval_every),
        checkpoint_every=to_steps("checkpoint_every", config.checkpoint_every),
        steps_per_call=config.steps_per_call or engine.steps_per_call,
    )
    with within("config.model"):
        # Traces the network, which raises an InputError if it cannot take these images.
        _check_outputs(experiment)
    if config.schedule.name in ("cosine", "step"):  # an option of another may mean something else
        warmup = to_steps("schedule.warmup", config.schedule.warmup, at_least=0)
        _warn_of_schedule(config.schedule, warmup=warmup, total_steps=total_steps)
    _warn_of_empty_masks(experiment)
    return experiment


# ------------------------------------------------------------------------- rules between fields


def _check_fields(config: ConfigDict) -> None:
    """Rules that the config alone decides."""
    term = config.sd_dropout
    low_high = tuple(term.random_rate)
    require(
        len(low_high) in (0, 2) and low_high == tuple(sorted(low_high)),
        "config.sd_dropout.random_rate",
        low_high,
        "empty or (low, high) with 0 <= low <= high < 1",
    )
    lowest = min(low_high, default=term.rate)
    if term.exclusive and not exclusive_masks_fit(term.num_samples, lowest):
        raise InputError(
            "disjoint masks need num_samples * (1 - rate) of at most 1, got "
            f"{term.num_samples} * (1 - {lowest})",
            field="config.sd_dropout.exclusive",
        )
    devices = all_devices().size
    require(
        config.batch_size % devices == 0,
        "config.batch_size",
        config.batch_size,
        f"a multiple of the {devices} devices",
    )
    share = config.batch_size // devices
    require(
        share % config.accumulate == 0,
        "config.accumulate",
        config.accumulate,
        f"a divisor of {share}, the examples of a device",
    )


def _check_parts(
    config: ConfigDict,
    setup: EvaluationSetup,
    objective: objectives.Objective,
    examples: data.Split,
) -> None:
    """Rules between the config and the data, the network and the objective."""
    dataset, name = setup.dataset, config.model.name
    with within("config.augment"):
        dataset.inputs.check_augmentation(dataset.image_shape, config.augment.to_dict())
    if config.inputs == "perturbed" and not isinstance(dataset.inputs, Images):
        raise InputError(f"needs images, got {dataset.inputs.name}", field="config.inputs")
    takes = setup.model.takes()
    if dataset.inputs.name not in takes:
        raise InputError(
            f"{name!r} takes {' or '.join(takes)}, got the {dataset.inputs.name} of {dataset.name}",
            field="config.model.name",
        )
    if vocabulary := setup.model.vocabulary():
        largest = max(int(np.max(split.images)) for split in dataset.splits.values())
        require(
            largest < vocabulary,
            "config.model.vocabulary",
            vocabulary,
            f"at least {largest + 1}, above the largest token id",
        )
    num_stages = setup.model.num_stages()
    require(
        config.sd_dropout.position <= num_stages,
        "config.sd_dropout.position",
        config.sd_dropout.position,
        f"0 (the features) or one of the network's {num_stages} stages",
    )
    name, spread = config.objective.name, config.model.spread
    if objective.one_label and not dataset.task.one_label:
        raise InputError(
            f"{name!r} needs one label per example; the task of {dataset.name} is {dataset.task.name}",
            field="config.objective.name",
        )
    require(
        spread == objective.spread,
        "config.model.spread",
        spread,
        f"{objective.spread} for config.objective {name!r}",
    )
    if config.teacher and objective.constants is None:
        raise InputError(
            f"must be empty, config.objective {name!r} has no teacher", field="config.teacher"
        )
    require(
        config.batch_size <= len(examples),
        "config.batch_size",
        config.batch_size,
        f"at most {len(examples)}, the number of training {dataset.inputs.name}",
    )
    require(
        config.batch_size % objective.batch_multiple == 0,
        "config.batch_size",
        config.batch_size,
        f"a multiple of {objective.batch_multiple} for config.objective {name!r}",
    )


def _check_outputs(experiment: Experiment) -> None:
    """Traces the network, which raises an InputError if it cannot take these inputs."""
    dataset, variables = experiment.setup.dataset, experiment.abstract_state.variables
    inputs = jax.ShapeDtypeStruct((1, *dataset.image_shape), dataset.inputs.dtype)
    outputs = jax.eval_shape(experiment.setup.model.apply, variables, inputs).shape[1:]
    labels = dataset.splits["train"].labels.shape[1:]
    expected = dataset.task.output_shape(dataset.image_shape, labels, dataset.num_classes)
    if outputs != expected:
        raise InputError(
            f"{experiment.config.model.name!r} has outputs {list(outputs)} for an input "
            f"{list(dataset.image_shape)}; the task {dataset.task.name} needs {list(expected)}",
            field="name",
        )


def _warn_of_schedule(schedule: ConfigDict, *, warmup: int, total_steps: int) -> None:
    """Warns of a part without effect; not an error, since a recipe is often tried for a few steps."""
    if warmup >= total_steps:
        _logger.warning(
            "config.schedule.warmup: %s is not shorter than the run of %d steps; the learning rate "
            "never reaches its peak",
            schedule.warmup,
            total_steps,
        )
    if schedule.name == "step" and not schedule.milestones:
        _logger.warning("config.schedule.milestones: empty; the learning rate never decays")


def _warn_of_empty_masks(experiment: Experiment) -> None:
    """Warns if the masks of SD-Dropout keep less than one feature on average."""
    term, setup = experiment.config.sd_dropout, experiment.setup
    rate = setup.sd_dropout_rate  # 0 if the term has no weight
    if rate <= 0.5 or term.position:  # spares a trace of the network
        return
    features = jax.eval_shape(
        functools.partial(setup.model.apply, method="features"),
        experiment.abstract_state.variables,
        jnp.zeros((1, *setup.dataset.image_shape), setup.dataset.inputs.dtype),
    )
    size = features.shape[-1]
    kept = round(size * (1 - rate), 6)
    if kept < 1:
        _logger.warning(
            "config.sd_dropout.%s: keeps %g of %d features on average; the SD-Dropout term is 0 for "
            "every example whose masks keep none",
            "random_rate" if term.random_rate else "rate",
            kept,
            size,
        )


def _training_examples(
    config: ConfigDict, dataset: data.Dataset, objective: objectives.Objective
) -> data.Split:
    """The examples of ``config.inputs``."""
    kind, _, name = config.inputs.partition(":")
    if config.inputs in ("train", "perturbed"):
        return dataset.splits["train"]
    if kind != "unlabelled" or not name:
        raise InputError(
            f"must be train, perturbed or unlabelled:NAME, got {config.inputs!r}",
            field="config.inputs",
        )
    if objective.uses_labels:
        raise InputError(
            f"config.objective {config.objective.name!r} needs labels, got {config.inputs!r}",
            field="config.inputs",
        )
    with within("config.inputs"):
        other = data.load_other(name, config.dataset)
    require(
        other.image_shape == dataset.image_shape,
        f"config.inputs: {other.inputs.name} of {name}",
        other.image_shape,
        f"{dataset.image_shape}, as those of {dataset.name}",
    )
    return other.splits["train"]


def _load_teachers(config: ConfigDict, dataset: data.Dataset) -> list[TrainedNetwork]:
    """The frozen teachers of a run, which must have been trained on the same data."""
    folders = teacher_workdirs(config.teacher)
    if not folders:
        raise InputError("must be the workdir of a finished run, got ''", field="config.teacher")
    return [_load_teacher(folder, config, dataset) for folder in folders]


def _load_teacher(folder: Path, config: ConfigDict, dataset: data.Dataset) -> TrainedNetwork:
    field = "config.teacher"
    teacher = complete_record(read_config(folder, field=field))
    for name, ours in config.dataset.items():
        theirs = teacher.dataset[name]
        if ours != theirs and not is_operational(f"dataset.{name}"):
            raise InputError(
                f"{folder} was trained with config.dataset.{name} {theirs!r}, this run has {ours!r}",
                field=field,
            )
    if different := changed_data(folder, dataset, field=field):
        raise InputError(f"must be trained on the same data ({'; '.join(different)})", field=field)
    return load_trained_network(folder, dataset, field=field)
