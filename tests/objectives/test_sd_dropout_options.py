"""The ablations: where the masks fall, how the weight grows, and the cosine of the two gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax import losses
from sdd_jax.errors import InputError
from sdd_jax.models import models
from sdd_jax.objectives import Batch, Clock, View, build, objectives, with_sd_dropout

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
    return jnp.tanh(x.reshape(len(x), -1) @ REST)


def forward(images, *, batch_stats=None, dropout="dropout"):
    return View(FEATURES, head(FEATURES), head, {}, stages=(None, HIDDEN), resume=resume)


def keys(stream):
    return jax.random.split(jax.random.key(len(stream)), 6)


def term(clock=None, **options):
    objective = with_sd_dropout(objectives.build({"name": "cross_entropy"}), 0.7, **options)
    clock = clock or Clock(jnp.int32(0), 10, 100)
    output = objective.loss(forward, Batch((None,), LABELS, None, None, clock), keys)
    return output.terms["sd_dropout"], output.metrics


def test_masks_after_a_stage_send_each_sample_through_the_rest_of_the_network():
    from sdd_jax import dropout_samples

    found, _ = term(position=2, num_samples=3, rate=0.4, temperature=2.0)
    samples = dropout_samples(keys("sd_dropout"), HIDDEN, rate=0.4, num_samples=3)
    logits = [resume(sample, 2) for sample in samples]
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum(4 * losses.symmetric_kl(logits[i], logits[j], temperature=2.0) for i, j in pairs)
    np.testing.assert_allclose(found.values, expected / 3, rtol=1e-5)
    elsewhere, _ = term(num_samples=3, rate=0.4, temperature=2.0)
    assert not np.allclose(found.values, elsewhere.values)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (10, 0.5), (20, 1.0), (90, 1.0)])
def test_the_weight_grows_from_zero_over_the_ramp(step, share):
    found, _ = term(Clock(jnp.int32(step), 10, 100), ramp=0.2)
    np.testing.assert_allclose(found.weight, 0.7 * share, rtol=1e-6)
    steady, _ = term(Clock(jnp.int32(step), 10, 100))
    assert steady.weight == 0.7


def test_the_cosine_is_that_of_the_two_gradients_by_the_features():
    _, metrics = term(gradient_cosine=True, rate=0.5, temperature=3.0)

    def gradient(kind):
        def total(features):
            values = losses.sd_dropout_loss(
                features, head, keys("sd_dropout"), rate=0.5, temperature=3.0, gradient=kind
            )
            return jnp.sum(values)

        return np.asarray(jax.grad(total)(FEATURES), np.float64)

    ahead, reverse = gradient("forward"), gradient("reverse")
    lengths = np.linalg.norm(ahead, axis=-1) * np.linalg.norm(reverse, axis=-1)
    expected = np.sum(ahead * reverse, axis=-1) / lengths
    np.testing.assert_allclose(metrics["sd_dropout/gradient_cosine"], expected, rtol=1e-4)
    assert np.all(np.abs(expected) < 0.9999)
    _, without = term()
    assert "sd_dropout/gradient_cosine" not in without


def test_the_cosine_does_not_change_what_is_minimised():
    plain, _ = term(rate=0.5)
    watched, _ = term(rate=0.5, gradient_cosine=True)
    np.testing.assert_array_equal(plain.values, watched.values)


@pytest.mark.parametrize("name", ["mlp", "resnet18", "densenet121", "wide_resnet16_4"])
def test_resuming_with_what_a_stage_gave_ends_where_the_whole_network_does(name):
    width = {"mlp": 8, "densenet121": 4}.get(name, 2)
    model = models.build({"name": name, "width": width}, num_classes=3, axis_name=None)
    images = jnp.asarray(RNG.standard_normal((2, 16, 16, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)

    @jax.jit
    def run(variables):
        features, sown = model.apply(
            variables, images, method="features", mutable=["intermediates"]
        )
        stages = sown["intermediates"]["backbone"]["stages"]
        resumed = [
            model.apply(variables, x, stage=i, method="features")
            for i, x in enumerate(stages, start=1)
        ]
        return features, resumed

    features, resumed = run(variables)
    assert len(resumed) == model.num_stages() >= 2
    for again in resumed:
        np.testing.assert_allclose(again, features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": 3}, r"config.sd_dropout.position: must be 0 \(the features\) or one of .* 2"),
        ({"position": -1}, "config.sd_dropout.position: must be 0"),
        ({"ramp": 1.5}, "config.sd_dropout.ramp: must be in"),
    ],
)
def test_unusable_options_are_refused(changes, message):
    from sdd_jax import config as base

    options = base.default().sd_dropout.to_dict() | changes
    model = models.build({"name": "mlp", "depth": 2}, num_classes=3)
    with pytest.raises(InputError, match=message):
        build({"name": "cross_entropy"}, options, model=model)
