"""Values and gradients of the losses against those of the SD-Dropout authors' own code."""

import contextlib
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


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(params=[(True, np.float64, 1e-9), (False, np.float32, 1e-5)], ids=["f64", "f32"])
def precision(request):
    x64, dtype, tolerance = request.param
    with jax.enable_x64(True) if x64 else contextlib.nullcontext():
        yield dtype, tolerance


@pytest.fixture(params=[0, 1], ids=["problem0", "problem1"])
def problem(request, precision, monkeypatch):
    """A golden problem, while the loss draws the authors' masks instead of random ones."""
    problem = PROBLEMS[request.param]
    inputs, scale = problem["inputs"], 1 / (1 - problem["inputs"]["rate"])
    masks = [scale * np.array(inputs[name], precision[0]) for name in ("mask_u", "mask_v")]

    def golden_samples(key, x, *, rate, num_samples, exclusive):
        assert (rate, num_samples, exclusive) == (inputs["rate"], 2, False)
        return [x * mask for mask in masks]

    def golden_dropout(key, x, *, rate):
        assert rate == inputs["rate"]
        return x * masks[0]

    monkeypatch.setattr(sd_dropout_module, "dropout_samples", golden_samples)
    monkeypatch.setattr(sd_dropout_module, "dropout", golden_dropout)
    return problem


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
    return cross_entropy(head(sd_dropout_module.dropout(NO_KEY, features, rate=inputs["rate"])), labels)


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


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_equal_the_authors(case, problem, precision):
    dtype, tolerance = precision
    inputs, golden = problem["inputs"], problem["cases"][case]
    base, extra, extra_name = CASES[case]
    labels = jnp.asarray(inputs["labels"], jnp.int32)
    names = ("features", "kernel", "bias")
    arguments = {name: jnp.asarray(inputs[name], dtype) for name in names}

    def loss(arguments):
        def head(features):
            return features @ arguments["kernel"] + arguments["bias"][None]

        features, terms, total = arguments["features"], {}, jnp.zeros((), dtype)
        if base is not None:
            terms["loss_ce"] = jnp.mean(base(head(features), labels))
            total += terms["loss_ce"]
        if extra is not None:
            terms[extra_name] = jnp.mean(extra(features, head, inputs, labels))
            total += inputs["sdd_weight"] * terms[extra_name]
        return total, terms

    (total, terms), gradients = jax.value_and_grad(loss, has_aux=True)(arguments)
    computed = terms | {"loss_total": total}
    assert computed.keys() == golden["losses"].keys()
    for name, value in computed.items():
        assert value.dtype == dtype
        np.testing.assert_allclose(value, golden["losses"][name], rtol=tolerance, err_msg=name)
    for name, gradient in gradients.items():
        expected = np.array(golden[f"grad_{name}"])
        largest = np.abs(expected).max()
        np.testing.assert_allclose(
            gradient, expected, rtol=0, atol=tolerance * largest, err_msg=name
        )
