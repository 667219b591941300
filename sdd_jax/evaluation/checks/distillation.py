"""Dropout Distillation's three-way table: Standard, Monte-Carlo dropout, Distilled."""

import time

import numpy as np

from sdd_jax.errors import InputError
from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.checks import checks
from sdd_jax.trained import load_teacher

CURVE = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)


@checks.register("distillation")
def distillation(evaluation) -> dict[str, float]:
    """Error, NLL, Brier, ECE, KL to the MC posterior and time per image of the three; gap closed.

    "Standard" is the teacher with dropout off, "MC(m)" the mean of its posteriors under m =
    ``config.eval.mc_samples`` masks, "Distilled" the run's own network. The share of the gap closed is
    (Standard - Distilled) / (Standard - MC) in error. Writes the error against m as a plot.
    """
    config = evaluation.subject.config
    if not config.teacher:
        raise InputError("--checks: distillation needs a run with config.teacher, it is ''")
    teacher = evaluation.of(
        load_teacher(config.teacher, evaluation.subject.dataset, config.dataset)
    )
    labels, num_samples = evaluation.labels, config.eval.mc_samples

    total, curve = 0.0, {}
    for i in range(num_samples):
        if i == 1:
            start = time.perf_counter()  # the first sample compiles
        total = total + np.exp(metrics.log_softmax(teacher.sampled_logits(i)))
        if i + 1 in CURVE or i + 1 == num_samples:
            curve[i + 1] = 1 - float(np.mean(np.argmax(total, axis=-1) == labels))
    mc_seconds = None
    if num_samples > 1:
        elapsed = time.perf_counter() - start
        mc_seconds = elapsed * num_samples / (num_samples - 1) / len(labels)
    mc = np.log(np.maximum(total / num_samples, np.finfo(np.float64).tiny))
    networks = {
        "standard": (metrics.log_softmax(teacher.logits), _seconds_per_image(teacher)),
        "mc": (mc, mc_seconds),
        "distilled": (metrics.log_softmax(evaluation.logits), _seconds_per_image(evaluation)),
    }
    result = {"mc_samples": num_samples}
    for name, (log_probs, seconds) in networks.items():
        result |= {
            f"{name}/error": 1 - metrics.top_k_accuracy(log_probs, labels),
            f"{name}/nll": metrics.negative_log_likelihood(log_probs, labels),
            f"{name}/brier": metrics.brier_score(log_probs, labels),
            f"{name}/ece": metrics.expected_calibration_error(log_probs, labels),
            f"{name}/kl_from_mc": float(np.mean(np.sum(np.exp(mc) * (mc - log_probs), axis=-1))),
        }
        if seconds is not None:
            result[f"{name}/milliseconds_per_image"] = 1000 * seconds
    gap = result["standard/error"] - result["mc/error"]
    if gap > 0:  # otherwise there is nothing to close
        result["gap_closed"] = (result["standard/error"] - result["distilled/error"]) / gap
    result |= {f"mc_error/{m}": error for m, error in curve.items()}
    evaluation.save_figure("mc_error.png", lambda axes: _plot(axes, curve, result))
    evaluation.tables.append(_table(result))
    return result


def _seconds_per_image(evaluation) -> float:
    """Of a pass over all images that compiles nothing: the logits are there, so it is the second."""
    start = time.perf_counter()
    evaluation.predictor(evaluation.variables, evaluation.images)
    return (time.perf_counter() - start) / len(evaluation.labels)


def _table(result: dict[str, float]) -> str:
    names = {
        "standard": "Standard",
        "mc": f"MC({result['mc_samples']})",
        "distilled": "Distilled",
    }
    columns = {
        "error": ("error %", 100, ".2f"),
        "nll": ("NLL", 1, ".4f"),
        "brier": ("Brier", 1, ".4f"),
        "ece": ("ECE %", 100, ".2f"),
        "kl_from_mc": ("KL from MC", 1, ".4f"),
        "milliseconds_per_image": ("ms/image", 1, ".3f"),
    }
    lines = [" " * 10 + "".join(f"{title:>12}" for title, _, _ in columns.values())]
    for name, shown in names.items():
        cells = [
            format(scale * result[f"{name}/{key}"], form) if f"{name}/{key}" in result else "-"
            for key, (_, scale, form) in columns.items()
        ]
        lines.append(f"{shown:<10}" + "".join(f"{cell:>12}" for cell in cells))
    closed = result.get("gap_closed")
    lines.append(
        "gap closed: none to close, MC is not better than Standard"
        if closed is None
        else f"gap closed: {100 * closed:.0f} % of the way from Standard to MC in error"
    )
    return "\n".join(lines)


def _plot(axes, curve: dict[int, float], result: dict[str, float]) -> None:
    axes.plot(
        list(curve),
        [100 * e for e in curve.values()],
        "o-",
        color="#0072B2",
        label="MC(m), m passes",
    )
    for name, style, colour in (("standard", "--", "#D55E00"), ("distilled", "-.", "#009E73")):
        error = 100 * result[f"{name}/error"]
        axes.axhline(error, ls=style, color=colour, label=f"{name.capitalize()}, one pass")
    axes.set_xscale("log")
    ticks = [m for m in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if m <= max(curve)]
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set_xlim(0.9, max(curve) * 1.1)
    axes.set_xlabel("dropout masks m, averaged")
    axes.set_ylabel("test error (%)")
    axes.legend(frameon=False)
