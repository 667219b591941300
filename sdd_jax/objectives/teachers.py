"""The teachers of a distillation: dropout masks of finished runs, several runs, or both."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.errors import InputError
from sdd_jax.mc_dropout import DropoutEnsemble, mc_dropout
from sdd_jax.objectives.base import Objective

FLOOR_SAMPLES = 100
SECOND_HEAD = "second_classifier"  # parameters that no teacher needs to have


@dataclasses.dataclass(frozen=True)
class Teachers:
    """An ensemble of frozen networks, each with fresh dropout masks at every step.

    Every network counts equally: one without dropout is repeated where others have several masks.

    Attributes:
      networks: the teachers, with attributes ``model`` and ``variables``.
      num_samples: masks of each network for each image; 1 if none has dropout.
      objective: the name of the objective, for messages.
    """

    networks: Sequence[Any]
    num_samples: int
    objective: str

    @property
    def variables(self) -> tuple[Any, ...]:
        """Variables of the networks, an objective's constants."""
        return tuple(network.variables for network in self.networks)

    def sample(
        self, variables: Sequence[Any], images: jax.Array, keys: Callable[[str], jax.Array]
    ) -> jax.Array:
        """Computes logits ``[S, B, K]`` of S = masks x networks for images ``[B, H, W, C]``."""
        samples = []
        for i, network in enumerate(self.networks):
            # Renaming the streams of the first network would change the results of every student.
            streams = [f"teacher{m}" + (f"/{i}" if i else "") for m in range(self.num_samples)]
            if any(network.model.stochastic()):
                stacked = jnp.stack([keys(stream) for stream in streams])
                logits = jax.vmap(_logits(network), (None, None, 0))(variables[i], images, stacked)
            else:
                once = _logits(network)(variables[i], images, None)
                logits = jnp.broadcast_to(once, (self.num_samples, *once.shape))
            samples.append(logits)
        return jnp.concatenate(samples)

    def floor(self, images: jax.Array, key: jax.Array) -> np.float32:
        """Estimates the mean mutual information of the ensemble on some images."""
        probs, entropies = [], []
        for network in self.networks:
            predict = jax.jit(_logits(network))

            def one_mask(key, network=network, predict=predict):
                return predict(network.variables, images, jax.random.split(key, len(images)))

            masks = FLOOR_SAMPLES if any(network.model.stochastic()) else 1
            prediction = mc_dropout(one_mask, key, num_samples=masks)
            probs.append(prediction.probs)
            entropies.append(prediction.expected_entropy)
        ensemble = DropoutEnsemble(len(probs), sum(probs), sum(entropies))
        return np.float32(jnp.mean(ensemble.prediction().mutual_information))

    def train(self, loss: Callable, *, init: str, **options: Any) -> Objective:
        """The objective of a student; ``init`` "teacher" starts it from the first teacher's values."""
        return Objective(
            loss,
            uses_labels=False,
            initialise=None if init == "scratch" else self.initialise,
            **options,
        )

    def initialise(self, key: jax.Array, student: dict[str, Any]) -> dict[str, Any]:
        """Initialises a student with the values of the first teacher.

        Layers of another shape are drawn from N(0, 0.01). The second head of a student, which the
        teacher lacks, keeps its own values.

        Raises:
          InputError: a student of another structure.
        """
        teacher, params, own = self.networks[0].variables, dict(student["params"]), {}
        if SECOND_HEAD not in teacher["params"] and SECOND_HEAD in params:
            own = {SECOND_HEAD: params.pop(SECOND_HEAD)}
        student = student | {"params": params}
        structure = jax.tree.structure(student)
        if structure != jax.tree.structure(teacher):
            raise InputError(
                f"{self.objective!r} with init='teacher' needs the teacher's network, possibly narrower"
            )
        leaves = jax.tree_util.tree_leaves_with_path(student)
        pairs = [
            (path, x.shape, y)
            for (path, x), y in zip(leaves, jax.tree.leaves(teacher), strict=True)
        ]
        redrawn = {path[:-1] for path, shape, y in pairs if shape != y.shape}
        values = jax.tree.unflatten(
            structure,
            [
                0.01 * jax.random.normal(jax.random.fold_in(key, i), shape)
                if path[:-1] in redrawn
                else jnp.asarray(y)
                for i, (path, shape, y) in enumerate(pairs)
            ],
        )
        return values | {"params": values["params"] | own}


def load(load_teachers: Callable[[], Sequence[Any]], num_samples: int, objective: str) -> Teachers:
    """Loads the teachers of an objective.

    Args:
      load_teachers: returns the teachers, with attributes ``model`` and ``variables``.
      num_samples: masks of each network for each image.
      objective: the name of the objective, for messages.

    Raises:
      InputError: one teacher, without dropout.
    """
    networks = load_teachers()
    stochastic = any(any(network.model.stochastic()) for network in networks)
    if len(networks) == 1 and not stochastic:
        raise InputError(
            f"{objective!r} needs a teacher with dropout, or several teachers; this one's dropout_rate "
            "is 0"
        )
    return Teachers(networks, num_samples if stochastic else 1, objective)


def agreement(samples: jax.Array, logits: jax.Array) -> jax.Array:
    """Share of the samples ``[S, B, K]`` that predict the class of the student's logits, ``[B]``."""
    same = jnp.argmax(samples, axis=-1) == jnp.argmax(logits, axis=-1)[None]
    return jnp.mean(same.astype(jnp.float32), axis=0)


def _logits(network: Any) -> Callable:
    def logits(variables, images, keys):
        return network.model.apply(variables, images, train=False, dropout_keys=keys)

    return logits
