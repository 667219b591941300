"""Accuracy under attack."""

import dataclasses
from functools import partial
from typing import ClassVar

import numpy as np

from sdd_jax.errors import check
from sdd_jax.evaluation import attacks, metrics
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.findings import Findings, Headline, Plot
from sdd_jax.losses import cross_entropy
from sdd_jax.training.random import keys_at, stream_key

LEVELS = 255.0  # pixels of the network's input lie in [0, 255]
BOUNDS = (0.0, LEVELS)


@checks.register("adversarial")
@dataclasses.dataclass(frozen=True)
class Adversarial(Check):
    """Accuracy under FGSM and PGD in pixel space, L-infinity.

    The attacks maximise the cross-entropy of the true label. PGD starts at a random point, takes steps
    of ``2.5 epsilon / pgd_steps`` and hands back the point of the largest loss.

    Attributes:
      epsilons: in 255ths of the pixels' range; 0, no attack, is added.
      pgd_steps: of gradient ascent.
      max_images: how many images at most, the first of the split; 0: all.
    """

    title: ClassVar[str] = "Adversarial robustness"
    epsilons: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    pgd_steps: int = 20
    max_images: int = 0

    def __post_init__(self):
        """Checks the options."""
        possible = len(self.epsilons) > 0 and all(0 <= e <= LEVELS for e in self.epsilons)
        check(possible, "config.eval.epsilons", self.epsilons, "numbers in [0, 255]")
        check(self.pgd_steps >= 1, "config.eval.pgd_steps", self.pgd_steps, "at least 1")
        check(self.max_images >= 0, "config.eval.max_images", self.max_images, "0 or more")

    def __call__(self, evaluation) -> Findings:
        """Accuracy of each attack at each epsilon."""
        count = self.max_images or len(evaluation.labels)
        images, labels = evaluation.images[:count], evaluation.labels[:count]
        epsilons = sorted({0.0, *map(float, self.epsilons)})
        curves = {
            name: {
                epsilon: metrics.top_k_accuracy(
                    metrics.log_softmax(
                        attack(evaluation, images, labels, epsilon)
                        if epsilon
                        else evaluation.logits[:count]
                    ),
                    labels,
                )
                for epsilon in epsilons
            }
            for name, attack in (("fgsm", self._fgsm), ("pgd", self._pgd))
        }
        strongest = f"{epsilons[-1]:g}"
        return Findings(
            {"adversarial/images": len(labels)}
            | {
                f"adversarial/{name}/{epsilon:g}/accuracy": accuracy
                for name, curve in curves.items()
                for epsilon, accuracy in curve.items()
            },
            headline=[
                Headline(
                    f"adversarial/{name}/{epsilon}/accuracy",
                    f"{shown} accuracy at {epsilon}/255, %",
                    100,
                )
                for name, shown in (("fgsm", "FGSM"), ("pgd", f"PGD-{self.pgd_steps}"))
                for epsilon in dict.fromkeys((f"{epsilons[1 % len(epsilons)]:g}", strongest))
            ],
            plots=(
                Plot(
                    "adversarial",
                    "Accuracy under attack",
                    "Every pixel may change by at most epsilon: the longer the curve stays up, the more "
                    "robust the network; the one-step attack is an upper bound of the stronger one.",
                    partial(_draw, self.pgd_steps),
                    curves,
                ),
            ),
            notes=(f"{len(labels):,} images; the attacker knows the network and the labels.",),
        )

    def _fgsm(self, evaluation, images, labels, epsilon):
        return evaluation.map(_fgsm_logits, images, labels, scalars=(np.float32(epsilon),))

    def _pgd(self, evaluation, images, labels, epsilon):
        epsilon, step_size = np.float32(epsilon), np.float32(2.5 * epsilon / self.pgd_steps)
        key = stream_key(evaluation.subject.config.seed, "pgd")
        start = evaluation.compiled(_pgd_start, gather=False)
        step = evaluation.compiled(_pgd_step, gather=False)
        end = evaluation.compiled(_pgd_logits)
        variables = evaluation.variables

        def program(images, labels, position):
            # The loop is on the host: convolutions in one of XLA's are slow on CPU.
            attack = start(variables, (images, labels, position), (key, epsilon))
            for _ in range(self.pgd_steps):
                attack = step(variables, (attack, images, labels), (epsilon, step_size))
            return end(variables, (attack, labels), ())

        return evaluation.stream(program, images, labels, evaluation.position[: len(labels)])


def _loss(network, variables, labels):
    return lambda images: cross_entropy(network.logits(variables, images), labels)


def _fgsm_logits(network, variables, images, labels, epsilon):
    images = images.astype(np.float32)
    moved = attacks.fgsm(_loss(network, variables, labels), images, epsilon, bounds=BOUNDS)
    return network.logits(variables, moved)


def _pgd_start(network, variables, images, labels, position, key, epsilon):
    keys = keys_at(key, position)
    loss_fn = _loss(network, variables, labels)
    return attacks.pgd_start(loss_fn, images.astype(np.float32), keys, epsilon, bounds=BOUNDS)


def _pgd_step(network, variables, attack, images, labels, epsilon, step_size):
    loss_fn = _loss(network, variables, labels)
    images = images.astype(np.float32)
    return attacks.pgd_step(loss_fn, attack, images, epsilon, step_size, bounds=BOUNDS)


def _pgd_logits(network, variables, attack, labels):
    return network.logits(variables, attacks.pgd_end(_loss(network, variables, labels), attack))


def _draw(pgd_steps, figure, runs) -> None:
    axes = figure.subplots()
    for run, (curves, style) in runs.items():
        for name, shown, dash in (("fgsm", "FGSM", "--"), ("pgd", f"PGD-{pgd_steps}", "-")):
            label = shown if len(runs) == 1 else f"{run}, {shown}"
            curve = curves[name]
            values = [100 * accuracy for accuracy in curve.values()]
            axes.plot(list(curve), values, **(style | {"linestyle": dash}), label=label)
    axes.set_xlabel("epsilon (255ths of the pixels' range)")
    axes.set_ylabel("accuracy (%)")
    axes.legend(frameon=False)
