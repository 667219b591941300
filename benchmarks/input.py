"""Time of a training step over the time in which a data engine supplies its batch.

    python -m benchmarks.input [--batch 128 --streamed-batch 32 --rounds 5]

Resident engine: a step of ResNet-18 (CIFAR form, 32x32) over the gathering of its batch on the device.
Streamed engine: a step in ImageNet's form over the time in which one worker decodes photographs, crops
them and resizes them to 224x224; and a step that waits for the engine over one whose batch is in memory.
"""

import argparse
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


def resident(args: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Measures a data set in device memory."""
    from sdd_jax.devices import replicate
    from sdd_jax.experiment import load_experiment

    data = random_images(folder / "small.npz", train=5000)
    config = run_config(data, "resnet18", batch=args.batch, stem="cifar")
    engine = load_experiment(config).engine
    on_device = replicate(engine.resident)
    gather = jax.pmap(engine.gather, in_axes=(None, 0))
    num_batches = 20

    def gather_all() -> list[Any]:
        batches = []
        for step in range(num_batches):
            inputs = jax.tree.map(lambda x: x[:, 0], engine.inputs(step, step + 1))
            batches.append(gather(on_device, inputs))
        return batches

    timings = take_turns(
        {"step": training_step(config), "engine": lambda: seconds(gather_all) / num_batches},
        args.rounds,
    )
    return {
        "batch": args.batch,
        "step_over_engine": ratio(timings["step"], timings["engine"]),
        "step_seconds": summary(timings["step"]),
        "engine_seconds": summary(timings["engine"]),
    }


def photographs() -> tuple[list[bytes], np.ndarray]:
    """scikit-learn's two photographs of 427x640 as JPEG files, 512 times each, and labels."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    files = []
    for photograph in load_sample_images().images:
        file = io.BytesIO()
        Image.fromarray(photograph).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files * 512, np.arange(1024) % CLASSES


def streamed(args: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Measures photographs that threads decode and crop."""
    from sdd_jax.data import Split
    from sdd_jax.data.engines import engines
    from sdd_jax.data.lazy_images import LazyImages

    files, labels = photographs()
    split = Split(LazyImages(files, SIZE, "photographs"), labels.astype(np.int32))
    data = random_images(folder / "large.npz", size=SIZE, train=CLASSES)

    def config(image_size: int = 0) -> Any:
        """Creates the config of a run on images in memory, or on crops if ``image_size`` is set."""
        result = run_config(data, "resnet18", batch=args.streamed_batch, stem="imagenet")
        result.dataset.mean, result.dataset.std = (0.5,) * 3, (0.25,) * 3
        result.dataset.image_size = image_size
        return result

    def engine(workers: int) -> Any:
        options = {"name": "streamed", "workers": workers}
        order = {"batch_size": args.streamed_batch, "sampler": "uniform", "seed": 0}
        return engines.build(options, split=split, **order)

    def one_worker() -> float:
        num_batches, worker = 8, engine(1)
        worker.inputs(0, 1)  # the worker is busy from here on
        start = time.perf_counter()
        for step in range(1, 1 + num_batches):
            jax.block_until_ready(worker.inputs(step, step + 1))
        elapsed = time.perf_counter() - start
        worker.close()
        return elapsed / num_batches

    step = training_step(config())
    alone = take_turns({"step": step, "engine": one_worker}, args.rounds)
    waiting_config = config(SIZE)
    waiting_config.engine = {"name": "streamed", "workers": args.workers}
    waiting = training_step(waiting_config, engine(args.workers))
    together = take_turns({"waiting": waiting, "in_memory": step}, args.rounds)
    step_over_worker = ratio(alone["step"], alone["engine"])
    worker_seconds = summary(alone["engine"])
    return {
        "batch": args.streamed_batch,
        "step_over_one_worker": step_over_worker,
        "workers_that_keep_it_fed": math.ceil(1 / step_over_worker["median"]),
        "step_seconds": summary(alone["step"]),
        "one_worker_seconds": worker_seconds,
        "one_worker_images_per_second": round(args.streamed_batch / worker_seconds["median"]),
        "workers": args.workers,
        "streamed_step_over_one_with_its_batch": ratio(together["waiting"], together["in_memory"]),
    }


def main() -> None:
    """Measures, prints and writes the result file."""
    defaults = {"batch": 128, "streamed_batch": 32, "workers": cores(), "rounds": 5}
    args = parser(__doc__, **defaults).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {
            "resident": resident(args, pathlib.Path(folder)),
            "streamed": streamed(args, pathlib.Path(folder)),
        }
    for name, figures in results.items():
        print(name, figures)
    write(
        args,
        f"input-{jax.default_backend()}",
        f"python -m benchmarks.input --batch {args.batch} --streamed-batch {args.streamed_batch} "
        f"--workers {args.workers} --rounds {args.rounds}",
        "Seconds of a training step of ResNet-18 over those in which an engine supplies its batch "
        f"({args.machine}): resident, 32x32; streamed, JPEGs of 427x640 cropped to 224x224",
        **results,
    )


if __name__ == "__main__":
    main()
