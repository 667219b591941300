"""Accuracy under adversarial attacks."""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval, MinLen

from sdd_jax.errors import require
from sdd_jax.evaluation import attacks, metrics
from sdd_jax.evaluation.adversaries import Adversary, adversaries
from sdd_jax.evaluation.checks import Check, checks
from sdd_jax.evaluation.evaluator import Evaluator
from sdd_jax.evaluation.results import CheckResult, Headline, Plot, Table
from sdd_jax.losses import cross_entropy
from sdd_jax.options import Count
from sdd_jax.prng import keys_at, stream_key

BOUNDS = (0.0, 255.0)  # range of the pixels at the network's input


@checks.register("adversarial")
@dataclasses.dataclass(frozen=True)
class Adversarial(Check):
    """Accuracy under FGSM, PGD and the worst of several attacks in pixel space, L-infinity.

    FGSM and PGD maximise the cross-entropy of the true label. PGD starts at a random point, takes steps
    of ``2.5 epsilon / pgd_steps`` and returns the point with the largest loss.

    The worst case is over ``attacks`` (:mod:`sdd_jax.evaluation.adversaries`): an image counts as robust
    if the network classifies it correctly without an attack and under each of them. An attack is tried
    on the images that have survived those before it. The default three need no parameters. AutoAttack
    has two of them and targeted ones in place of APGD-DLR.

    The attacked network is the deterministic one: dropout is off, batch norm uses its averages.

    Attributes:
      epsilons: radii in 255ths of the pixels' range; 0 (no attack) is added.
      pgd_steps: number of steps of gradient ascent.
      attacks: names of the attacks of the worst case; none: leave it out.
      apgd_steps: number of steps of Auto-PGD.
      square_queries: number of queries of Square, one pass through the network each.
      max_images: number of attacked images, the first of the split; 0: all.

    References:
      Croce and Hein, `Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks <https://arxiv.org/abs/2003.01690>`_, 2020.
    """

    title: ClassVar[str] = "Adversarial robustness"
    one_label = True
    inputs = ("images",)
    epsilons: Annotated[tuple[Annotated[float, Interval(ge=0, le=255)], ...], MinLen(1)] = (
        1.0,
        2.0,
        4.0,
        8.0,
    )
    pgd_steps: Annotated[int, Interval(ge=1, le=100_000)] = 20
    attacks: tuple[str, ...] = ("apgd_ce", "apgd_dlr", "square")
    apgd_steps: Annotated[int, Interval(ge=1, le=100_000)] = 100
    square_queries: Annotated[int, Interval(ge=1, le=100_000)] = 5000
    max_images: Count = 0

    def __post_init__(self):
        """Rejects unknown attacks, and one that is chosen twice."""
        known = adversaries.names()
        for name in self.attacks:
            require(name in known, "attacks", name, f"one of {', '.join(known)}")
        distinct = len(set(self.attacks)) == len(self.attacks)
        require(distinct, "attacks", self.attacks, "different attacks")

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
        chosen, notes = self._applicable(evaluator.setup.dataset.num_classes)
        by_attack = {e: self._robust(evaluator, chosen, images, labels, e) for e in epsilons}
        if chosen:
            curves["worst_case"] = {}
        for epsilon, after in by_attack.items() if chosen else ():
            robust = after[list(chosen)[-1]]
            curves["worst_case"][epsilon] = float(robust.mean())
            by_image[f"adversarial/worst_case/{epsilon:g}/accuracy"] = [robust]
        titles = {"fgsm": "FGSM", "pgd": f"PGD-{self.pgd_steps}", "worst_case": "worst-case"}
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
                    f"{titles[name]} accuracy at {epsilon}/255, %",
                    100,
                )
                for name in curves
                for epsilon in dict.fromkeys((weakest, strongest))
            ],
            plots=(
                Plot(
                    "adversarial",
                    "Accuracy under attack",
                    "Every pixel may change by at most epsilon. The longer the curve stays up, the more "
                    "robust the network; the accuracy under a weaker attack is an upper bound of that "
                    "under a stronger one.",
                    partial(_draw, titles),
                    curves,
                    f"accuracy {100 * curves['pgd'][0.0]:.1f} % without an attack, at {strongest}/255 "
                    + ", ".join(
                        f"{titles[name]} {100 * curve[epsilons[-1]]:.1f} %"
                        for name, curve in curves.items()
                    ),
                ),
            ),
            tables=(_table(titles, curves, chosen, by_attack),),
            notes=(
                f"{len(labels):,} images; the attacker knows the network and the labels.",
                "The attacked network is deterministic: dropout is off.",
                *notes,
            ),
            by_image=by_image,
        )

    def _applicable(self, num_classes: int) -> tuple[dict[str, Adversary], list[str]]:
        """The attacks for this number of classes, and notes on the others."""
        built = {name: adversaries.build({"name": name}, **self._options) for name in self.attacks}
        chosen = {name: one for name, one in built.items() if num_classes >= one.min_classes}
        return chosen, [
            f"{one.title} needs {one.min_classes} classes or more and is left out."
            for name, one in built.items()
            if name not in chosen
        ]

    @property
    def _options(self) -> dict[str, int]:
        return {"apgd_steps": self.apgd_steps, "square_queries": self.square_queries}

    def _robust(
        self, evaluator: Evaluator, chosen: Iterable[str], images, labels, epsilon: float
    ) -> dict[str, np.ndarray]:
        """For each attack, which images survive it and those before it, ``[N]``, 1 or 0."""
        robust = _correct(evaluator.logits[: len(labels)], labels)
        after = {}
        # no larger a batch than there are images: each costs thousands of passes
        size = min(evaluator.setup.batch_size, len(labels))
        evaluator = dataclasses.replace(
            evaluator, setup=dataclasses.replace(evaluator.setup, batch_size=size)
        )
        for name in chosen:
            index = np.flatnonzero(robust)
            if epsilon and len(index):
                key = stream_key(evaluator.setup.seed, f"adversarial/{name}")
                logits = evaluator.map(
                    _attacked_logits,
                    *(array[index] for array in (images, labels, evaluator.position)),
                    scalars=(key, np.float32(epsilon)),
                    name=name,
                    **self._options,
                )
                robust = robust.copy()
                robust[index] = _correct(logits, labels[index])
            after[name] = robust
        return after

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


def _correct(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 where the largest logit is the label's, 0 elsewhere, ``[N]``."""
    return metrics.contributions(metrics.log_softmax(logits), labels, "accuracy")["accuracy"]


def _attacked_logits(
    network, variables, images, labels, position, key, epsilon, *, name, **options
):
    attack = adversaries.build({"name": name}, **options).attack
    logits_fn, keys = partial(network.logits, variables), keys_at(key, position)
    images = images.astype(np.float32)
    return network.logits(variables, attack(logits_fn, images, labels, keys, epsilon, BOUNDS))


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


def _table(
    titles: Mapping[str, str],
    curves: Mapping[str, Mapping[float, float]],
    chosen: Mapping[str, Adversary],
    by_attack: Mapping[float, Mapping[str, np.ndarray]],
) -> Table:
    after = [f"{'and ' if i else ''}{one.title}" for i, one in enumerate(chosen.values())]
    title = "Accuracy (%) under attack"
    if len(after) > 1:
        title += f"; from {after[0]} on, under all of these attacks up to the column's"
    header = ["epsilon, 255ths", titles["fgsm"], titles["pgd"], *after]
    rows = [
        [f"{epsilon:g}"]
        + [
            f"{100 * value:.1f}"
            for value in (
                curves["fgsm"][epsilon],
                curves["pgd"][epsilon],
                *(robust.mean() for robust in by_attack[epsilon].values()),
            )
        ]
        for epsilon in curves["pgd"]
    ]
    return Table(title, header, rows)


def _draw(titles, figure, runs) -> None:
    axes = figure.subplots()
    dashes = {"fgsm": "--", "pgd": "-", "worst_case": ":"}
    for run, (curves, style) in runs.items():
        for name, curve in curves.items():
            percent = [100 * accuracy for accuracy in curve.values()]
            label = titles[name] if len(runs) == 1 else f"{run}, {titles[name]}"
            axes.plot(list(curve), percent, **(style | {"linestyle": dashes[name]}), label=label)
    axes.set_xlabel("epsilon (255ths of the pixels' range)")
    axes.set_ylabel("accuracy (%)")
    axes.legend(frameon=False)
