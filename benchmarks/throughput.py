"""Images per second of training, and what brings them: for GPUs and TPUs, though it runs anywhere.

    python -m benchmarks.throughput [--batch 128 --steps 100 --rounds 5 --peak-tflops 989]

ResNet-18 (CIFAR form) from the resident engine: cross-entropy and SD-Dropout in bfloat16, many steps a
dispatch; then SD-Dropout with one step a dispatch, and in float32. A step counts as three forward passes
in the share of the peak, the device's in bfloat16.
"""

import pathlib
import tempfile
from typing import Any

import jax

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

SIDES = {
    "cross_entropy": {"weight": 0.0},
    "sd_dropout": {},
    "sd_dropout, one step a dispatch": {"steps_per_call": 1},
    "sd_dropout, float32": {"dtype": "float32"},
}


def config(given: Any, data: str, side: dict[str, Any]) -> Any:
    """The run of a side."""
    made = run_config(
        data,
        "resnet18",
        batch=given.batch,
        sd_dropout=side.get("weight", 1.0),
        width=given.width,
        dtype=side.get("dtype", "bfloat16"),
    )
    made.augment.pad, made.augment.flip = 4, True
    made.steps_per_call = side.get("steps_per_call", given.steps)
    return made


def flops_per_image(made: Any) -> float:
    """Floating-point operations of a training step for an image: three times the forward pass."""
    from sdd_jax.models import build

    model = build(made.model, num_classes=100)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return 3 * jax.jit(model.apply).lower(variables, image).cost_analysis()["flops"]


def main() -> None:
    """Measures, prints and writes the result file."""
    defaults = {"batch": 128, "width": 64, "steps": 100, "rounds": 5, "peak_tflops": 0.0}
    given = parser(__doc__, **defaults).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = random_images(pathlib.Path(folder) / "images.npz", train=50_000)
        runs = {side: config(given, data, options) for side, options in SIDES.items()}
        steps = {side: training_step(run) for side, run in runs.items()}

        def timed(side: str) -> float:
            calls = given.steps // runs[side].steps_per_call
            return sum(steps[side]() for _ in range(calls)) / given.steps

        taken = take_turns({side: lambda side=side: timed(side) for side in SIDES}, given.rounds)
    flops = flops_per_image(runs["sd_dropout"])
    found = {}
    for side, of_side in taken.items():
        seconds = summary(of_side)
        speed = given.batch / seconds["median"]
        found[side] = {
            "images_per_second": round(speed),
            "seconds": seconds,
            "over_sd_dropout": ratio(of_side, taken["sd_dropout"]),
        }
        if given.peak_tflops:
            found[side]["share_of_peak"] = round(speed * flops / given.peak_tflops / 1e12, 4)
        print(side, found[side], flush=True)
    write(
        given,
        f"throughput-{jax.default_backend()}-{given.batch}",
        f"python -m benchmarks.throughput --batch {given.batch} --steps {given.steps} "
        f"--rounds {given.rounds} --peak-tflops {given.peak_tflops}",
        f"Training of ResNet-18 at width {given.width}, batch {given.batch}, 50,000 random images of "
        "32x32 in device memory; the peak is that in bfloat16",
        gflops_per_image=round(flops / 1e9, 3),
        sides=found,
    )


if __name__ == "__main__":
    main()
