"""Times convolutions whose kernel has more positions than their output: XLA's, and the networks' own.

    python -m benchmarks.small_convolutions

A step is the value and both gradients of a 3x3 convolution, as in the last stage of a ResNet on images
of 48 or 64 pixels. For CPUs; elsewhere the two are the same. One minute.
"""

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.measure import parser, ratio, seconds, take_turns, write
from sdd_jax.models.layers import conv_general_dilated

CASES = {
    "2x2, 256 channels": (2, 256),
    "2x2, 512 channels": (2, 512),
    "4x4, 256 channels": (4, 256),
}
OPTIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
STRIDES, PADDING = (1, 1), ((1, 1), (1, 1))


def step(convolve, x, kernel):
    """Compiles a step; returns a function that makes it and returns its seconds."""

    @jax.jit
    def run(x, kernel):
        y, pullback = jax.vjp(lambda x, k: convolve(x, k, STRIDES, PADDING, **OPTIONS), x, kernel)
        return pullback(y)

    return lambda: seconds(lambda: run(x, kernel))


def main() -> None:
    """Measures the ratios, and writes the result file."""
    args = parser(__doc__, rounds=5, batch=32).parse_args()
    ratios = {}
    for name, (size, channels) in CASES.items():
        keys = jax.random.split(jax.random.key(0))
        x = jax.random.normal(keys[0], (args.batch, size, size, channels))
        kernel = jax.random.normal(keys[1], (3, 3, channels, channels), jnp.float32)
        sides = {
            "xla": step(lax.conv_general_dilated, x, kernel),
            "ours": step(conv_general_dilated, x, kernel),
        }
        timings = take_turns(sides, args.rounds)
        ratios[name] = ratio(timings["xla"], timings["ours"])
        print(name, ratios[name], flush=True)
    write(
        args,
        "small-convolutions-cpu",
        command=f"python -m benchmarks.small_convolutions --batch={args.batch} --rounds={args.rounds}",
        what="seconds of XLA's 3x3 convolution, value and gradients, over those of the networks'",
        ratios=ratios,
    )


if __name__ == "__main__":
    main()
