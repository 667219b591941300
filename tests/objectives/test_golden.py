"""Objectives against the SD-Dropout authors' own code: total loss and gradients of every golden case."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax import models
from sdd_jax.objectives import Batch, Clock, View, objectives, with_sd_dropout

PROBLEMS = json.loads((Path(__file__).parents[1] / "author_losses.json").read_text())
ARGUMENTS = ("features", "kernel", "bias", "mid_logits", "mid_features")  # differentiated by
TWO_BATCHES = ("cs_kd", "ddgsd")  # the second half holds the partners, or the second view

# Golden case: objective, its options, options of SD-Dropout (None: without the term).
KD = {"weight": "kd_weight"}  # names of constants in the file
CLEAN_STUDENT = {"weight": "sdd_weight", "temperature": "temperature"}
CASES = {
    "cross_entropy": ("cross_entropy", {}, None),
    "label_smoothing": ("label_smoothing", {}, None),
    "sd_dropout": ("cross_entropy", {}, {}),
    "sd_dropout_detach": ("cross_entropy", {}, {"gradient": "forward"}),
    "sd_dropout_label_smoothing": ("label_smoothing", {}, {}),
    "sd_dropout_clean_student": ("clean_student", CLEAN_STUDENT, None),
    "sd_dropout_clean_student_detach": (
        "clean_student",
        CLEAN_STUDENT | {"gradient": "forward"},
        None,
    ),
    "dropout_ce": ("dropout_cross_entropy", {}, None),
    "clean_plus_dropout_ce": ("clean_dropout_cross_entropy", {"weight": "sdd_weight"}, None),
    "cs_kd": ("cs_kd", KD, None),
    "cs_kd_sd_dropout": ("cs_kd", KD, {}),
    "ddgsd": ("ddgsd", KD, None),
    "ddgsd_sd_dropout": ("ddgsd", KD, {}),
    "byot": ("byot", KD, None),
    "byot_sd_dropout": ("byot", KD, {}),
    "dml": ("dml", KD, None),
    "dml_sd_dropout_a": ("dml", KD, {}),
}


class GoldenForward:
    """A network that gives the golden features.

    Its head drops features by the golden masks. The objectives themselves have a dropout rate of 0.
    """

    def __init__(self, inputs, name):
        self.inputs = inputs
        features = inputs["features"]
        self.batches = jnp.split(features, 2) if name in TWO_BATCHES else [features]
        rows = len(self.batches[0])
        u, v = (inputs[mask] / (1 - inputs["rate"]) for mask in ("mask_u", "mask_v"))
        if name == "ddgsd":  # one mask for each image of each view
            u, v = u[:rows], u[rows:]
        # The head runs on the masks of an example together; otherwise on dropped features first.
        pair = jnp.stack([u[:rows], v[:rows]], axis=1).reshape(2 * rows, -1)
        self.masks = {2 * rows: [pair], rows: [u, jnp.ones_like(u)]}

    def logits(self, features):
        return features @ self.inputs["kernel"] + self.inputs["bias"][None]

    def head(self, features):
        return self.logits(features * self.masks[len(features)].pop(0))

    def __call__(self, images, *, batch_stats=None, dropout="dropout"):
        features = self.batches.pop(0)
        return View(features, self.logits(features), self.head, {}, stages=("stage1", "stage2"))

    def joint(self, batches, *, dropout):
        return [self(batch) for batch in batches]

    def auxiliary(self, *arguments):
        inputs = self.inputs
        if arguments == ("stage1", "stage2"):  # the branches of BYOT
            return list(zip(inputs["mid_logits"], inputs["mid_features"], strict=True)), {}
        return inputs["features_b"] @ inputs["kernel_b"] + inputs["bias_b"][None], {}


def total(arguments, inputs, labels, case):
    name, options, term = CASES[case]
    options = {"name": name} | {key: inputs.get(value, value) for key, value in options.items()}
    if "dropout" in name or name == "clean_student":
        options["dropout_rate"] = 0.0
    model = models.build({"name": "mlp", "width": 8}, num_classes=4)
    objective = objectives.build(options, model=model, image_shape=(4, 4, 1), axis_name=None)
    if term is not None:
        term = {"rate": 0.0, "temperature": inputs["temperature"]} | term
        objective = with_sd_dropout(objective, inputs["sdd_weight"], **term)
    forward = GoldenForward(inputs | arguments, name)
    labels = labels[: len(forward.batches[0])]
    clock = Clock(jnp.int32(0), 1, 1)
    keys = jax.random.split(jax.random.key(0), len(labels))
    batch = Batch((None, None), labels, index=None, position=None, clock=clock)
    output = objective.loss(forward, batch, lambda stream: keys)
    values = [term.weight * jnp.mean(term.values) for term in output.terms.values()]
    scale = (
        inputs["sdd_weight"] if case == "dropout_ce" else 1.0
    )  # the authors weight the only term
    return scale * sum(values)


@pytest.fixture(scope="module", params=PROBLEMS, ids=["problem0", "problem1"])
def computed(request):
    """The golden cases of a problem, and value and gradients of the objectives for all of them."""
    inputs, golden = request.param["inputs"], request.param["cases"]
    with jax.enable_x64(True):
        inputs = {k: jnp.array(v) if isinstance(v, list) else v for k, v in inputs.items()}

        def all_cases(arguments):
            labels = {case: jnp.array(golden[case]["labels"]) for case in CASES}
            derivative = jax.value_and_grad(total)
            return {case: derivative(arguments, inputs, labels[case], case) for case in CASES}

        arguments = {name: inputs[name] for name in ARGUMENTS}
        return golden, jax.device_get(jax.jit(all_cases)(arguments))


def test_every_case_of_the_authors_is_here():
    for problem in PROBLEMS:
        assert problem["cases"].keys() == CASES.keys()


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_the_authors(case, computed):
    golden, (loss, gradients) = computed[0][case], computed[1][case]
    assert loss.dtype == np.float64
    np.testing.assert_allclose(loss, golden["losses"]["loss_total"], rtol=1e-9)
    recorded = {k.removeprefix("grad_"): np.array(v) for k, v in golden.items() if "grad_" in k}
    assert recorded.keys() >= {"features", "kernel", "bias"}
    for name, expected in recorded.items():
        atol = 1e-9 * np.abs(expected).max()
        np.testing.assert_allclose(gradients[name], expected, rtol=0, atol=atol, err_msg=name)
