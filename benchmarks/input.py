"""Whether the data engines keep a training step fed.

    python -m benchmarks.input [--batch 128 --streamed-batch 32 --rounds 5]

The resident engine: seconds of a training step of ResNet-18 (CIFAR form, 32x32) over those in which its
batch is gathered. The streamed engine: seconds of a step in ImageNet's form over those in which one
worker decodes photographs, crops and resizes them to 224x224; and a step that waits for the engine over
one whose batch is there.
"""

import io
import math
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks.measure import (
    cores,
    parser,
    random_images,
    ratio,
    run_config,
    seconds,
    summary,
    take_turns,
    training_step,
    write,
)

SIZE, CLASSES = 224, 100


def config(data: str, batch: int, **dataset: Any) -> Any:
    """A run of plain cross-entropy on ResNet-18."""
    stem = "imagenet" if dataset else "cifar"
    made = run_config(data, "resnet18", batch=batch, stem=stem)
    made.dataset.update(dataset)
    return made


def resident(given: Any, folder: pathlib.Path) -> dict[str, Any]:
    """Batches of a data set on the device, against the step that takes them."""
    from sdd_jax.experiment import load_experiment
    from sdd_jax.parallel import replicate

    run = config(random_images(folder / "small.npz", train=5000), given.batch)
    engine = load_experiment(run).engine
    held = replicate(engine.resident)
    gather = jax.pmap(engine.gather, in_axes=(None, 0))
    batches = 20

    def gathered() -> float:
        def all_batches():
            results = []
            for i in range(batches):
                inputs = jax.tree.map(lambda x: x[:, 0], engine.inputs(i, i + 1))
                results.append(gather(held, inputs))
            return results

        return seconds(all_batches) / batches

    taken = take_turns({"step": training_step(run), "engine": gathered}, given.rounds)
    return {
        "batch": given.batch,
        "step_over_engine": ratio(taken["step"], taken["engine"]),
        "step_seconds": summary(taken["step"]),
        "engine_seconds": summary(taken["engine"]),
    }


def photographs() -> tuple[list[bytes], np.ndarray]:
    """scikit-learn's two photographs, 427x640, as JPEG files, many times; and labels."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    files = []
    for photograph in load_sample_images().images:
        file = io.BytesIO()
        Image.fromarray(photograph).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files * 512, np.arange(1024) % CLASSES


def streamed(given: Any, folder: pathlib.Path) -> dict[str, Any]:
    """Batches decoded and cropped by threads, against the step that takes them."""
    from sdd_jax.data import Split
    from sdd_jax.data.engines import engines
    from sdd_jax.data.stored import StoredImages

    files, labels = photographs()
    split = Split(StoredImages(files, SIZE, "photographs"), labels.astype(np.int32))

    def engine(workers: int) -> Any:
        options = {"name": "streamed", "workers": workers}
        order = {"batch_size": given.streamed_batch, "sampler": "uniform", "seed": 0}
        return engines.build(options, split=split, **order)

    def one_worker() -> float:
        batches, made = 8, engine(1)
        made.inputs(0, 1)  # from now on it works without a pause
        start = time.perf_counter()
        for i in range(1, 1 + batches):
            jax.block_until_ready(made.inputs(i, i + 1))
        taken = time.perf_counter() - start
        made.close()
        return taken / batches

    data = random_images(folder / "large.npz", size=SIZE, train=CLASSES)
    normalisation = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    run = config(data, given.streamed_batch, image_size=SIZE, **normalisation)
    run.engine = {"name": "streamed", "workers": given.workers}
    at_hand = config(data, given.streamed_batch, **normalisation)
    step = training_step(at_hand)
    alone = take_turns({"step": step, "engine": one_worker}, given.rounds)
    fed = take_turns(
        {"streamed": training_step(run, engine(given.workers)), "at_hand": step}, given.rounds
    )
    of_worker = ratio(alone["step"], alone["engine"])
    return {
        "batch": given.streamed_batch,
        "step_over_one_worker": of_worker,
        "workers_that_keep_it_fed": math.ceil(1 / of_worker["median"]),
        "step_seconds": summary(alone["step"]),
        "one_worker_seconds": summary(alone["engine"]),
        "one_worker_images_per_second": round(
            given.streamed_batch / summary(alone["engine"])["median"]
        ),
        "workers": given.workers,
        "streamed_step_over_one_with_its_batch": ratio(fed["streamed"], fed["at_hand"]),
    }


def main() -> None:
    """Measures, prints and writes the result file."""
    defaults = {"batch": 128, "streamed_batch": 32, "workers": cores(), "rounds": 5}
    given = parser(__doc__, **defaults).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "resident": resident(given, pathlib.Path(folder)),
            "streamed": streamed(given, pathlib.Path(folder)),
        }
    for name, figures in found.items():
        print(name, figures)
    write(
        given,
        f"input-{jax.default_backend()}",
        f"python -m benchmarks.input --batch {given.batch} --streamed-batch {given.streamed_batch} "
        f"--workers {given.workers} --rounds {given.rounds}",
        "Seconds of a training step of ResNet-18 over those in which an engine makes its batch "
        f"({given.machine}): resident, 32x32; streamed, JPEGs of 427x640 cropped to 224x224",
        **found,
    )


if __name__ == "__main__":
    main()
