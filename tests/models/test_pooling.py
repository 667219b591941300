"""Max-pooling against PyTorch's definition, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models.layers import max_pool


def by_hand(x, upstream, size, stride, padding):
    """Maxima, and the gradient of sum(upstream * maxima), window by window."""
    padded = np.pad(x, ((0, 0), padding, padding, (0, 0)), constant_values=-np.inf)
    values, gradient = np.empty_like(upstream), np.zeros_like(padded)
    for index in np.ndindex(upstream.shape):
        b, i, j, c = index
        rows, columns = i * stride, j * stride
        window = padded[b, rows : rows + size, columns : columns + size, c]
        r, s = np.unravel_index(window.argmax(), window.shape)
        values[index] = window[r, s]
        gradient[b, rows + r, columns + s, c] += upstream[index]
    h, w = x.shape[1:3]
    return values, gradient[:, padding[0] : padding[0] + h, padding[0] : padding[0] + w]


@pytest.mark.parametrize(
    ("height", "width", "size", "stride", "padding", "out"),
    [
        (8, 8, 3, 2, (0, 1), (4, 4)),  # Quick, Network in Network
        (9, 6, 3, 2, (1, 1), (5, 3)),  # the ImageNet stem
        (6, 4, 2, 2, (0, 0), (3, 2)),  # LeNet
        (7, 7, 3, 1, (2, 0), (7, 7)),
    ],
)
def test_values_and_gradients_are_those_of_windows_by_hand(
    height, width, size, stride, padding, out
):
    r = np.random.default_rng(0)
    x = r.permutation(2 * height * width * 3).reshape(2, height, width, 3).astype(np.float32)
    upstream = r.standard_normal((2, *out, 3)).astype(np.float32)

    @jax.jit
    def run(x):
        values, pullback = jax.vjp(lambda x: max_pool(x, size, stride, padding), x)
        return values, pullback(upstream)[0]

    values, gradient = by_hand(x, upstream, size, stride, padding)
    found = run(x)
    np.testing.assert_array_equal(found[0], values)
    np.testing.assert_allclose(found[1], gradient, atol=1e-6)


def test_tied_maxima_share_no_more_than_the_gradient():
    gradient = jax.grad(lambda x: max_pool(x, 2, 2).sum())(jnp.ones((1, 4, 4, 1)))
    np.testing.assert_allclose(gradient.reshape(2, 2, 2, 2).sum((1, 3)), 1)
