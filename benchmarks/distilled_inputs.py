"""How near a student of Dropout Distillation is to its ensemble, on images as they are and perturbed.

    python -m benchmarks.distilled_inputs --runs distill_quick_cifar10-short,OTHER [--masks 100]

``--runs`` are workdirs of students of one teacher. The first 1,000 training and test images of its data
set are shown to the teacher with dropout, to the teacher without it, and to each student: as they are;
with each pixel black with probability 0.2, the inputs ``perturbed``; and with these pixels in the mean
colour, which normalises to zero. Where a student is near to the ensemble on training images and not on
test images, it overfits; where it is near on the images of its training and not on others, these have
taught it something else.
"""

import pathlib

import jax
import numpy as np

import sdd_jax
from benchmarks.measure import parser, write
from sdd_jax.config import complete
from sdd_jax.data.images import augment
from sdd_jax.evaluation import metrics
from sdd_jax.experiment import PERTURBATION, load_setup
from sdd_jax.runs import read_config

NUM_IMAGES = 1000


def figures(log_probs: np.ndarray, ensemble: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Error in % and mean KL divergence from the ensemble in nats; both arrays are ``[N, K]``."""
    divergence = np.sum(np.exp(ensemble) * (ensemble - log_probs), axis=-1)
    error = 1 - metrics.top_k_accuracy(log_probs, labels)
    return {"error": round(100 * error, 2), "kl": round(float(divergence.mean()), 4)}


def main() -> None:
    """Evaluates, prints and writes the result file."""
    args = parser(__doc__, runs="", masks=100).parse_args()
    runs = [sdd_jax.load(folder) for folder in args.runs.split(",")]
    students = {f"student, inputs {run.config.inputs}": run for run in runs}
    (folder,) = {pathlib.Path(run.config.teacher).resolve() for run in runs}
    teacher = sdd_jax.load(folder)
    splits = load_setup(complete(read_config(folder))).dataset.splits
    networks = {"Standard": teacher, **students}
    mean = np.round(255 * teacher.mean).astype(np.uint8)
    results = {}
    for split in ("train", "test"):
        images = np.asarray(splits[split].images[:NUM_IMAGES])
        labels = np.asarray(splits[split].labels[:NUM_IMAGES])
        keys = jax.random.split(jax.random.key(0), len(images))
        black = np.asarray(augment(keys, images, drop_pixels=PERTURBATION))
        dropped = (black != images).any(-1, keepdims=True)
        kinds = {"as they are": images, "perturbed": black}
        kinds["mean colour"] = np.where(dropped, mean, images)
        for name, shown in kinds.items():
            probs = teacher.mc_dropout(shown, num_samples=args.masks).probs.astype(np.float64)
            ensemble = np.log(np.maximum(probs, np.finfo(np.float32).tiny))
            results[f"{split}, {name}"] = {"MC": figures(ensemble, ensemble, labels)} | {
                network: figures(metrics.log_softmax(run.logits(shown)), ensemble, labels)
                for network, run in networks.items()
            }
            print(split, name, results[f"{split}, {name}"], flush=True)
    write(
        args,
        "distilled-inputs-quick",
        f"python -m benchmarks.distilled_inputs --runs RUNS --masks {args.masks}",
        f"Error % and mean KL divergence from the ensemble of {args.masks} masks, {NUM_IMAGES} images",
        steps={name: student.step for name, student in students.items()},
        results=results,
    )


if __name__ == "__main__":
    main()
