"""Time and memory of the losses over chunks of classes, beside the plain ones that hold all logits.

    python -m benchmarks.large_vocabulary [--batch 512 --features 1024 --classes 131072 --rounds 5]

For SD-Dropout and the cross-entropy, in float32: the loss and its gradients by features, kernel and bias
by both ways. Ratios are chunked over plain: below 1, the chunks are better. Memory is what the compiled
program asks for beside its arguments and results; ``--rounds 0`` computes nothing and tells that alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import sdd_jax
from benchmarks.measure import parser, ratio, seconds, summary, take_turns, write

WAYS = ("chunked", "plain")


def losses(chunk_size: int) -> dict[str, dict[str, Callable]]:
    """Of each loss the two ways, functions of ``(features, kernel, bias), key, labels``."""

    def plain_sd_dropout(parameters, key, labels):
        features, kernel, bias = parameters
        return sdd_jax.sd_dropout_loss(features, lambda f: f @ kernel + bias, key)

    def plain_cross_entropy(parameters, key, labels):
        features, kernel, bias = parameters
        return sdd_jax.cross_entropy(features @ kernel + bias, labels)

    def chunked_sd_dropout(parameters, key, labels):
        return sdd_jax.linear_sd_dropout_loss(*parameters, key, chunk_size=chunk_size)

    def chunked_cross_entropy(parameters, key, labels):
        return sdd_jax.linear_cross_entropy(*parameters, labels, chunk_size=chunk_size)

    return {
        "sd_dropout": {"plain": plain_sd_dropout, "chunked": chunked_sd_dropout},
        "cross_entropy": {"plain": plain_cross_entropy, "chunked": chunked_cross_entropy},
    }


@partial(jax.jit, static_argnums=(0, 1, 2))
def inputs(batch: int, features: int, classes: int) -> tuple[Any, jax.Array, jax.Array]:
    """Random features, a head whose logits have a standard deviation of about 2, a key, labels."""
    f, k, b, y = jax.random.split(jax.random.key(0), 4)
    kernel = 2 / features**0.5 * jax.random.normal(k, (features, classes))
    parameters = jax.random.normal(f, (batch, features)), kernel, jax.random.normal(b, classes)
    return parameters, jax.random.key(1), jax.random.randint(y, batch, 0, classes)


def compare(ways: dict[str, Callable], arrays: Any, rounds: int) -> dict[str, Any]:
    """Measures both ways of one loss."""

    def compile(loss):
        def mean(*given):
            of_examples = loss(*given)
            return jnp.mean(of_examples), of_examples

        return jax.jit(jax.grad(mean, has_aux=True)).lower(*arrays).compile()

    steps = {way: compile(ways[way]) for way in WAYS}
    memory = {way: step.memory_analysis().temp_size_in_bytes for way, step in steps.items()}
    if not rounds:
        return _of_memory(memory)
    taken = take_turns(
        {way: partial(seconds, partial(step, *arrays)) for way, step in steps.items()}, rounds
    )
    apart = differences(*(steps[way](*arrays) for way in reversed(WAYS)))
    return {
        "time_chunked_over_plain": ratio(taken["chunked"], taken["plain"]),
        "seconds": {way: summary(of_way) for way, of_way in taken.items()},
        **_of_memory(memory),
        "relative_difference": {of: float(f"{x:.2g}") for of, x in apart.items()},
    }


def _of_memory(memory: dict[str, int]) -> dict[str, Any]:
    over = round(memory["chunked"] / memory["plain"], 4)
    return {"memory_chunked_over_plain": over, "temporary_bytes": memory}


@jax.jit
def differences(expected: Any, actual: Any) -> dict[str, jax.Array]:
    """Norm of the difference over the norm, of the losses of the examples and of each gradient."""

    def difference(e, a):
        return jnp.linalg.norm(e - a) / jnp.linalg.norm(e)

    gradients, loss = jax.tree.map(difference, expected, actual)
    return {"loss": loss, **dict(zip(("features", "kernel", "bias"), gradients, strict=True))}


def main() -> None:
    """Measures, prints and writes the result file."""
    sizes = {"batch": 512, "features": 1024, "classes": 131072, "chunk_size": 4096}
    arguments = parser(__doc__, **sizes, rounds=5)
    given = arguments.parse_args()
    arrays = partial(inputs, given.batch, given.features, given.classes)
    # Without rounds: memory alone, whether or not there is so much.
    arrays = arrays() if given.rounds else jax.eval_shape(arrays)
    found = {}
    for name, ways in losses(given.chunk_size).items():
        found[name] = compare(ways, arrays, given.rounds)
        print(name, found[name], flush=True)
    write(
        given,
        f"large-vocabulary-{jax.default_backend()}-{given.batch}",
        "python -m benchmarks.large_vocabulary "
        + " ".join(f"--{name.replace('_', '-')} {getattr(given, name)}" for name in sizes)
        + f" --rounds {given.rounds}",
        "Loss and gradients of a linear head in float32, by chunks of classes over plain (all logits)",
        losses=found,
    )


if __name__ == "__main__":
    main()
