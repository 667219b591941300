"""Second derivatives of the losses over chunks of classes, which have a gradient of their own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax import cross_entropy, linear_cross_entropy, linear_sd_dropout_loss, sd_dropout_loss
from sdd_jax.losses import GRADIENTS

KEYS = jax.random.split(jax.random.key(0), 4)
LABELS = jnp.asarray([0, 12, 20, 7], jnp.int32)


def cross_entropies(kept_classes):
    """The mean over examples, with chunks of 8 of 21 classes, and that of the plain loss."""
    options = {"chunk_size": 8, "kept_classes": kept_classes}
    return (
        lambda f, w, b: linear_cross_entropy(f, w, b, LABELS, **options).mean(),
        lambda f, w, b: cross_entropy(head(f, w, b), LABELS).mean(),
    )


def sd_dropout_losses(gradient, kept_classes):
    options = {"temperature": 2.0, "gradient": gradient}
    chunks = {"chunk_size": 8, "kept_classes": kept_classes}
    return (
        lambda f, w, b: linear_sd_dropout_loss(f, w, b, KEYS, **options, **chunks).mean(),
        lambda f, w, b: sd_dropout_loss(f, lambda f: head(f, w, b), KEYS, **options).mean(),
    )


LOSSES = {
    "cross_entropy": cross_entropies(0),
    "cross_entropy, kept": cross_entropies(13),
    **{gradient: sd_dropout_losses(gradient, 0) for gradient in GRADIENTS},
    "forward, kept": sd_dropout_losses("forward", 13),
}


def head(features, kernel, bias):
    logits = features @ kernel
    return logits + jnp.broadcast_to(bias, logits.shape)


def hessian_vector_product(loss, parameters, vector):
    return jax.jvp(jax.grad(loss, (0, 1, 2)), parameters, vector)[1]


def gradient_of_gradient_penalty(loss, parameters, vector):
    """Of the loss plus the squared norm of its gradient with respect to the features."""

    def penalised(*parameters):
        value, gradient = jax.value_and_grad(loss)(*parameters)
        return value + jnp.sum(gradient**2)

    return jax.value_and_grad(penalised, (0, 1, 2))(*parameters)


@pytest.mark.parametrize("derivative", [hessian_vector_product, gradient_of_gradient_penalty])
@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives_are_those_of_the_plain_loss(name, derivative):
    """So what "forward" or "reverse" stops stays constant when the gradient is differentiated."""
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        shapes = [(4, 6), (6, 21), (21,)]
        parameters, vector = (
            tuple(jnp.asarray(random.normal(size=shape)) for shape in shapes) for _ in range(2)
        )
        actual, expected = (
            jax.tree.leaves(jax.jit(partial(derivative, loss))(parameters, vector))
            for loss in LOSSES[name]
        )
    for a, e in zip(actual, expected, strict=True):
        largest = np.abs(e).max()
        assert largest > 1e-3
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-12 * max(1.0, largest))
