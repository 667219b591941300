"""Values and gradients of the losses, compared with those of the SD-Dropout authors' code."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdd_jax

PROBLEMS = json.loads((Path(__file__).parents[1] / "author_losses.json").read_text())
# Differentiated by, where the authors recorded it.
ARGUMENTS = ("features", "kernel", "bias", "mid_logits", "mid_features")


class Terms:
    """Terms of the losses: the name under which the authors log a value -> (weight, values)."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels, self.features = inputs, labels, inputs["features"]
        self.weight, self.temperature = inputs["sdd_weight"], inputs["temperature"]
        self.masks = [inputs[mask] / (1 - inputs["rate"]) for mask in ("mask_u", "mask_v")]

    def head(self, features, suffix=""):
        return features @ self.inputs["kernel" + suffix] + self.inputs["bias" + suffix][None]

    def halves(self, x):
        """The images and their partners, or the two views."""
        return jnp.split(x, 2)

    def cross_entropy(self, features=None, loss=sdd_jax.cross_entropy):
        features = self.features if features is None else features
        values = loss(self.head(features), self.labels[: len(features)])
        return {"loss_ce": (1, values)}

    def label_smoothing(self):
        return self.cross_entropy(loss=sdd_jax.label_smoothing)

    def dropout_ce(self):
        ((_, values),) = self.cross_entropy(self.features * self.masks[0]).values()
        return {"loss_dropout": (self.weight, values)}

    # At rate 0 the heads get the features unchanged; they apply the authors' masks themselves.

    def sd_dropout(self, gradient="both", name="loss_kl", size=None):
        features, *masks = (x[:size] for x in (self.features, *self.masks))
        stacked_masks = jnp.stack(masks, axis=1).reshape(-1, features.shape[-1])
        values = sdd_jax.sd_dropout_loss(
            features,
            lambda stacked: self.head(stacked * stacked_masks),
            jax.random.key(0),
            rate=0.0,
            temperature=self.temperature,
            gradient=gradient,
        )
        return {name: (self.weight, values)}

    def clean_student(self, gradient="both"):
        masks = iter([self.masks[0], jnp.ones_like(self.masks[0])])  # of the teacher, the student
        values = sdd_jax.sd_dropout_clean_student_loss(
            self.features,
            lambda features: self.head(features * next(masks)),
            jax.random.key(0),
            rate=0.0,
            temperature=self.temperature,
            gradient=gradient,
        )
        return {"loss_kl": (self.weight, values)}

    def cs_kd(self):
        images, partners = self.halves(self.features)
        values = sdd_jax.cs_kd_loss(self.head(images), self.head(partners))
        return self.cross_entropy(images) | {"loss_kl": (self.inputs["kd_weight"], values)}

    def ddgsd(self):
        views = self.halves(self.features)
        logits = [self.head(view) for view in views]
        ce = map(sdd_jax.cross_entropy, logits, self.halves(self.labels))
        return {
            "loss_ce": (1, sum(ce)),
            "loss_kl": (self.inputs["kd_weight"], sdd_jax.ddgsd_loss(*logits)),
            "loss_mmd": (0.005, sdd_jax.ddgsd_feature_loss(*views)),
        }

    def dropped_views(self):
        """One mask for each image of each view; the term is between the views."""
        logits = self.halves(self.head(self.features * self.masks[0]))
        values = sdd_jax.sd_dropout_loss_from_logits(logits, temperature=self.temperature)
        return {"loss_kl_dropout": (self.weight, values)}

    def byot(self):
        """The authors log the branches' cross-entropies as ``loss_kl`` and the KL as ``loss_mmd``."""
        weight, logits = self.inputs["kd_weight"], self.head(self.features)
        branches, features = self.inputs["mid_logits"], self.inputs["mid_features"]
        ce = sum(sdd_jax.cross_entropy(z, self.labels) for z in branches)
        kl = sum(sdd_jax.byot_loss(z, logits) for z in branches)
        distance = sum(sdd_jax.byot_feature_loss(f, self.features) for f in features)
        return self.cross_entropy() | {
            "loss_kl": (0.9 * weight, ce),
            "loss_mmd": (0.1 * weight, kl),
            "not logged": (1e-6 * weight, distance),
        }

    def dml(self):
        logits = self.head(self.features), self.head(self.inputs["features_b"], "_b")
        ce = sum(sdd_jax.cross_entropy(z, self.labels) for z in logits) / 2
        kl = sdd_jax.dml_loss(*logits)
        return {"loss_ce": (1, ce), "loss_kl": (self.inputs["kd_weight"], kl)}


CASES = {
    "cross_entropy": Terms.cross_entropy,
    "label_smoothing": Terms.label_smoothing,
    "sd_dropout": lambda t: t.cross_entropy() | t.sd_dropout(),
    "sd_dropout_detach": lambda t: t.cross_entropy() | t.sd_dropout("forward"),
    "sd_dropout_label_smoothing": lambda t: t.label_smoothing() | t.sd_dropout(),
    "sd_dropout_clean_student": lambda t: t.cross_entropy() | t.clean_student(),
    "sd_dropout_clean_student_detach": lambda t: t.cross_entropy() | t.clean_student("forward"),
    "dropout_ce": Terms.dropout_ce,
    "clean_plus_dropout_ce": lambda t: t.cross_entropy() | t.dropout_ce(),
    "cs_kd": Terms.cs_kd,
    "cs_kd_sd_dropout": lambda t: (
        t.cs_kd() | t.sd_dropout(name="loss_kl_dropout", size=len(t.features) // 2)
    ),
    "ddgsd": Terms.ddgsd,
    "ddgsd_sd_dropout": lambda t: t.ddgsd() | t.dropped_views(),
    "byot": Terms.byot,
    "byot_sd_dropout": lambda t: t.byot() | t.sd_dropout(name="loss_kl_dropout"),
    "dml": Terms.dml,
    "dml_sd_dropout_a": lambda t: t.dml() | t.sd_dropout(name="loss_kl_dropout"),
}


def total_and_terms(arguments, inputs, labels, case):
    """The case's total loss, and its terms, as means over the batch."""
    terms = CASES[case](Terms(inputs | arguments, labels))
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

    with jax.enable_x64(dtype == np.float64):
        inputs = {k: jnp.asarray(v, dtype) if isinstance(v, list) else v for k, v in inputs.items()}
        arguments = {name: inputs[name] for name in ARGUMENTS}
        return golden, jax.device_get(jax.jit(lambda args: all_cases(args, inputs))(arguments))


def test_every_case_of_the_authors_is_covered():
    for problem in PROBLEMS:
        assert problem["cases"].keys() == CASES.keys()


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_equal_the_authors(case, computed, dtype):
    tolerance = 1e-9 if dtype == np.float64 else 1e-5
    golden, ((total, terms), gradients) = computed[0][case], computed[1][case]
    values = {name: v for name, v in terms.items() if name != "not logged"} | {"loss_total": total}
    assert values.keys() == golden["losses"].keys()
    for name, value in values.items():
        assert value.dtype == dtype
        np.testing.assert_allclose(value, golden["losses"][name], rtol=tolerance, err_msg=name)
    recorded = {k.removeprefix("grad_"): np.array(v) for k, v in golden.items() if "grad_" in k}
    assert recorded.keys() >= {"features", "kernel", "bias"}
    for name, expected in recorded.items():
        assert gradients[name].dtype == dtype
        atol = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(gradients[name], expected, rtol=0, atol=atol, err_msg=name)
