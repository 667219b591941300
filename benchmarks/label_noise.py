"""Trains on MNIST with wrong labels: five methods at four levels of noise.

    python -m benchmarks.label_noise --data-dir DIR [--runs RUNS --seeds 3]

Each method has one number to choose, from four values, at each level of noise: that with the highest
accuracy on the validation split with the first seed, which then trains with the others. This is done
twice: for the network after the last epoch, and with early stopping, for the one after the epoch with
the highest accuracy on the validation split. DIR is a tfds ``data_dir``, or holds ``mnist.npz``. An
interrupted command resumes. Two hours on one CPU core.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import measure, tables
from benchmarks.reproduce import data_set

CARD = "configs/mnist_label_noise.py:ce"
NOISE = (0.0, 0.2, 0.4, 0.6)
# Method: the number to choose, its values.
METHODS: dict[str, tuple[str, tuple[float, ...]]] = {
    "cross_entropy": ("optimizer.weight_decay", (0.0, 3e-4, 1e-3, 3e-3)),
    "label_smoothing": ("objective.smoothing", (0.1, 0.3, 0.5, 0.8)),
    "generalised_cross_entropy": ("objective.q", (0.3, 0.5, 0.7, 0.9)),
    "dropout_cross_entropy": ("objective.dropout_rate", (0.2, 0.4, 0.6, 0.8)),
    "sd_dropout": ("sd_dropout.weight", (0.1, 0.5, 2.0, 10.0)),
}
STOPS = ("last", "early")


def run(method: str, value: float, noise: float, seed: int, args: Any) -> dict[str, Any]:
    """Trains, or reads a finished run; accuracies in %, after the last epoch and with early stopping."""
    from sdd_jax.objectives import objectives
    from sdd_jax.runs import read_metrics
    from sdd_jax.train import train_and_evaluate

    config = measure.load_card(CARD)
    config.seed = seed
    config.dataset.name = data_set(config.dataset.name, args.data_dir)
    config.dataset.data_dir = args.data_dir
    config.dataset.label_noise = noise
    if method != "sd_dropout":
        config.objective = objectives.options(method)
    field, _ = METHODS[method]
    config.update_from_flattened_dict({field: value})
    folder = pathlib.Path(args.runs, f"{noise}-{method}-{value}-{seed}")
    train_and_evaluate(config, str(folder))
    lines = [line for line in read_metrics(folder) if "eval/accuracy" in line]
    stops = {"last": lines[-1], "early": max(lines, key=lambda x: x["validation/accuracy"])}
    return {"fitted": 100 * lines[-1]["train/accuracy"]} | {
        stop: {
            "validation": 100 * line["validation/accuracy"],
            "test": 100 * line["eval/accuracy"],
            "epoch": line["epoch"],
        }
        for stop, line in stops.items()
    }


def study(method: str, noise: float, args: Any) -> dict[str, Any]:
    """All values with the first seed, and those selected with the other seeds.

    Returns:
      ``first_seed``: the run of each value; and for "last" and "early": ``chosen``, the value, and
      ``accuracy``, on test, of every seed at this value.
    """
    _, values = METHODS[method]
    first = {value: run(method, value, noise, 0, args) for value in values}
    result: dict[str, Any] = {"first_seed": {str(value): runs for value, runs in first.items()}}
    for stop in STOPS:
        chosen = max(first, key=lambda value, stop=stop: first[value][stop]["validation"])
        runs = [first[chosen]]
        runs += [run(method, chosen, noise, seed, args) for seed in range(1, args.seeds)]
        result[stop] = {"chosen": chosen, "accuracy": [x[stop]["test"] for x in runs]}
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the result file, and writes the tables."""
    parser = measure.parser(__doc__, data_dir="", runs="runs/label-noise", seeds=3)
    args = parser.parse_args(argv)
    args.data_dir = str(pathlib.Path(args.data_dir).expanduser().resolve()) if args.data_dir else ""
    results: Mapping[str, Any] = {
        str(noise): {method: study(method, noise, args) for method in METHODS} for noise in NOISE
    }
    measure.write(
        args,
        "label-noise",
        command="python -m benchmarks.label_noise --data-dir=DIR",
        what=f"{CARD} with symmetric label noise; accuracies on the clean test set, %",
        results=results,
    )
    tables.write_all()


if __name__ == "__main__":
    main()
