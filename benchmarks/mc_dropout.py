"""What Monte-Carlo dropout costs over deterministic inference.

    python -m benchmarks.mc_dropout [--batch 256 --samples 100 --rounds 9]

Two ratios. With dropout before the head alone (ResNet-18) the backbone runs once: ``--samples`` masks
over one deterministic pass. With dropout in the whole network (Wide ResNet 16-4): the seconds of a pass
with masks over those of a pass of plain batched inference.
"""

from functools import partial
from typing import Any

import jax

from benchmarks.measure import parser, ratio, seconds, summary, take_turns, write
from sdd_jax import mc_dropout
from sdd_jax.models import build, models


def network(name: str, batch: int, **options: Any):
    """A network, its variables and a batch of images, all random."""
    model = build(models.options(name, **options), num_classes=100)
    images = jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))
    return model, jax.jit(model.init)(jax.random.key(1), images[:2]), images


def head_only(given: Any) -> dict[str, Any]:
    """All masks on the features of one pass, in one compiled function."""
    model, variables, images = network(given.model, given.batch, dropout_rate=0.5)

    def ensemble(variables, images, key):
        features = model.apply(variables, images, method="features")

        def predict(key):
            keys = jax.random.split(key, len(features))
            dropped = model.apply({}, features, keys, method="drop")
            return model.apply(variables, dropped, method="head")

        return mc_dropout(predict, key, num_samples=given.samples, chunk_size=given.chunk_size)

    plain, ensemble = jax.jit(model.apply), jax.jit(ensemble)
    key = jax.random.key(2)
    return _compare(
        given,
        ensemble=lambda: seconds(lambda: ensemble(variables, images, key)),
        plain=lambda: seconds(lambda: plain(variables, images)),
    )


def whole_network(given: Any) -> dict[str, Any]:
    """A pass for each mask; per pass."""
    model, variables, images = network("wide_resnet16_4", given.batch, block_dropout_rate=0.3)
    passes = 4
    plain = jax.jit(model.apply)

    @jax.jit
    def predict(variables, images, key):
        keys = jax.random.split(key, len(images))
        return model.apply(variables, images, dropout_keys=keys)

    def ensemble():
        one = partial(predict, variables, images)
        return mc_dropout(one, jax.random.key(2), num_samples=passes)

    return _compare(
        given,
        ensemble=lambda: seconds(ensemble) / passes,
        plain=lambda: seconds(lambda: [plain(variables, images) for _ in range(passes)]) / passes,
    )


def _compare(given: Any, **sides: Any) -> dict[str, Any]:
    taken = take_turns(sides, given.rounds)
    return {
        "over_plain": ratio(taken["ensemble"], taken["plain"]),
        "seconds": summary(taken["ensemble"]),
        "plain_seconds": summary(taken["plain"]),
    }


def main() -> None:
    """Measures, prints and writes the result file."""
    arguments = parser(__doc__, model="resnet18", batch=256, samples=100, chunk_size=10, rounds=9)
    given = arguments.parse_args()
    found = {"before_the_head": head_only(given), "whole_network": whole_network(given)}
    for name, figures in found.items():
        print(name, figures["over_plain"])
    write(
        given,
        f"mc-dropout-{jax.default_backend()}",
        f"python -m benchmarks.mc_dropout --batch {given.batch} --samples {given.samples} "
        f"--chunk-size {given.chunk_size} --rounds {given.rounds}",
        f"Monte-Carlo dropout over deterministic inference, {given.batch} images of 32x32: "
        f"{given.samples} masks before the head of a ResNet-18 over one pass; Wide ResNet 16-4 with "
        "dropout inside, a pass over a pass",
        **found,
    )


if __name__ == "__main__":
    main()
