"""The precision in which losses are computed."""

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """Half precision becomes float32; float32 and float64 stay as they are."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"logits and features must be floating-point, got {x.dtype}")
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
