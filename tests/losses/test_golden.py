"""Values and gradients of the losses, compared with those of the SD-Dropout authors' code."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdd_jax

PROBLEMS = json.loads((Path(__file__).parents[1] / "author_losses.json").read_text())
# Differentiated by, where the authors recorded it.
ARGUMENTS = ("features", "kernel", "bias", "mid_logits", "mid_features")


@dataclass(frozen=True)
class Problem:
    """A batch, and in ``inputs`` the rest: masks, constants, branches, a second network."""

    features: jax.Array
    kernel: jax.Array
    bias: jax.Array
    labels: jax.Array
    inputs: dict[str, Any]

    def head(self, features):
        return features @ self.kernel + self.bias[None]

    @property
    def logits(self):
        return self.head(self.features)

    def mask(self, name):
        """A dropout mask of the authors with its scale."""
        return self.inputs[name] / (1 - self.inputs["rate"])

    @property
    def options(self):
        """At rate 0, the head gets the features unchanged and applies the authors' masks itself."""
        return {"key": jax.random.key(0), "rate": 0.0, "temperature": self.inputs["temperature"]}

    def halves(self):
        """The images and their partners, or the two views."""
        half = len(self.features) // 2
        return [
            replace(self, features=self.features[rows], labels=self.labels[rows])
            for rows in (slice(None, half), slice(half, None))
        ]


# Terms of a loss: the name that the authors log the value under -> (weight, values).


def cross_entropy(problem):
    return {"loss_ce": (1, sdd_jax.cross_entropy(problem.logits, problem.labels))}


def label_smoothing(problem):
    return {"loss_ce": (1, sdd_jax.label_smoothing(problem.logits, problem.labels))}


def dropped(problem):
    return replace(problem, features=problem.features * problem.mask("mask_u"))


def dropout_ce(problem):
    values = sdd_jax.cross_entropy(dropped(problem).logits, problem.labels)
    return {"loss_dropout": (problem.inputs["sdd_weight"], values)}


def sd_dropout(problem, gradient="both", name="loss_kl"):
    samples = [problem.mask(mask)[: len(problem.features)] for mask in ("mask_u", "mask_v")]
    adjacent = jnp.stack(samples, axis=1).reshape(-1, problem.features.shape[-1])
    values = sdd_jax.sd_dropout_loss(
        problem.features,
        lambda stacked: problem.head(stacked * adjacent),
        gradient=gradient,
        **problem.options,
    )
    return {name: (problem.inputs["sdd_weight"], values)}


def clean_student(problem, gradient="both"):
    networks = iter([dropped(problem), problem])  # the teacher is computed first
    values = sdd_jax.sd_dropout_clean_student_loss(
        problem.features, lambda _: next(networks).logits, gradient=gradient, **problem.options
    )
    return {"loss_kl": (problem.inputs["sdd_weight"], values)}


def cs_kd(problem):
    images, partners = problem.halves()
    values = sdd_jax.cs_kd_loss(images.logits, partners.logits)
    return cross_entropy(images) | {"loss_kl": (problem.inputs["kd_weight"], values)}


def cs_kd_sd_dropout(problem):
    images, _ = problem.halves()
    return cs_kd(problem) | sd_dropout(images, name="loss_kl_dropout")


def ddgsd(problem):
    view_1, view_2 = problem.halves()
    ce = [sdd_jax.cross_entropy(view.logits, view.labels) for view in (view_1, view_2)]
    kl = sdd_jax.ddgsd_loss(view_1.logits, view_2.logits)
    distance = sdd_jax.ddgsd_feature_loss(view_1.features, view_2.features)
    return {
        "loss_ce": (1, ce[0] + ce[1]),
        "loss_kl": (problem.inputs["kd_weight"], kl),
        "loss_mmd": (0.005, distance),
    }


def ddgsd_sd_dropout(problem):
    """Each image of each view has one mask; the term is between the views."""
    values = sdd_jax.sd_dropout_loss_from_logits(
        [view.logits for view in dropped(problem).halves()],
        temperature=problem.inputs["temperature"],
    )
    return ddgsd(problem) | {"loss_kl_dropout": (problem.inputs["sdd_weight"], values)}


def byot(problem):
    """The authors' names mislead: ``loss_kl`` are the branches' cross-entropies, ``loss_mmd`` the KL."""
    weight, features, logits = problem.inputs["kd_weight"], problem.features, problem.logits
    branches, branch_features = problem.inputs["mid_logits"], problem.inputs["mid_features"]
    ce = sum(sdd_jax.cross_entropy(z, problem.labels) for z in branches)
    kl = sum(sdd_jax.byot_loss(z, logits) for z in branches)
    distance = sum(sdd_jax.byot_feature_loss(f, features) for f in branch_features)
    return cross_entropy(problem) | {
        "loss_kl": (0.9 * weight, ce),
        "loss_mmd": (0.1 * weight, kl),
        "not logged": (1e-6 * weight, distance),
    }


def dml(problem):
    names = {"features": "features_b", "kernel": "kernel_b", "bias": "bias_b"}
    other = replace(problem, **{a: problem.inputs[b] for a, b in names.items()})
    ce = [sdd_jax.cross_entropy(network.logits, problem.labels) for network in (problem, other)]
    kl = sdd_jax.dml_loss(problem.logits, other.logits)
    return {"loss_ce": (1, (ce[0] + ce[1]) / 2), "loss_kl": (problem.inputs["kd_weight"], kl)}


CASES = {
    "cross_entropy": cross_entropy,
    "label_smoothing": label_smoothing,
    "sd_dropout": lambda p: cross_entropy(p) | sd_dropout(p),
    "sd_dropout_detach": lambda p: cross_entropy(p) | sd_dropout(p, "forward"),
    "sd_dropout_label_smoothing": lambda p: label_smoothing(p) | sd_dropout(p),
    "sd_dropout_clean_student": lambda p: cross_entropy(p) | clean_student(p),
    "sd_dropout_clean_student_detach": lambda p: cross_entropy(p) | clean_student(p, "forward"),
    "dropout_ce": dropout_ce,
    "clean_plus_dropout_ce": lambda p: cross_entropy(p) | dropout_ce(p),
    "cs_kd": cs_kd,
    "cs_kd_sd_dropout": cs_kd_sd_dropout,
    "ddgsd": ddgsd,
    "ddgsd_sd_dropout": ddgsd_sd_dropout,
    "byot": byot,
    "byot_sd_dropout": lambda p: byot(p) | sd_dropout(p, name="loss_kl_dropout"),
    "dml": dml,
    "dml_sd_dropout_a": lambda p: dml(p) | sd_dropout(p, name="loss_kl_dropout"),
}


def total_and_terms(arguments, inputs, labels, case):
    """The case's total loss, and its terms, as means over the batch."""
    features, kernel, bias = (arguments[name] for name in ("features", "kernel", "bias"))
    terms = CASES[case](Problem(features, kernel, bias, labels, inputs | arguments))
    total = sum(weight * jnp.mean(values) for weight, values in terms.values())
    return total, {name: jnp.mean(values) for name, (_, values) in terms.items()}


@pytest.fixture(scope="module", params=[np.float64, np.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=PROBLEMS, ids=["problem0", "problem1"])
def computed(request, dtype):
    """The golden cases of a problem, and this library's results for all of them."""
    inputs, golden = request.param["inputs"], request.param["cases"]

    def all_cases(arguments, inputs):
        derivative = jax.value_and_grad(total_and_terms, has_aux=True)
        labels = {case: jnp.asarray(golden[case]["labels"], jnp.int32) for case in CASES}
        return {case: derivative(arguments, inputs, labels[case], case) for case in CASES}

    with (
        jax.enable_x64(dtype == np.float64),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        inputs = {k: jnp.asarray(v, dtype) if isinstance(v, list) else v for k, v in inputs.items()}
        arguments = {name: inputs[name] for name in ARGUMENTS}
        run = jax.jit(lambda arguments: all_cases(arguments, inputs))
        return golden, jax.device_get(run(arguments))


def test_every_case_of_the_authors_is_covered():
    for problem in PROBLEMS:
        assert problem["cases"].keys() == CASES.keys()


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_equal_the_authors(case, computed, dtype):
    tolerance = 1e-9 if dtype == np.float64 else 1e-5
    golden, ((total, terms), gradients) = computed[0][case], computed[1][case]
    terms.pop("not logged", None)
    values = terms | {"loss_total": total}
    assert values.keys() == golden["losses"].keys()
    for name, value in values.items():
        assert value.dtype == dtype
        np.testing.assert_allclose(value, golden["losses"][name], rtol=tolerance, err_msg=name)
    recorded = {k.removeprefix("grad_"): np.array(v) for k, v in golden.items() if "grad_" in k}
    assert recorded.keys() >= {"features", "kernel", "bias"}
    for name, expected in recorded.items():
        assert gradients[name].dtype == dtype
        np.testing.assert_allclose(
            gradients[name], expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=name
        )
