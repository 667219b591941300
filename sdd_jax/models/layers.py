"""Layers that the networks share: convolution, batch norm, pooling, dropout, initialisers."""

import math
import zlib
from collections.abc import Callable
from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sdd_jax.dropout import dropout
from sdd_jax.errors import InputError

hidden_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # Kaiming, fan-out
head_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(+-1/sqrt(fan_in))


def require_size(images: jax.Array, size: int, network: str) -> None:
    """Raises an InputError unless ``images`` ``[B, H, W, C]`` have ``size`` rows and columns or more."""
    height, width = images.shape[1:3]
    if min(height, width) < size:
        raise InputError(
            f"images must be {size}x{size} pixels or more for {network}, got {height}x{width}"
        )


def per_backend(*, cpu: Callable, default: Callable) -> Callable:
    """Returns a function that runs ``cpu`` on CPUs and ``default`` on other backends.

    Both must compute the same values; the program's lowering selects one, and the gradient is that of
    the selected one. The backward pass starts from the arguments alone: JAX would otherwise store the
    intermediate values of both. Forward-mode differentiation is not defined.
    """

    @jax.custom_vjp
    def function(*arrays):
        return lax.platform_dependent(*arrays, cpu=cpu, default=default)

    def backward(arrays, gradient):
        def pullback(forward):
            return lambda arrays, gradient: jax.vjp(forward, *arrays)[1](gradient)

        return lax.platform_dependent(
            arrays, gradient, cpu=pullback(cpu), default=pullback(default)
        )

    function.defvjp(lambda *arrays: (function(*arrays), arrays), backward)
    return function


def conv_general_dilated(x: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """`jax.lax.conv_general_dilated` ``[B, H, W, C]`` by ``[h, w, C, D]``, with two forms for CPUs.

    Colour images get a fourth channel: Eigen, XLA's convolution on CPU, then loads whole vectors, and a
    5x5 stem takes half the time. And where the kernel has more positions than the output, as 3x3 on 2x2,
    the convolution is one product of matrices: XLA would exchange image and kernel there, which Eigen
    cannot do, and its loops take a hundred times as long.
    """

    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)

    def padded(x, kernel):
        zero = ((0, 0),)
        return convolve(
            jnp.pad(x, zero * 3 + ((0, 1),)), jnp.pad(kernel, zero * 2 + ((0, 1),) + zero)
        )

    def multiplied(x, kernel):
        pads = padding
        if isinstance(pads, str):  # "SAME" or "VALID"
            pads = lax.padtype_to_pads(x.shape[1:3], size, strides, pads)
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        ends = [(n - 1) * stride + 1 for n, stride in zip(positions, strides, strict=True)]
        windows = [
            x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
            for i, j in np.ndindex(size)
        ]
        matrix = kernel.reshape(-1, kernel.shape[-1])
        return jnp.matmul(jnp.concatenate(windows, -1), matrix, precision=options.get("precision"))

    size = kernel.shape[:2]
    positions = jax.eval_shape(convolve, x, kernel).shape[1:3]
    dilations = (*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ()))
    is_plain = {*dilations} <= {1} and x.shape[-1] == kernel.shape[
        -2
    ]  # neither dilated nor in groups
    # A patch embedding's windows do not overlap, and its images need no gradient: it is not slow.
    if is_plain and math.prod(positions) < math.prod(size) and tuple(strides) < size:
        return per_backend(cpu=multiplied, default=convolve)(x, kernel)
    if x.shape[-1] == kernel.shape[-2] == 3:
        return per_backend(cpu=padded, default=convolve)(x, kernel)
    return convolve(x, kernel)


Conv = partial(nn.Conv, kernel_init=hidden_init, conv_general_dilated=conv_general_dilated)


def convolution(channels: int, size: int, stride: int = 1, **options) -> nn.Conv:
    """A square convolution without bias, whose padding does not depend on the size of the input."""
    return Conv(
        channels,
        (size, size),
        strides=(stride, stride),
        padding=size // 2,
        use_bias=False,
        **options,
    )


def promoting(layer: nn.Module) -> Callable[..., jax.Array]:
    """Wraps a linen layer that promotes bfloat16 to float32 implicitly.

    The wrapped layer also works in programs that set ``jax_numpy_dtype_promotion`` to "strict".
    """

    def call(*arrays: jax.Array) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            return layer(*arrays)

    return call


def layers(
    *, train: bool, axis_name: str | None, dtype: jnp.dtype
) -> tuple[Callable[..., nn.Conv], Callable[..., Callable[..., jax.Array]]]:
    """Constructors of the layers of a network with batch norm: `convolution`, and ``nn.BatchNorm``.

    The momentum of 0.9 is PyTorch's 0.1, and epsilon is the same. The running variance differs: Flax
    averages the batch's biased variance, PyTorch the unbiased one, which is n / (n - 1) times as large
    for n = B H W positions. Both normalise by the biased one while training.

    Args:
      train: normalise by the statistics of the batch and update the running averages.
      axis_name: the mapped axis over which batch statistics are averaged, None without one.
      dtype: dtype of the computation.
    """

    def norm(**options):
        layer = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            axis_name=axis_name,
            dtype=dtype,
            **options,
        )
        return promoting(layer)

    return partial(convolution, dtype=dtype), norm


def max_pool(x: jax.Array, size: int, stride: int, padding: tuple[int, int] = (0, 0)) -> jax.Array:
    """Computes maxima over square windows.

    XLA's gradient of a windowed maximum, a select-and-scatter, is slow on CPU. There, the maximum is
    taken over strided slices, whose gradient takes a third of the time. Where several elements of a
    window are its maximum, they share the gradient on CPU, and the first receives it elsewhere; both
    are subgradients.

    Args:
      x: ``[B, H, W, C]``.
      size: side of the windows, in pixels.
      stride: distance between windows, in pixels.
      padding: rows (and columns) of minus infinity before and after; each less than ``size``.

    Returns:
      ``[B, H', W', C]``, where ``H' = (H + sum(padding) - size) // stride + 1``.
    """

    def windowed(x):
        pads = (padding, padding)
        return nn.pooling.pool(x, -jnp.inf, lax.max, (size, size), (stride, stride), pads)

    def sliced(x):
        x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)), constant_values=-jnp.inf)
        for axis in (1, 2):
            span = (x.shape[axis] - size) // stride * stride + 1
            x = reduce(
                jnp.maximum,
                [lax.slice_in_dim(x, i, i + span, stride, axis=axis) for i in range(size)],
            )
        return x

    return per_backend(cpu=sliced, default=windowed)(x)


def avg_pool(x: jax.Array, size: int, stride: int, padding: tuple[int, int] = (0, 0)) -> jax.Array:
    """Computes means over square windows; `max_pool` describes the arguments, but padding is zeros."""
    pads = (padding, padding)
    return nn.pooling.pool(x, 0.0, lax.add, (size, size), (stride, stride), pads) / size**2


class Dropout(nn.Module):
    """Dropout inside a network, by one key per example.

    linen's own layer draws one mask for the batch on each device, so its masks depend on the number of
    devices. Here each layer folds its path in the network into the examples' keys.

    Attributes:
      rate: probability of dropping an element, in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Drops elements of ``x`` ``[B, ...]`` by ``keys`` ``[B]``; without keys, returns ``x``."""
        if keys is None or self.rate == 0:
            return x
        layer = zlib.crc32("/".join(self.path).encode())
        return dropout(jax.vmap(jax.random.fold_in, (0, None))(keys, layer), x, rate=self.rate)
