"""The shared convolution against numpy."""

import jax
import numpy as np
import pytest

from sdd_jax.models.layers import Conv


def by_hand(x, kernel, stride, padding):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
    return np.einsum("bijchw,hwco->bijo", windows[:, ::stride, ::stride], kernel)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("stride", "padding"), [(1, 2), (2, 1)])
def test_values_and_gradients_are_those_of_sums_over_windows(channels, stride, padding):
    r = np.random.default_rng(0)
    x, dx = r.standard_normal((2, 2, 9, 8, channels)).astype(np.float32)
    kernel, dkernel = r.standard_normal((2, 5, 5, channels, 6)).astype(np.float32)
    layer = Conv(6, (5, 5), strides=(stride, stride), padding=padding, use_bias=False)
    apply = jax.jit(lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x))
    value, pullback = jax.vjp(apply, x, kernel)
    np.testing.assert_allclose(value, by_hand(x, kernel, stride, padding), rtol=1e-4, atol=1e-4)

    upstream = r.standard_normal(value.shape).astype(np.float32)
    gradients = pullback(upstream)  # the map is linear in each argument: <J'u, d> = <u, J d>
    for gradient, direction, moved in (
        (gradients[0], dx, by_hand(dx, kernel, stride, padding)),
        (gradients[1], dkernel, by_hand(x, dkernel, stride, padding)),
    ):
        np.testing.assert_allclose(
            (gradient * direction).sum(), (upstream * moved).sum(), rtol=1e-4
        )
