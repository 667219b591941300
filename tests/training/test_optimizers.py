"""Optimizers against the equations of their papers, written in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdd_jax.errors import InputError
from sdd_jax.training.optimizers import optimizers

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}
GRADS = [{"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)} for _ in range(3)]
RATES = [1.0, 0.5, 0.1]  # of the peak, by step


def float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def build(name, **options):
    def schedule(peak):
        return lambda count: peak * jnp.array(RATES)[count]

    return optimizers.build({"name": name, **options}, schedule=schedule)


def parameters_after_each_step(optimizer):
    params = float32(PARAMS)
    transformation = optimizer.transformation
    state, history = transformation.init(params), []
    for grads in GRADS:
        updates, state = transformation.update(float32(grads), state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


class Sgd:
    """``decay``: "coupled" or "decoupled"."""

    def __init__(self, learning_rate, momentum, nesterov, decay):
        self.learning_rate, self.momentum, self.nesterov = learning_rate, momentum, nesterov
        self.decay, self.velocity = decay, 0.0

    def __call__(self, theta, g, rate, weight_decay, kernel):
        coupled = self.decay == "coupled"
        g = g + weight_decay * theta * coupled
        self.velocity = self.momentum * self.velocity + g
        step = g + self.momentum * self.velocity if self.nesterov else self.velocity
        return theta - self.learning_rate * rate * (step + weight_decay * theta * (not coupled))


class Adam:
    """``decay``: "coupled", "decoupled" or "lamb"."""

    def __init__(self, learning_rate, b1, b2, eps, decay):
        self.learning_rate, self.b1, self.b2, self.eps = learning_rate, b1, b2, eps
        self.decay, self.m, self.v, self.t = decay, 0.0, 0.0, 0

    def __call__(self, theta, g, rate, weight_decay, kernel):
        if self.decay == "coupled":
            g = g + weight_decay * theta
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        m, v = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        step = m / (np.sqrt(v) + self.eps)
        if self.decay != "coupled":
            step = step + weight_decay * theta
        if self.decay == "lamb" and kernel:
            step = step * np.linalg.norm(theta) / np.linalg.norm(step)
        return theta - self.learning_rate * rate * step


class Lars:
    def __init__(self, learning_rate, momentum, trust_coefficient):
        self.learning_rate, self.momentum = learning_rate, momentum
        self.trust_coefficient, self.velocity = trust_coefficient, 0.0

    def __call__(self, theta, g, rate, weight_decay, kernel):
        g = g + weight_decay * theta
        trust = self.trust_coefficient * np.linalg.norm(theta) / np.linalg.norm(g) if kernel else 1
        self.velocity = self.momentum * self.velocity + self.learning_rate * rate * trust * g
        return theta - self.velocity


EQUATIONS = {  # name, options: the same in numpy
    ("sgd", "coupled"): lambda: Sgd(0.1, 0.8, False, "coupled"),
    ("sgd", "decoupled"): lambda: Sgd(0.1, 0.8, False, "decoupled"),
    ("sgd", "nesterov"): lambda: Sgd(0.1, 0.8, True, "coupled"),
    ("adamw", "decoupled"): lambda: Adam(0.02, 0.8, 0.95, 1e-3, "decoupled"),
    ("adamw", "coupled"): lambda: Adam(0.02, 0.8, 0.95, 1e-3, "coupled"),
    ("lars", ""): lambda: Lars(0.5, 0.8, 0.01),
    ("lamb", ""): lambda: Adam(0.02, 0.8, 0.95, 1e-3, "lamb"),
}
OPTIONS = {
    "sgd": {"learning_rate": 0.1, "momentum": 0.8},
    "adamw": {"learning_rate": 0.02, "b1": 0.8, "b2": 0.95, "eps": 1e-3},
    "lars": {"learning_rate": 0.5, "momentum": 0.8, "trust_coefficient": 0.01},
    "lamb": {"learning_rate": 0.02, "b1": 0.8, "b2": 0.95, "eps": 1e-3},
}
EXTRA = {
    "": {},
    "coupled": {"decay": "coupled"},
    "decoupled": {"decay": "decoupled"},
    "nesterov": {"nesterov": True},
}


@pytest.mark.parametrize("clip_norm", [0.0, 1.5])
@pytest.mark.parametrize("mask", ["all", "kernels"])
@pytest.mark.parametrize(("name", "variant"), EQUATIONS)
def test_steps_are_those_of_the_equations(name, variant, mask, clip_norm):
    options = OPTIONS[name] | EXTRA[variant]
    optimizer = build(
        name, weight_decay=0.3, weight_decay_mask=mask, clip_norm=clip_norm, **options
    )
    by_hand = {array: EQUATIONS[name, variant]() for array in PARAMS}
    params = PARAMS
    for params_of_step, grads, rate in zip(
        parameters_after_each_step(optimizer), GRADS, RATES, strict=True
    ):
        norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
        assert norm > 1.5
        scale = clip_norm / norm if clip_norm else 1.0
        params = {
            array: by_hand[array](
                params[array],
                scale * grads[array],
                rate,
                0.3 if masked else 0.0,
                masked,
            )
            for array in PARAMS
            for masked in [mask == "all" or array == "kernel"]
        }
        for array, expected in params.items():
            np.testing.assert_allclose(params_of_step[array], expected, rtol=2e-5, atol=1e-6)


def test_a_gradient_below_the_clip_norm_is_left_alone():
    clipped, free = (
        parameters_after_each_step(build("sgd", clip_norm=clip)) for clip in (1e3, 0.0)
    )
    jax.tree.map(np.testing.assert_array_equal, clipped, free)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_trust_ratios_of_arrays_that_are_zero_are_one(name):
    optimizer = build(name, weight_decay=0.0)
    params, grads = {"kernel": jnp.zeros((2, 2))}, {"kernel": jnp.ones((2, 2))}
    state = optimizer.transformation.init(params)
    updates, _ = optimizer.transformation.update(grads, state, params)
    peak = {"lars": 1.0, "lamb": 5e-3}[name]
    np.testing.assert_allclose(updates["kernel"], np.full((2, 2), -peak), rtol=1e-4)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "lamb"])
def test_defaults_leave_out_clipping_and_the_average(name):
    options = optimizers.options(name)
    assert options["clip_norm"] == options["ema"] == 0
    assert build(name).ema == 0
    assert build(name, ema=0.99).ema == 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "config.optimizer.learning_rate: must be greater than 0, got 0.0"),
        ({"momentum": 1.0}, r"config.optimizer.momentum: must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, "config.optimizer.weight_decay: must be 0 or more, got -1.0"),
        ({"decay": "l2"}, "config.optimizer.decay: must be one of coupled, decoupled, got 'l2'"),
        ({"weight_decay_mask": "none"}, "config.optimizer.weight_decay_mask: must be one of all"),
        ({"clip_norm": -1.0}, "config.optimizer.clip_norm: must be 0 or more, got -1.0"),
        ({"ema": 1.0}, r"config.optimizer.ema: must be in \[0, 1\), got 1.0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        build("sgd", **options)
