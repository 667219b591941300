"""Time of a training step with each objective, over one with plain cross-entropy.

    python -m benchmarks.objectives [--model resnet18 --width 64 --batch 64 --rounds 5 --only sd_dropout]

Network, batch and data are the same. The steps are those of ``train.py``: gather, augment, forward,
backward, update. Each objective is measured in turns with cross-entropy; a ratio of 1.02 means that it
takes 2 % more time.
"""

import argparse
import pathlib
import tempfile
from typing import Any

from benchmarks.measure import (
    parser,
    random_images,
    ratio,
    run_config,
    summary,
    take_turns,
    training_step,
    write,
)

# SD-Dropout is added to cross-entropy, the others stand alone. "distill" is absent: it needs a teacher.
SD_DROPOUT = "sd_dropout"
METHODS = (
    SD_DROPOUT,
    "label_smoothing",
    "dropout_cross_entropy",
    "clean_dropout_cross_entropy",
    "clean_student",
    "tf_kd",
    "ps_kd",
    "dlb",
    "cs_kd",
    "ddgsd",
    "byot",
    "dml",
    "r_drop",
)


def method_config(method: str, args: argparse.Namespace, data: str) -> Any:
    """Creates the config of a method, or of plain cross-entropy."""
    from sdd_jax.objectives import objectives

    weight = 1.0 if method == SD_DROPOUT else 0.0
    config = run_config(data, args.model, batch=args.batch, sd_dropout=weight, width=args.width)
    config.augment.pad, config.augment.flip = 4, True
    if method not in (SD_DROPOUT, "cross_entropy"):
        config.objective = objectives.options(method)
    if method == "r_drop":
        config.model.dropout_rate = 0.3  # R-Drop needs a network with dropout
    return config


def main() -> None:
    """Measures, prints and writes the result file."""
    args = parser(
        __doc__, model="resnet18", width=64, batch=64, rounds=5, only=",".join(METHODS)
    ).parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        data = random_images(pathlib.Path(folder) / "images.npz")
        plain = training_step(method_config("cross_entropy", args, data))
        for method in args.only.split(","):
            sides = {"method": training_step(method_config(method, args, data)), "plain": plain}
            timings = take_turns(sides, args.rounds)
            results[method] = {
                "over_cross_entropy": ratio(timings["method"], timings["plain"]),
                "seconds": summary(timings["method"]),
                "cross_entropy_seconds": summary(timings["plain"]),
            }
            print(method, results[method]["over_cross_entropy"], flush=True)
    write(
        args,
        f"objectives-{args.model}-{args.batch}",
        f"python -m benchmarks.objectives --model {args.model} --width {args.width} "
        f"--batch {args.batch} --rounds {args.rounds} --only {args.only}",
        "Seconds of a training step with each objective, in turns with plain cross-entropy: "
        f"{args.model} at width {args.width}, CIFAR form, {args.batch} random images of 32x32, float32",
        objectives=results,
    )


if __name__ == "__main__":
    main()
