"""Step time of every objective over plain cross-entropy: the same network, batch and data.

    python -m benchmarks.objectives [--model resnet18 --width 64 --batch 64 --rounds 5 --only sd_dropout]

Whole training steps as ``train.py`` makes them: gather, augment, forward, backward, update. Each
objective takes turns with cross-entropy; 1.02 means that it costs two hundredths more.
"""

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

# SD-Dropout is added to cross-entropy; the others stand alone. "distill" needs a teacher's run.
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


def config(method: str, given: Any, data: str) -> Any:
    """The run of a method, or of plain cross-entropy."""
    from sdd_jax.objectives import objectives

    weight = 1.0 if method == SD_DROPOUT else 0.0
    made = run_config(data, given.model, batch=given.batch, sd_dropout=weight, width=given.width)
    made.augment.pad, made.augment.flip = 4, True
    if method not in (SD_DROPOUT, "cross_entropy"):
        made.objective = objectives.options(method)
    if method == "r_drop":
        made.model.dropout_rate = 0.3  # it needs a network with dropout
    return made


def main() -> None:
    """Measures, prints and writes the result file."""
    arguments = parser(
        __doc__, model="resnet18", width=64, batch=64, rounds=5, only=",".join(METHODS)
    )
    given = arguments.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        data = random_images(pathlib.Path(folder) / "images.npz")
        plain = training_step(config("cross_entropy", given, data))
        for method in given.only.split(","):
            sides = {"method": training_step(config(method, given, data)), "plain": plain}
            taken = take_turns(sides, given.rounds)
            found[method] = {
                "over_cross_entropy": ratio(taken["method"], taken["plain"]),
                "seconds": summary(taken["method"]),
                "cross_entropy_seconds": summary(taken["plain"]),
            }
            print(method, found[method]["over_cross_entropy"], flush=True)
    write(
        given,
        f"objectives-{given.model}-{given.batch}",
        f"python -m benchmarks.objectives --model {given.model} --width {given.width} "
        f"--batch {given.batch} --rounds {given.rounds}",
        f"Seconds of a training step, each objective in turns with plain cross-entropy: {given.model} "
        f"at width {given.width}, CIFAR form, {given.batch} random images of 32x32, float32",
        objectives=found,
    )


if __name__ == "__main__":
    main()
