"""Random variables, and the layers of a network in numpy."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def random_variables():
    """Draws variables far from those that a network starts with: no scale is 1, no bias 0."""

    def draw_all(model, images):
        random = np.random.default_rng(0)

        def draw(path, x):
            if path[-1].key == "kernel":
                fan_in = max(1, np.prod(x.shape[:-1]))
                return np.float32(random.normal(0, np.sqrt(2 / fan_in), x.shape))
            return np.float32(
                (path[-1].key in ("scale", "var")) + random.uniform(-0.4, 0.4, x.shape)
            )

        return jax.tree.map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0), images))

    return draw_all


class ByHand:
    """Layers in float64; ``layer`` and ``stats`` are the network's own variables."""

    @staticmethod
    def windows(x, size, stride=1, padding=0, fill=0.0):
        """``[B, H', W', C, size, size]``."""
        padding = (padding, padding) if isinstance(padding, int) else padding
        x = np.pad(np.float64(x), ((0, 0), padding, padding, (0, 0)), constant_values=fill)
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
        return windows[:, ::stride, ::stride]

    @classmethod
    def conv(cls, x, layer, stride=1, padding=None):
        kernel = np.float64(layer["kernel"])
        padding = len(kernel) // 2 if padding is None else padding
        windows = cls.windows(x, len(kernel), stride, padding)
        return np.einsum("bijchw,hwco->bijo", windows, kernel)

    @classmethod
    def max_pool(cls, x, size, stride, padding):
        return cls.windows(x, size, stride, padding, -np.inf).max((-2, -1))

    @staticmethod
    def batch_norm(x, layer, stats):
        y = (x - stats["mean"]) / np.sqrt(np.float64(stats["var"]) + 1e-5)
        return y * layer["scale"] + layer["bias"]

    @staticmethod
    def layer_norm(x, layer):
        deviation = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-6)
        return deviation / scale * layer["scale"] + layer["bias"]

    @staticmethod
    def dense(x, layer):
        return x @ np.float64(layer["kernel"]) + layer["bias"]


@pytest.fixture(scope="session")
def by_hand():
    return ByHand
