"""The convolution and batch-norm layers that the networks share."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from sdd_jax.models.backends import per_backend
from sdd_jax.models.base import conv_init


def conv_general_dilated(x: jax.Array, kernel: jax.Array, *args, **options) -> jax.Array:
    """`jax.lax.conv_general_dilated`, but colour images ``[B, H, W, 3]`` get a fourth channel on CPU.

    Eigen, which convolves there, then loads whole vectors: a first layer of 5x5 takes half the time.
    """

    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, *args, **options)

    def padded(x, kernel):
        zero = ((0, 0),)
        return convolve(
            jnp.pad(x, zero * 3 + ((0, 1),)), jnp.pad(kernel, zero * 2 + ((0, 1),) + zero)
        )

    if x.shape[-1] != 3 or kernel.shape[-2] != 3:
        return convolve(x, kernel)
    return per_backend(cpu=padded, default=convolve)(x, kernel)


Conv = partial(nn.Conv, kernel_init=conv_init, conv_general_dilated=conv_general_dilated)


def convolution(channels: int, size: int, stride: int = 1, **options) -> nn.Conv:
    """A convolution without bias whose padding does not depend on the size of the input."""
    return Conv(
        channels,
        (size, size),
        strides=(stride, stride),
        padding=size // 2,
        use_bias=False,
        **options,
    )


def layers(
    *, train: bool, axis_name: str | None, dtype: jnp.dtype
) -> tuple[Callable[..., nn.Conv], Callable[..., nn.BatchNorm]]:
    """What a network with batch norm is made of: `convolution`, and the constructor of its norm.

    Args:
      train: normalise by the statistics of the batch, and update the running ones.
      axis_name: the mapped axis over which the batch's statistics are averaged, None without one.
      dtype: of the computation.
    """
    norm = partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        axis_name=axis_name,
        dtype=dtype,
    )
    return partial(convolution, dtype=dtype), norm
