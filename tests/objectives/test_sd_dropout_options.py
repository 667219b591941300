"""Options of SD-Dropout: where the masks fall, how the weight grows, what is logged."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax import dropout_samples, losses
from sdd_jax.errors import InputError
from sdd_jax.models import models
from sdd_jax.objectives import Batch, Clock, View, build, objectives, with_sd_dropout
from sdd_jax.options import defaults, validate

RNG = np.random.default_rng(0)
FEATURES = jnp.asarray(RNG.standard_normal((6, 8)), jnp.float32)
KERNEL = jnp.asarray(RNG.standard_normal((8, 5)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 5, 6), jnp.int32)
HIDDEN = jnp.asarray(RNG.standard_normal((6, 4, 4, 3)), jnp.float32)
REST = jnp.asarray(RNG.standard_normal((48, 5)), jnp.float32)


def head(features):
    return features @ KERNEL


def resume(x, stage):
    assert stage == 2
    x = jnp.tanh(x.reshape(len(x), -1) @ REST)
    return x - jnp.mean(x, axis=0, keepdims=True)  # as batch norm: a sample is normalised alone


def forward(images, *, batch_stats=None, dropout="dropout"):
    return View(FEATURES, head(FEATURES), head, {}, stages=(None, HIDDEN), resume=resume)


def keys(stream):
    return jax.random.split(jax.random.key(len(stream)), 6)


def term(step=0, forward=forward, **options):
    objective = with_sd_dropout(objectives.build({"name": "cross_entropy"}), 0.7, **options)
    clock = Clock(jnp.int32(step), 10, 100)
    batch = Batch((None,), LABELS, index=None, position=None, clock=clock)
    output = objective.loss(forward, batch, keys)
    return output.terms["sd_dropout"], output.metrics


def loss_by_hand(features, **options):
    return losses.sd_dropout_loss(features, head, keys("sd_dropout"), **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rate": 0.3, "temperature": 2.0, "num_samples": 4},
        {"gradient": "reverse"},
        {"num_samples": 3, "rate": 0.7, "exclusive": True},
    ],
)
def test_the_term_is_the_public_loss(options):
    found, metrics = term(**options)
    np.testing.assert_array_equal(found.values, loss_by_hand(FEATURES, **options))
    assert found.weight == 0.7
    options = {"rate": 0.5, "num_samples": 2} | options
    masks = {key: options[key] for key in ("rate", "num_samples", "exclusive") if key in options}
    logits = losses.dropped_logits(FEATURES, head, keys("sd_dropout"), **masks)
    entropy = np.mean([losses.entropy(z) for z in logits], axis=0)
    np.testing.assert_allclose(metrics["sd_dropout/entropy"], entropy, rtol=1e-6)
    pairs = itertools.combinations([np.argmax(z, axis=-1) for z in logits], 2)
    agreement = np.mean([a == b for a, b in pairs], axis=0)
    np.testing.assert_allclose(metrics["sd_dropout/agreement"], agreement, rtol=1e-6)


def test_a_random_rate_takes_the_place_of_the_rate():
    found, _ = term(rate=0.9, random_rate=(0.2, 0.4))
    np.testing.assert_array_equal(found.values, loss_by_hand(FEATURES, rate=(0.2, 0.4)))


def test_masks_after_a_stage_send_each_sample_through_the_rest_of_the_network():
    found, _ = term(position=2, num_samples=3, rate=0.4, temperature=2.0)
    samples = dropout_samples(keys("sd_dropout"), HIDDEN, rate=0.4, num_samples=3)
    logits = [resume(sample, 2) for sample in samples]
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum(4 * losses.symmetric_kl(logits[i], logits[j], temperature=2.0) for i, j in pairs)
    np.testing.assert_allclose(found.values, expected / 3, rtol=1e-4)


@pytest.mark.parametrize(("step", "fraction"), [(0, 0.0), (10, 0.5), (20, 1.0), (90, 1.0)])
def test_the_weight_grows_from_zero_over_the_ramp(step, fraction):
    np.testing.assert_allclose(term(step, ramp=0.2)[0].weight, 0.7 * fraction, rtol=1e-6)


def test_the_cosine_is_that_of_the_two_gradients_by_the_features():
    found, metrics = term(gradient_cosine=True)
    np.testing.assert_array_equal(found.values, term()[0].values)  # the same loss

    def gradient(kind):
        def total(features):
            return jnp.sum(loss_by_hand(features, gradient=kind))

        return np.asarray(jax.grad(total)(FEATURES), np.float64)

    ahead, reverse = gradient("forward"), gradient("reverse")
    lengths = np.linalg.norm(ahead, axis=-1) * np.linalg.norm(reverse, axis=-1)
    expected = np.sum(ahead * reverse, axis=-1) / lengths
    np.testing.assert_allclose(metrics["sd_dropout/gradient_cosine"], expected, rtol=1e-4)
    assert np.all(np.abs(expected) < 0.9999)
    assert "sd_dropout/gradient_cosine" not in term()[1]


def test_the_cosine_of_gradients_that_are_zero_is_zero():
    def constant(images, *, batch_stats=None, dropout="dropout"):
        return forward(images)._replace(head=lambda features: features @ jnp.zeros_like(KERNEL))

    _, metrics = term(forward=constant, gradient_cosine=True)
    np.testing.assert_array_equal(metrics["sd_dropout/gradient_cosine"], np.zeros(6))


def test_a_weight_of_zero_leaves_the_term_out():
    def terms(weight):
        objective = build({"name": "cross_entropy"}, defaults(with_sd_dropout) | {"weight": weight})
        batch = Batch((None,), LABELS, None, None, Clock(jnp.int32(0), 10, 100))
        return set(objective.loss(forward, batch, keys).terms)

    assert terms(0.0) == {"cross_entropy"}
    assert terms(1.0) == {"cross_entropy", "sd_dropout"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight: must be 0 or more, got -1.0"),
        ({"rate": 1.0}, r"rate: must be in \[0, 1\), got 1.0"),
        ({"random_rate": (0.1, 1.0)}, r"random_rate: must be .*\[0, 1\), got \(0.1, 1.0\)"),
        ({"temperature": 0.0}, "temperature: must be greater than 0, got 0.0"),
        ({"num_samples": 1}, r"num_samples: must be in \[2, 1000\], got 1"),
        ({"gradient": "none"}, "gradient: must be one of both, forward, reverse, got 'none'"),
        ({"position": -1}, "position: must be 0 or more, got -1"),
        ({"ramp": 1.5}, r"ramp: must be in \[0, 1\], got 1.5"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        validate(with_sd_dropout, options)


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "resnet18",
        "wide_resnet16_4",
        pytest.param("densenet121", marks=pytest.mark.slow),  # compiles for half a minute
    ],
)
def test_resuming_with_the_output_of_a_stage_ends_where_the_whole_network_does(name):
    width = {"mlp": 8, "densenet121": 4}.get(name, 2)
    model = models.build({"name": name, "width": width}, num_classes=3, axis_name=None)
    images = jnp.asarray(RNG.standard_normal((2, 16, 16, 3)), jnp.float32)

    @jax.jit
    def run(key):
        variables = model.init(key, images)
        features, sown = model.apply(
            variables, images, method="features", mutable=["intermediates"]
        )
        stages = sown["intermediates"]["backbone"]["stages"]
        resumed = [
            model.apply(variables, x, stage=i, method="features")
            for i, x in enumerate(stages, start=1)
        ]
        return features, resumed

    features, resumed = run(jax.random.key(0))
    assert len(resumed) == model.num_stages() >= 2
    for again in resumed:
        np.testing.assert_allclose(again, features, rtol=1e-4, atol=1e-5)
