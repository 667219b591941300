"""Cost of Monte-Carlo dropout over deterministic inference.

    python -m benchmarks.mc_dropout [--batch 256 --samples 100 --rounds 9]

Two ratios. With dropout only before the head (ResNet-18) the backbone runs once: the time of
``--samples`` masks over that of one deterministic pass. With dropout in the whole network (Wide ResNet
16-4): the time of a pass with a mask over that of a deterministic pass.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from benchmarks.measure import parser, ratio, seconds, summary, take_turns, write
from sdd_jax import mc_dropout
from sdd_jax.models import build, models


def random_network(name: str, batch: int, **options: Any) -> tuple[Any, Any, jax.Array]:
    """Creates a network, its variables and a batch of images, all random."""
    model = build(models.options(name, **options), num_classes=100)
    images = jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))
    return model, jax.jit(model.init)(jax.random.key(1), images[:2]), images


def before_the_head(args: argparse.Namespace) -> dict[str, Any]:
    """Measures all masks on the features of one pass, in one compiled function."""
    model, variables, images = random_network(args.model, args.batch, dropout_rate=0.5)

    @jax.jit
    def ensemble(variables, images, key):
        features = model.apply(variables, images, method="features")

        def predict(key):
            keys = jax.random.split(key, len(features))
            dropped = model.apply({}, features, keys, method="drop")
            return model.apply(variables, dropped, method="head")

        return mc_dropout(predict, key, num_samples=args.samples, chunk_size=args.chunk_size)

    plain, key = jax.jit(model.apply), jax.random.key(2)
    return compare(
        lambda: seconds(lambda: ensemble(variables, images, key)),
        lambda: seconds(lambda: plain(variables, images)),
        args.rounds,
    )


def in_the_network(args: argparse.Namespace) -> dict[str, Any]:
    """Measures one pass per mask; seconds per pass."""
    model, variables, images = random_network("wide_resnet16_4", args.batch, block_dropout_rate=0.3)
    num_passes = 4
    plain = jax.jit(model.apply)

    @jax.jit
    def predict(variables, images, key):
        keys = jax.random.split(key, len(images))
        return model.apply(variables, images, dropout_keys=keys)

    def ensemble():
        return mc_dropout(
            partial(predict, variables, images), jax.random.key(2), num_samples=num_passes
        )

    def deterministic():
        return [plain(variables, images) for _ in range(num_passes)]

    return compare(
        lambda: seconds(ensemble) / num_passes,
        lambda: seconds(deterministic) / num_passes,
        args.rounds,
    )


def compare(
    ensemble: Callable[[], float], plain: Callable[[], float], rounds: int
) -> dict[str, Any]:
    """Measures both sides in turns."""
    timings = take_turns({"ensemble": ensemble, "plain": plain}, rounds)
    return {
        "over_plain": ratio(timings["ensemble"], timings["plain"]),
        "seconds": summary(timings["ensemble"]),
        "plain_seconds": summary(timings["plain"]),
    }


def main() -> None:
    """Measures, prints and writes the result file."""
    args = parser(
        __doc__, model="resnet18", batch=256, samples=100, chunk_size=10, rounds=9
    ).parse_args()
    results = {"before_the_head": before_the_head(args), "whole_network": in_the_network(args)}
    for name, figures in results.items():
        print(name, figures["over_plain"])
    write(
        args,
        f"mc-dropout-{jax.default_backend()}",
        f"python -m benchmarks.mc_dropout --batch {args.batch} --samples {args.samples} "
        f"--chunk-size {args.chunk_size} --rounds {args.rounds}",
        f"Monte-Carlo dropout over deterministic inference, {args.batch} images of 32x32: "
        f"{args.samples} masks before the head of a ResNet-18 over one pass; Wide ResNet 16-4 with "
        "dropout in its blocks, one pass over one pass",
        **results,
    )


if __name__ == "__main__":
    main()
