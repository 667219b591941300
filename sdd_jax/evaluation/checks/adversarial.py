"""Accuracy under adversarial attacks."""

import dataclasses
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval, MinLen

from sdd_jax.evaluation import attacks, metrics
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.evaluator import Evaluator
from sdd_jax.evaluation.results import CheckResult, Headline, Plot
from sdd_jax.losses import cross_entropy
from sdd_jax.options import Count
from sdd_jax.prng import keys_at, stream_key

BOUNDS = (0.0, 255.0)  # range of the pixels at the network's input


@checks.register("adversarial")
@dataclasses.dataclass(frozen=True)
class Adversarial(Check):
    """Accuracy under FGSM and PGD in pixel space, L-infinity.

    The attacks maximise the cross-entropy of the true label. PGD starts at a random point, takes steps
    of ``2.5 epsilon / pgd_steps`` and returns the point with the largest loss.

    Attributes:
      epsilons: radii in 255ths of the pixels' range; 0 (no attack) is added.
      pgd_steps: number of steps of gradient ascent.
      max_images: number of attacked images, the first of the split; 0: all.
    """

    title: ClassVar[str] = "Adversarial robustness"
    epsilons: Annotated[tuple[Annotated[float, Interval(ge=0, le=255)], ...], MinLen(1)] = (
        1.0,
        2.0,
        4.0,
        8.0,
    )
    pgd_steps: Annotated[int, Interval(ge=1, le=100_000)] = 20
    max_images: Count = 0

    def __call__(self, evaluator: Evaluator) -> CheckResult:
        """Attacks the images with every epsilon."""
        count = self.max_images or len(evaluator.labels)
        images, labels = evaluator.images[:count], evaluator.labels[:count]
        epsilons = sorted({0.0, *map(float, self.epsilons)})
        curves: dict[str, dict[float, float]] = {"fgsm": {}, "pgd": {}}
        by_image = {}
        for name, attack in (("fgsm", self._fgsm_logits), ("pgd", self._pgd_logits)):
            for epsilon in epsilons:
                logits = (
                    attack(evaluator, images, labels, epsilon)
                    if epsilon
                    else evaluator.logits[:count]
                )
                log_probs = metrics.log_softmax(logits)
                curves[name][epsilon] = metrics.top_k_accuracy(log_probs, labels)
                by_image[f"adversarial/{name}/{epsilon:g}/accuracy"] = [
                    metrics.contributions(log_probs, labels, "accuracy")["accuracy"]
                ]
        weakest, strongest = f"{epsilons[1 % len(epsilons)]:g}", f"{epsilons[-1]:g}"
        return CheckResult(
            {"adversarial/images": len(labels)}
            | {
                f"adversarial/{name}/{epsilon:g}/accuracy": accuracy
                for name, curve in curves.items()
                for epsilon, accuracy in curve.items()
            },
            headline=[
                Headline(
                    f"adversarial/{name}/{epsilon}/accuracy",
                    f"{label} accuracy at {epsilon}/255, %",
                    100,
                )
                for name, label in (("fgsm", "FGSM"), ("pgd", f"PGD-{self.pgd_steps}"))
                for epsilon in dict.fromkeys((weakest, strongest))
            ],
            plots=(
                Plot(
                    "adversarial",
                    "Accuracy under attack",
                    "Every pixel may change by at most epsilon. The longer the curve stays up, the more "
                    "robust the network; the accuracy under the one-step attack is an upper bound of "
                    "that under the stronger one.",
                    partial(_draw, self.pgd_steps),
                    curves,
                    f"accuracy {100 * curves['pgd'][0.0]:.1f} % without an attack, at "
                    f"{strongest}/255 {100 * curves['fgsm'][epsilons[-1]]:.1f} % under FGSM and "
                    f"{100 * curves['pgd'][epsilons[-1]]:.1f} % under PGD-{self.pgd_steps}",
                ),
            ),
            notes=(f"{len(labels):,} images; the attacker knows the network and the labels.",),
            by_image=by_image,
        )

    def _fgsm_logits(self, evaluator, images, labels, epsilon):
        return evaluator.map(_fgsm, images, labels, scalars=(np.float32(epsilon),))

    def _pgd_logits(self, evaluator, images, labels, epsilon):
        epsilon, step_size = np.float32(epsilon), np.float32(2.5 * epsilon / self.pgd_steps)
        key = stream_key(evaluator.setup.seed, "pgd")
        start = evaluator.compiled(_pgd_start, gather=False)
        step = evaluator.compiled(_pgd_step, gather=False)
        end = evaluator.compiled(_pgd_end)
        variables = evaluator.variables

        def program(images, labels, position):
            # The loop runs on the host: convolutions inside XLA's loops are slow on CPU.
            state = start(variables, (images, labels, position), (key, epsilon))
            for _ in range(self.pgd_steps):
                state = step(variables, (state, images, labels), (epsilon, step_size))
            return end(variables, (state, labels), ())

        return evaluator.stream(program, images, labels, evaluator.position[: len(labels)])


def _loss_fn(network, variables, labels):
    return lambda images: cross_entropy(network.logits(variables, images), labels)


def _fgsm(network, variables, images, labels, epsilon):
    images = images.astype(np.float32)
    attacked = attacks.fgsm(_loss_fn(network, variables, labels), images, epsilon, bounds=BOUNDS)
    return network.logits(variables, attacked)


def _pgd_start(network, variables, images, labels, position, key, epsilon):
    keys = keys_at(key, position)
    loss_fn = _loss_fn(network, variables, labels)
    return attacks.pgd_start(loss_fn, images.astype(np.float32), keys, epsilon, bounds=BOUNDS)


def _pgd_step(network, variables, state, images, labels, epsilon, step_size):
    loss_fn = _loss_fn(network, variables, labels)
    images = images.astype(np.float32)
    return attacks.pgd_step(loss_fn, state, images, epsilon, step_size, bounds=BOUNDS)


def _pgd_end(network, variables, state, labels):
    return network.logits(variables, attacks.pgd_end(_loss_fn(network, variables, labels), state))


def _draw(pgd_steps, figure, runs) -> None:
    axes = figure.subplots()
    for run, (curves, style) in runs.items():
        for name, label, dash in (("fgsm", "FGSM", "--"), ("pgd", f"PGD-{pgd_steps}", "-")):
            percent = [100 * accuracy for accuracy in curves[name].values()]
            label = label if len(runs) == 1 else f"{run}, {label}"
            axes.plot(list(curves[name]), percent, **(style | {"linestyle": dash}), label=label)
    axes.set_xlabel("epsilon (255ths of the pixels' range)")
    axes.set_ylabel("accuracy (%)")
    axes.legend(frameon=False)
