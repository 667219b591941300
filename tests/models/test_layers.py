"""The shared layers against numpy."""

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.dropout import dropout
from sdd_jax.models.layers import Conv, Dropout, avg_pool, layers, max_pool

KEY = jax.random.key(0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "stride", "padding"),
    [(9, 8, 1, 2), (9, 8, 2, 1), (3, 4, 1, 2), (7, 8, 2, 2), (2, 1, 2, 2)],
)
def test_convolution_has_the_values_and_gradients_of_sums_over_windows(
    by_hand, channels, height, width, stride, padding
):
    random = np.random.default_rng(0)
    x, dx = random.standard_normal((2, 2, height, width, channels)).astype(np.float32)
    kernel, dkernel = random.standard_normal((2, 5, 5, channels, 6)).astype(np.float32)
    layer = Conv(6, (5, 5), strides=(stride, stride), padding=padding, use_bias=False)

    def expected(x, kernel):
        return by_hand.conv(x, {"kernel": kernel}, stride, padding)

    upstream = random.standard_normal(expected(x, kernel).shape).astype(np.float32)

    @jax.jit
    def run(x, kernel):
        value, pullback = jax.vjp(lambda x, k: layer.apply({"params": {"kernel": k}}, x), x, kernel)
        return value, pullback(upstream)

    value, (x_grad, kernel_grad) = run(x, kernel)
    np.testing.assert_allclose(value, expected(x, kernel), rtol=1e-4, atol=1e-4)
    # The map is linear in each argument: <J'u, d> = <u, J d>.
    for grad, direction, moved in (
        (x_grad, dx, expected(dx, kernel)),
        (kernel_grad, dkernel, expected(x, dkernel)),
    ):
        np.testing.assert_allclose((grad * direction).sum(), (upstream * moved).sum(), rtol=1e-4)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_convolution_on_few_positions_takes_padding_by_name(by_hand, padding):
    random = np.random.default_rng(0)
    size = {"SAME": 3, "VALID": 6}[padding]  # 9 or 4 positions of output, 25 of the kernel
    x = random.standard_normal((2, size, size, 4)).astype(np.float32)
    kernel = random.standard_normal((5, 5, 4, 6)).astype(np.float32)
    layer = Conv(6, (5, 5), padding=padding, use_bias=False)
    value = jax.jit(layer.apply)({"params": {"kernel": kernel}}, x)
    expected = by_hand.conv(x, {"kernel": kernel}, 1, {"SAME": 2, "VALID": 0}[padding])
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"kernel_dilation": 2}, {"feature_group_count": 2}])
def test_dilated_and_grouped_convolutions_on_few_positions_are_those_of_flax(options):
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 4)).astype(np.float32)
    ours, theirs = (layer(6, (3, 3), padding=1, **options) for layer in (Conv, nn.Conv))
    variables = jax.jit(ours.init)(KEY, x)
    expected = jax.jit(theirs.apply)(variables, x)
    np.testing.assert_allclose(jax.jit(ours.apply)(variables, x), expected, rtol=1e-5, atol=1e-5)


def max_pool_gradient(x, upstream, size, stride, padding):
    """Gradient of sum(upstream * maxima), window by window."""
    padded = np.pad(x, ((0, 0), padding, padding, (0, 0)), constant_values=-np.inf)
    gradient = np.zeros_like(padded)
    for b, i, j, c in np.ndindex(upstream.shape):
        rows, columns = i * stride, j * stride
        window = padded[b, rows : rows + size, columns : columns + size, c]
        r, s = np.unravel_index(window.argmax(), window.shape)
        gradient[b, rows + r, columns + s, c] += upstream[b, i, j, c]
    h, w = x.shape[1:3]
    return gradient[:, padding[0] : padding[0] + h, padding[0] : padding[0] + w]


@pytest.mark.parametrize(
    ("height", "width", "size", "stride", "padding", "out"),
    [
        (8, 8, 3, 2, (0, 1), (4, 4)),  # Quick, Network in Network
        (9, 6, 3, 2, (1, 1), (5, 3)),  # the ImageNet stem
        (6, 4, 2, 2, (0, 0), (3, 2)),  # LeNet
        (7, 7, 3, 1, (2, 0), (7, 7)),
    ],
)
def test_pooling_has_the_values_and_gradients_of_windows(
    by_hand, height, width, size, stride, padding, out
):
    random = np.random.default_rng(0)
    x = random.permutation(2 * height * width * 3).reshape(2, height, width, 3).astype(np.float32)
    upstream = random.standard_normal((2, *out, 3)).astype(np.float32)

    @jax.jit
    def run(x):
        maxima, pullback = jax.vjp(lambda x: max_pool(x, size, stride, padding), x)
        return maxima, pullback(upstream)[0], avg_pool(x, size, stride, padding)

    maxima, gradient, means = run(x)
    np.testing.assert_array_equal(maxima, by_hand.max_pool(x, size, stride, padding))
    expected = max_pool_gradient(x, upstream, size, stride, padding)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    windows = by_hand.windows(x, size, stride, padding)
    np.testing.assert_allclose(means, windows.mean((-2, -1)), rtol=1e-5)


def test_tied_maxima_share_no_more_than_the_gradient():
    gradient = jax.jit(jax.grad(lambda x: max_pool(x, 2, 2).sum()))(jnp.ones((1, 4, 4, 1)))
    np.testing.assert_allclose(gradient.reshape(2, 2, 2, 2).sum((1, 3)), 1)


def test_running_statistics_move_a_tenth_of_the_way_to_the_batchs_mean_and_biased_variance():
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers(train=True, axis_name=None, dtype=x.dtype)[1](name="norm")(x)

    x = 2 + 3 * np.random.default_rng(0).standard_normal((2, 2, 1, 5)).astype(np.float32)
    old = {"mean": np.float32(range(5)), "var": np.float32(range(1, 6))}
    params = {"scale": np.float32([1, 2, 3, 4, 5]), "bias": np.float32([5, 4, 3, 2, 1])}
    variables = {"params": {"norm": params}, "batch_stats": {"norm": old}}
    y, updated = Norm().apply(variables, x, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))  # of n = 4; the unbiased one is 4/3 as large
    new = updated["batch_stats"]["norm"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * var, rtol=1e-5)
    expected = (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_convolutions_start_from_a_normal_distribution_of_variance_2_over_fan_out():
    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x):
            conv, _ = layers(train=True, axis_name=None, dtype=x.dtype)
            return conv(128, 3)(x)

    images = jnp.zeros((1, 1, 1, 64))
    kernel = np.asarray(jax.jit(Layers().init)(KEY, images)["params"]["Conv_0"]["kernel"])
    assert kernel.shape == (3, 3, 64, 128)
    # 73,728 weights: the sample's standard deviation is off by 0.3 %; fan-in would be off by 41 %.
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 128)), rtol=0.02)
    assert abs(kernel.mean()) < 5 * kernel.std() / np.sqrt(kernel.size)
    # Normal, not truncated: 0.27 % beyond three standard deviations.
    assert 0.0017 < (np.abs(kernel) > 3 * kernel.std()).mean() < 0.0037


class TwoDropouts(nn.Module):
    @nn.compact
    def __call__(self, x, keys):
        return Dropout(0.5, name="first")(x, keys), Dropout(0.5, name="second")(x, keys)


def test_a_dropout_layer_folds_its_path_into_the_keys():
    keys, x = jax.random.split(KEY, 8), jnp.ones((8, 500))
    for path, y in zip((b"first", b"second"), TwoDropouts().apply({}, x, keys), strict=True):
        layer_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(path))
        np.testing.assert_array_equal(y, dropout(layer_keys, x, rate=0.5))


def test_dropout_layers_draw_independent_masks_from_the_same_keys():
    keys = jax.random.split(KEY, 8)
    first, second = (np.asarray(y) != 0 for y in TwoDropouts().apply({}, jnp.ones((8, 500)), keys))
    for mask in (first, second):
        assert abs(mask.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)
    assert abs((first & second).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)
