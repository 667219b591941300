"""Checks and conversions of the losses' arguments."""

import math
import numbers

import jax
import jax.numpy as jnp

GRADIENTS = ("both", "forward", "reverse")


def at_least_float32(x: jax.Array) -> jax.Array:
    """Converts half precision to float32; float32 and float64 stay as they are."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"logits and features must be floating-point, got {x.dtype}")
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def check_temperature(temperature: float | jax.Array) -> None:
    """Raises ValueError unless the temperature is positive and finite; traced values pass."""
    if isinstance(temperature, numbers.Real) and not 0 < float(temperature) < math.inf:
        raise ValueError(f"temperature must be greater than 0 and finite, got {temperature}")


def check_gradient(gradient: str) -> None:
    """Raises ValueError unless ``gradient`` is one of ``GRADIENTS``."""
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
