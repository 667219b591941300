"""From a config to its parts: everything that can be wrong with the input is found here.

Nothing is compiled yet.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from sdd_jax import data, models, objectives
from sdd_jax.config import complete
from sdd_jax.data import augment
from sdd_jax.data.engines import Engine, engines
from sdd_jax.errors import InputError, check
from sdd_jax.evaluation.checks import build as build_check
from sdd_jax.evaluation.checks import checks
from sdd_jax.parallel import AXIS
from sdd_jax.trained import load_teacher
from sdd_jax.training import durations
from sdd_jax.training.optimizer import sgd
from sdd_jax.training.random import example_keys, stream_key
from sdd_jax.training.schedules import schedules
from sdd_jax.training.state import TrainState, create

PERTURBATION = 0.2  # probability of a black pixel in perturbed inputs (Rota Bulo et al., 2016)
REFERENCE_INPUTS = 256


@dataclasses.dataclass(frozen=True)
class Subject:
    """What an evaluation needs of a config: the data and the network."""

    config: ConfigDict
    dataset: data.Dataset
    model: nn.Module

    def normalise(self, images: jax.Array) -> jax.Array:
        """uint8 images to the network's input, by the data set's mean and standard deviation."""
        return augment.normalise(images, self.dataset.mean, self.dataset.std)


@dataclasses.dataclass(frozen=True)
class Experiment(Subject):
    """What a training run needs of a config."""

    examples: data.Split
    engine: Engine
    objective: objectives.Objective
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    total_steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    steps_per_call: int

    def create_state(self) -> TrainState:
        """The state before the first step."""
        return create(
            self.model,
            self.optimizer,
            seed=self.config.seed,
            image_shape=self.dataset.image_shape,
            initialise=self.objective.initialise,
            auxiliary=self.objective.auxiliary,
            memory=self._initial_memory(),
        )

    def _initial_memory(self):
        if self.objective.memory is None:
            return None
        labels = jnp.asarray(self.examples.labels)
        return self.objective.memory.create(
            labels, self.dataset.num_classes, self.config.batch_size
        )

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state; the first look traces the network."""
        return jax.eval_shape(self.create_state)

    def references(self) -> dict[str, float]:
        """The objective's figures that hold for the whole run, from the first training inputs."""
        if self.objective.references is None:
            return {}
        images = np.asarray(self.examples.images[:REFERENCE_INPUTS])
        position = jnp.arange(len(images))
        keys = example_keys(self.config.seed, "references", jnp.int32(0), position)
        images = jax.jit(self.prepare)(keys, images)
        return self.objective.references(images, stream_key(self.config.seed, "references"))

    def prepare(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """uint8 images to augmented and normalised ones, by one key each."""
        options = self.config.augment
        augmented = augment.augment(
            keys,
            images,
            pad=options.pad,
            flip=options.flip,
            drop_pixels=PERTURBATION if self.config.inputs == "perturbed" else 0.0,
        )
        return self.normalise(augmented)


def load_subject(config: ConfigDict) -> Subject:
    """Loads the data and builds the network.

    Raises:
      InputError: the config cannot be used.
    """
    check(
        config.eval.batch_size >= 1, "config.eval.batch_size", config.eval.batch_size, "at least 1"
    )
    for name in checks.names():
        build_check(name, config.eval.to_dict())
    dataset = data.load(config.dataset)
    model = models.build(config.model, num_classes=dataset.num_classes, axis_name=AXIS)
    return Subject(config, dataset, model)


def load_experiment(config: ConfigDict) -> Experiment:
    """Loads the data and builds all that training needs.

    Raises:
      InputError: the config cannot be used.
    """
    config = complete(config)
    batch_size, devices = config.batch_size, jax.device_count()
    check(config.seed >= 0, "config.seed", config.seed, "0 or more")
    check(batch_size >= 1, "config.batch_size", batch_size, "at least 1")
    check(
        batch_size % devices == 0,
        "config.batch_size",
        batch_size,
        f"a multiple of the {devices} devices",
    )
    check(config.steps_per_call >= 0, "config.steps_per_call", config.steps_per_call, "0 or more")
    check(
        config.keep_checkpoints >= 1,
        "config.keep_checkpoints",
        config.keep_checkpoints,
        "at least 1",
    )
    learning_rate = config.optimizer.learning_rate
    check(learning_rate > 0, "config.optimizer.learning_rate", learning_rate, "greater than 0")
    subject = load_subject(config)
    augment.check_options(config.augment, subject.dataset.image_shape)
    objective = objectives.build(
        config.objective,
        config.sd_dropout,
        model=subject.model,
        image_shape=subject.dataset.image_shape,
        axis_name=AXIS,
        load_teacher=lambda: load_teacher(config.teacher, subject.dataset, config.dataset),
    )
    if config.teacher and objective.constants is None:
        name = config.objective.name
        raise InputError(f"config.teacher: must be empty, config.objective {name!r} has no teacher")
    examples = _inputs(subject, objective)
    check(
        batch_size <= len(examples),
        "config.batch_size",
        batch_size,
        f"at most {len(examples)}, the images in train",
    )
    engine = engines.build(
        config.engine,
        split=examples,
        batch_size=batch_size,
        sampler=objective.sampler,
        seed=config.seed,
    )

    def to_steps(field: str, duration: str, at_least: int = 1) -> int:
        return durations.steps(
            f"config.{field}", duration, engine.steps_per_epoch, at_least=at_least
        )

    total_steps = to_steps("duration", config.duration)
    schedule: Callable = schedules.build(
        config.schedule,
        learning_rate=learning_rate,
        total_steps=total_steps,
        to_steps=lambda option, duration: to_steps(f"schedule.{option}", duration, at_least=0),
    )
    experiment = Experiment(
        **vars(subject),
        examples=examples,
        engine=engine,
        objective=objective,
        schedule=schedule,
        optimizer=sgd(config.optimizer, schedule),
        total_steps=total_steps,
        log_every=to_steps("log_every", config.log_every),
        eval_every=to_steps("eval_every", config.eval_every),
        checkpoint_every=to_steps("checkpoint_every", config.checkpoint_every),
        steps_per_call=config.steps_per_call or engine.steps_per_call,
    )
    _ = experiment.abstract_state  # does the network take the images, and the initial values?
    return experiment


def _inputs(subject: Subject, objective: objectives.Objective) -> data.Split:
    """The examples of ``config.inputs``."""
    inputs, train = subject.config.inputs, subject.dataset.splits["train"]
    kind, _, name = inputs.partition(":")
    if inputs in ("train", "perturbed"):
        return train
    if kind != "unlabelled" or not name:
        raise InputError(
            f"config.inputs: must be train, perturbed or unlabelled:NAME, got {inputs!r}"
        )
    if objective.uses_labels:
        name = subject.config.objective.name
        raise InputError(f"config.inputs: config.objective {name!r} needs labels, got {inputs!r}")
    other = data.load_other(name, subject.config.dataset)
    check(
        other.image_shape == subject.dataset.image_shape,
        f"config.inputs: images of {name}",
        other.image_shape,
        f"{subject.dataset.image_shape}, as those of {subject.dataset.name}",
    )
    return other.splits["train"]
