"""Time and memory of the losses by chunks of classes, over those of the plain losses.

    python -m benchmarks.large_vocabulary [--batch 512 --features 1024 --classes 131072 --rounds 5]

SD-Dropout and the cross-entropy in float32: the loss and its gradients with respect to features, kernel
and bias. "kept" keeps all logits for the gradient (``kept_classes``). Below 1, chunks are better. Memory
is what the compiled program requests in addition to its arguments and results; with ``--rounds 0`` only
memory is reported, and nothing is computed. On CPU cores shared with other work, ``--clock cpu`` counts
the time in which the process runs.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import sdd_jax
from benchmarks.measure import parser, ratio, seconds, summary, take_turns, write


def losses(chunk_size: int) -> dict[str, dict[str, Callable]]:
    """The forms of each loss, ``((features, kernel, bias), key, labels) -> [B]``."""

    def plain_sd_dropout(parameters, key, labels):
        features, kernel, bias = parameters
        return sdd_jax.sd_dropout_loss(features, lambda f: f @ kernel + bias[None], key)

    def plain_cross_entropy(parameters, key, labels):
        features, kernel, bias = parameters
        return sdd_jax.cross_entropy(features @ kernel + bias[None], labels)

    def sd_dropout(parameters, key, labels, **options):
        return sdd_jax.linear_sd_dropout_loss(*parameters, key, chunk_size=chunk_size, **options)

    def cross_entropy(parameters, key, labels, **options):
        return sdd_jax.linear_cross_entropy(*parameters, labels, chunk_size=chunk_size, **options)

    def kept(loss):
        return lambda parameters, *args: loss(
            parameters, *args, kept_classes=parameters[1].shape[-1]
        )

    return {
        "sd_dropout": {"chunked": sd_dropout, "kept": kept(sd_dropout), "plain": plain_sd_dropout},
        "cross_entropy": {
            "chunked": cross_entropy,
            "kept": kept(cross_entropy),
            "plain": plain_cross_entropy,
        },
    }


@partial(jax.jit, static_argnums=(0, 1, 2))
def inputs(batch: int, features: int, classes: int) -> tuple[Any, jax.Array, jax.Array]:
    """Random features, a head whose logits have a standard deviation of about 2, a key, labels."""
    f, k, b, y = jax.random.split(jax.random.key(0), 4)
    kernel = 2 / features**0.5 * jax.random.normal(k, (features, classes))
    parameters = jax.random.normal(f, (batch, features)), kernel, jax.random.normal(b, classes)
    return parameters, jax.random.key(1), jax.random.randint(y, batch, 0, classes)


def compare(
    forms: Mapping[str, Callable], arrays: Any, rounds: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Measures the forms of one loss; without rounds, only their memory."""

    def compile(loss):
        def mean(*args):
            per_example = loss(*args)
            return jnp.mean(per_example), per_example

        return jax.jit(jax.grad(mean, has_aux=True)).lower(*arrays).compile()

    steps = {form: compile(loss) for form, loss in forms.items()}
    temporary = {form: step.memory_analysis().temp_size_in_bytes for form, step in steps.items()}
    chunked = [form for form in forms if form != "plain"]
    memory: dict[str, Any] = {
        f"memory_{form}_over_plain": round(temporary[form] / temporary["plain"], 4)
        for form in chunked
    }
    memory["temporary_bytes"] = temporary
    if not rounds:
        return memory
    sides = {form: partial(seconds, partial(step, *arrays), clock) for form, step in steps.items()}
    timings = take_turns(sides, rounds)
    plain = steps["plain"](*arrays)
    differences = {form: relative_difference(plain, steps[form](*arrays)) for form in chunked}
    return {
        **{f"time_{form}_over_plain": ratio(timings[form], timings["plain"]) for form in chunked},
        "seconds": {form: summary(side) for form, side in timings.items()},
        **memory,
        "relative_difference": jax.tree.map(lambda x: float(f"{x:.2g}"), differences),
    }


@jax.jit
def relative_difference(expected: Any, actual: Any) -> dict[str, jax.Array]:
    """Norm of the difference over the norm, of the per-example losses and of each gradient."""

    def relative(e, a):
        return jnp.linalg.norm(e - a) / jnp.linalg.norm(e)

    (features, kernel, bias), loss = jax.tree.map(relative, expected, actual)
    return {"loss": loss, "features": features, "kernel": kernel, "bias": bias}


def main() -> None:
    """Measures, prints and writes the result file."""
    sizes = {"batch": 512, "features": 1024, "classes": 131072, "chunk_size": 4096}
    args = parser(__doc__, **sizes, rounds=5, clock="wall").parse_args()
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[args.clock]
    arrays = partial(inputs, args.batch, args.features, args.classes)
    # Without rounds the arrays need not fit into memory.
    arrays = arrays() if args.rounds else jax.eval_shape(arrays)
    results = {}
    for name, forms in losses(args.chunk_size).items():
        results[name] = compare(forms, arrays, args.rounds, clock)
        print(name, results[name], flush=True)
    options = " ".join(f"--{name.replace('_', '-')} {getattr(args, name)}" for name in sizes)
    write(
        args,
        f"large-vocabulary-{jax.default_backend()}-{args.batch}",
        f"python -m benchmarks.large_vocabulary {options} --rounds {args.rounds} --clock {args.clock}",
        "Loss and gradients of a linear head in float32, by chunks of classes over plain (all logits)",
        losses=results,
    )


if __name__ == "__main__":
    main()
