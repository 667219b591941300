"""Whether a method spoils the order of the confidences, by which a network chooses when to answer.

    python -m benchmarks.reproduce cub100-tuned --data-dir DIR --runs RUNS
    python -m benchmarks.selective --plan cub100-tuned --runs RUNS

Label smoothing is known to lower the confidence of right answers more than that of wrong ones, and the
largest logit over the p-norm of all logits to repair that (Xia et al., ICLR 2025). So the area under the
risk-coverage curve is measured for both confidences, of every method and seed whose run is there: a
method that spoils the order gains more by the repair than cross-entropy does.
"""

import pathlib
import tempfile

from benchmarks import outcomes
from benchmarks.measure import parser, write
from benchmarks.plans import PLANS
from sdd_jax.evaluate import evaluate_workdir

FIGURES = {  # name here: metric of the evaluation, factor
    "accuracy": ("eval/accuracy", 100),
    "aurc": ("eval/calibration/aurc", 1000),
    "aurc_repaired": ("eval/calibration/logit_norm/aurc", 1000),
    "augrc": ("eval/calibration/augrc", 1000),
    "augrc_repaired": ("eval/calibration/logit_norm/augrc", 1000),
    "p": ("eval/calibration/logit_norm/p", 1),
}


def figures(workdir: pathlib.Path) -> dict[str, float]:
    """Evaluates a run; its own folder stays as it is."""
    with tempfile.TemporaryDirectory() as output:
        found = evaluate_workdir(workdir, ["accuracy", "calibration"], output=output)
    return {name: factor * found[metric] for name, (metric, factor) in FIGURES.items()}


def main() -> None:
    """Evaluates, prints and writes the result file."""
    args = parser(__doc__, plan="cub100-tuned", runs="runs/reproduce").parse_args()
    labels = {row.label: name for name, row in PLANS[args.plan].rows.items()}
    methods = {}
    for method, (label, runs) in outcomes.methods(args.plan).items():
        row = labels[label]
        folder = pathlib.Path(args.runs, args.plan, row)
        by_seed = [figures(folder / f"seed{seed}") for seed in runs]
        methods[method] = {
            "row": row,
            "seeds": list(runs),
            **{name: [round(values[name], 4) for values in by_seed] for name in FIGURES},
        }
        print(method, methods[method], flush=True)
    write(
        args,
        f"selective-{args.plan}",
        f"python -m benchmarks.selective --plan {args.plan} --runs RUNS",
        "Accuracy %, 1000 AURC and 1000 AUGRC by the largest probability, and by the largest logit over "
        "the p-norm of all (repaired; p chosen on the validation split), seed by seed",
        methods=methods,
    )


if __name__ == "__main__":
    main()
