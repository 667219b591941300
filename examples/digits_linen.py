"""SD-Dropout in a project of Flax linen: a hundred handwritten digits, a hidden layer, optax.

python examples/digits_linen.py
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import sdd_jax


class Network(nn.Module):
    """A hidden layer and a linear head."""

    def setup(self):
        """Creates the layers."""
        self.hidden = nn.Dense(512)
        self.classifier = nn.Dense(10)

    def features(self, images):
        """Images ``[B, 64]`` to features ``[B, 512]``."""
        return nn.relu(self.hidden(images))

    def head(self, features):
        """Features ``[B, 512]`` to logits ``[B, 10]``."""
        return self.classifier(features)

    def __call__(self, images):
        """Images ``[B, 64]`` to logits ``[B, 10]``."""
        return self.head(self.features(images))


network, optimizer = Network(), optax.adam(1e-3)


def loss_fn(params, images, labels, key, weight):
    """Cross-entropy, and SD-Dropout with its weight."""
    features = network.apply(params, images, method="features")
    head = functools.partial(network.apply, params, method="head")
    ce = sdd_jax.cross_entropy(head(features), labels)
    sdd = sdd_jax.sd_dropout_loss(features, head, key, rate=0.5, temperature=3.0)
    return jnp.mean(ce + weight * sdd)


@jax.jit
def step(params, state, *batch):
    """Returns the parameters and the optimizer's state after a step."""
    updates, state = optimizer.update(jax.grad(loss_fn)(params, *batch), state)
    return optax.apply_updates(params, updates), state


def main():
    """Trains without and with SD-Dropout."""
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images / 16, labels, train_size=100, stratify=labels, random_state=0
    )
    for weight in (0.0, 1.0):
        key = jax.random.key(0)
        params = network.init(key, train_images)
        state = optimizer.init(params)
        for i in range(200):
            batch = train_images, train_labels, jax.random.fold_in(key, i), weight
            params, state = step(params, state, *batch)
        predictions = network.apply(params, test_images).argmax(axis=-1)
        print(
            f"SD-Dropout, weight {weight:g}: test accuracy {(predictions == test_labels).mean():.1%}"
        )


if __name__ == "__main__":
    main()
