"""Values and gradients of the losses against those of the SD-Dropout authors' own code."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdd_jax
import sdd_jax.losses._sd_dropout as sd_dropout_module
from sdd_jax import cross_entropy, label_smoothing

PROBLEMS = json.loads((Path(__file__).parents[1] / "author_losses.json").read_text())
NO_KEY = jax.random.key(0)  # the masks are the authors', not drawn


def golden_masks(inputs, dtype, monkeypatch):
    """Lets the losses draw the authors' masks instead of random ones."""
    scale = 1 / (1 - inputs["rate"])
    masks = [scale * np.array(inputs[name], dtype) for name in ("mask_u", "mask_v")]

    def golden_samples(key, x, *, rate, num_samples, exclusive):
        assert (rate, num_samples, exclusive) == (inputs["rate"], 2, False)
        return [x * mask for mask in masks]

    def golden_dropout(key, x, *, rate):
        assert rate == inputs["rate"]
        return x * masks[0]

    monkeypatch.setattr(sd_dropout_module, "dropout_samples", golden_samples)
    monkeypatch.setattr(sd_dropout_module, "dropout", golden_dropout)


def sd_dropout(features, head, inputs, gradient="both"):
    rate, temperature = inputs["rate"], inputs["temperature"]
    return sdd_jax.sd_dropout_loss(
        features, head, NO_KEY, rate=rate, temperature=temperature, gradient=gradient
    )


def clean_student(features, head, inputs, gradient="both"):
    rate, temperature = inputs["rate"], inputs["temperature"]
    return sdd_jax.sd_dropout_clean_student_loss(
        features, head, NO_KEY, rate=rate, temperature=temperature, gradient=gradient
    )


def dropout_ce(features, head, inputs, labels):
    return cross_entropy(
        head(sd_dropout_module.dropout(NO_KEY, features, rate=inputs["rate"])), labels
    )


# case -> (term against the labels, what is added to it with the weight, the name of its value)
CASES = {
    "cross_entropy": (cross_entropy, None, None),
    "label_smoothing": (label_smoothing, None, None),
    "sd_dropout": (cross_entropy, lambda f, h, i, y: sd_dropout(f, h, i), "loss_kl"),
    "sd_dropout_detach": (
        cross_entropy,
        lambda f, h, i, y: sd_dropout(f, h, i, "forward"),
        "loss_kl",
    ),
    "sd_dropout_label_smoothing": (
        label_smoothing,
        lambda f, h, i, y: sd_dropout(f, h, i),
        "loss_kl",
    ),
    "sd_dropout_clean_student": (
        cross_entropy,
        lambda f, h, i, y: clean_student(f, h, i),
        "loss_kl",
    ),
    "sd_dropout_clean_student_detach": (
        cross_entropy,
        lambda f, h, i, y: clean_student(f, h, i, "forward"),
        "loss_kl",
    ),
    "dropout_ce": (None, dropout_ce, "loss_dropout"),
    "clean_plus_dropout_ce": (cross_entropy, dropout_ce, "loss_dropout"),
}


def total_and_terms(arguments, inputs, case):
    """What the case minimises, and its parts, as means over the batch."""
    base, extra, extra_name = CASES[case]
    labels = jnp.asarray(inputs["labels"], jnp.int32)

    def head(features):
        return features @ arguments["kernel"] + arguments["bias"][None]

    features, terms = arguments["features"], {}
    total = jnp.zeros((), features.dtype)
    if base is not None:
        terms["loss_ce"] = jnp.mean(base(head(features), labels))
        total += terms["loss_ce"]
    if extra is not None:
        terms[extra_name] = jnp.mean(extra(features, head, inputs, labels))
        total += inputs["sdd_weight"] * terms[extra_name]
    return total, terms


@pytest.fixture(scope="module", params=[np.float64, np.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=PROBLEMS, ids=["problem0", "problem1"])
def computed(request, dtype):
    """The golden cases of a problem, and what this library computes for all of them."""
    inputs = request.param["inputs"]

    def all_cases(arguments):
        derivative = jax.value_and_grad(total_and_terms, has_aux=True)
        return {case: derivative(arguments, inputs, case) for case in CASES}

    with (
        jax.enable_x64(dtype == np.float64),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        golden_masks(inputs, dtype, monkeypatch)
        names = ("features", "kernel", "bias")
        arguments = {name: jnp.asarray(inputs[name], dtype) for name in names}
        return request.param["cases"], jax.device_get(jax.jit(all_cases)(arguments))


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_equal_the_authors(case, computed, dtype):
    tolerance = 1e-9 if dtype == np.float64 else 1e-5
    golden, ((total, terms), gradients) = computed[0][case], computed[1][case]
    values = terms | {"loss_total": total}
    assert values.keys() == golden["losses"].keys()
    for name, value in values.items():
        assert value.dtype == dtype
        np.testing.assert_allclose(value, golden["losses"][name], rtol=tolerance, err_msg=name)
    for name, gradient in gradients.items():
        expected = np.array(golden[f"grad_{name}"])
        assert gradient.dtype == dtype
        np.testing.assert_allclose(
            gradient, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=name
        )
