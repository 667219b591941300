"""Images per second of training and what limits them: meant for GPUs and TPUs, though it runs anywhere.

    python -m benchmarks.throughput [--batch 128 --steps 100 --rounds 5 --peak-tflops 989]

ResNet-18 (CIFAR form) with the resident engine: cross-entropy and SD-Dropout in bfloat16 with many steps
per dispatch; SD-Dropout with one step per dispatch; SD-Dropout in float32. ``--peak-tflops`` is the
device's peak in bfloat16; the share of it counts a step as three forward passes.
"""

import argparse
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


def side_config(args: argparse.Namespace, data: str, side: dict[str, Any]) -> Any:
    """Creates the config of a side."""
    config = run_config(
        data,
        "resnet18",
        batch=args.batch,
        sd_dropout=side.get("weight", 1.0),
        width=args.width,
        dtype=side.get("dtype", "bfloat16"),
    )
    config.augment.pad, config.augment.flip = 4, True
    config.steps_per_call = side.get("steps_per_call", args.steps)
    return config


def flops_per_image(config: Any) -> float:
    """Floating-point operations of a training step per image: three times those of a forward pass."""
    from sdd_jax.models import build

    model = build(config.model, num_classes=100)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return 3 * jax.jit(model.apply).lower(variables, image).cost_analysis()["flops"]


def main() -> None:
    """Measures, prints and writes the result file."""
    defaults = {"batch": 128, "width": 64, "steps": 100, "rounds": 5, "peak_tflops": 0.0}
    args = parser(__doc__, **defaults).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = random_images(pathlib.Path(folder) / "images.npz", train=50_000)
        configs = {name: side_config(args, data, side) for name, side in SIDES.items()}
        calls = {name: training_step(config) for name, config in configs.items()}

        def seconds_per_step(name: str) -> float:
            num_calls = args.steps // configs[name].steps_per_call
            return sum(calls[name]() for _ in range(num_calls)) / args.steps

        sides = {name: lambda name=name: seconds_per_step(name) for name in SIDES}
        timings = take_turns(sides, args.rounds)
    flops = flops_per_image(configs["sd_dropout"])
    results = {}
    for name, side in timings.items():
        seconds = summary(side)
        images_per_second = args.batch / seconds["median"]
        results[name] = {
            "images_per_second": round(images_per_second),
            "seconds": seconds,
            "over_sd_dropout": ratio(side, timings["sd_dropout"]),
        }
        if args.peak_tflops:
            share = images_per_second * flops / args.peak_tflops / 1e12
            results[name]["share_of_peak"] = round(share, 4)
        print(name, results[name], flush=True)
    write(
        args,
        f"throughput-{jax.default_backend()}-{args.batch}",
        f"python -m benchmarks.throughput --batch {args.batch} --steps {args.steps} "
        f"--rounds {args.rounds} --peak-tflops {args.peak_tflops}",
        f"Training of ResNet-18 at width {args.width}, batch {args.batch}, 50,000 random images of "
        "32x32 in device memory; the peak is that in bfloat16",
        gflops_per_image=round(flops / 1e9, 3),
        sides=results,
    )


if __name__ == "__main__":
    main()
