"""The networks of the Dropout-Distillation paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax import models

CASES = {  # by hand from the papers' layer tables: weights and biases
    "lenet": ((28, 28, 1), 10, 20 * 26 + 50 * 501 + 500 * 801 + 10 * 501),
    "lenet_all": ((28, 28, 1), 10, 20 * 26 + 50 * 501 + 500 * 801 + 10 * 501),
    "quick": ((32, 32, 3), 10, 32 * 76 + 32 * 801 + 64 * 801 + 64 * 1025 + 10 * 65),
    "nin": (
        (32, 32, 3),
        10,
        192 * 76 + 160 * 193 + 96 * 161 + 192 * 2401 + 192 * 193 * 2 + 192 * 1729 + 192 * 193
        + 10 * 193,
    ),
    "all_conv": (
        (32, 32, 3),
        10,
        96 * 28 + 96 * 865 * 2 + 192 * 865 + 192 * 1729 * 3 + 192 * 193 + 10 * 193,
    ),
}  # fmt: skip
STOCHASTIC = {
    "lenet": (False, True),
    "lenet_all": (True, True),
    "quick": (True, True),
    "nin": (True, False),
    "all_conv": (True, False),
}


@pytest.mark.parametrize("name", CASES)
def test_parameter_counts_are_those_of_the_papers_layers(name):
    shape, classes, expected = CASES[name]
    model = models.build({"name": name}, num_classes=classes)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == expected


@pytest.mark.parametrize("name", CASES)
def test_dropout_is_where_the_paper_has_it_and_off_without_keys(name):
    shape, classes, _ = CASES[name]
    model = models.build({"name": name, "width": 12, "dropout_rate": 0.5}, num_classes=classes)
    assert model.stochastic() == STOCHASTIC[name]
    images = jax.random.normal(jax.random.key(1), (2, *shape))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    @jax.jit
    def run(keys):
        features = model.apply(variables, images, dropout_keys=keys, method="features")
        return features, model.apply(variables, features, keys, method="drop")

    features, dropped = run(jax.random.split(jax.random.key(2), 2))
    clean, kept = run(None)
    in_backbone, on_features = STOCHASTIC[name]
    assert np.array_equal(features, clean) != in_backbone
    assert np.array_equal(dropped, features) != on_features
    np.testing.assert_array_equal(kept, clean)


def test_smaller_students_are_narrower_layers_of_the_same_network():
    narrow = models.build({"name": "quick", "hidden": 8}, num_classes=10)
    shapes = jax.eval_shape(narrow.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert shapes["backbone"]["Dense_0"]["kernel"].shape == (1024, 8)
    assert shapes["backbone"]["Conv_2"]["kernel"].shape == (5, 5, 32, 64)
    assert shapes["classifier"]["kernel"].shape == (8, 10)
