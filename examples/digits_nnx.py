"""SD-Dropout in a project of Flax nnx: a hundred handwritten digits, a hidden layer, optax.

python examples/digits_nnx.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import sdd_jax


class Network(nnx.Module):
    """A hidden layer and a linear head."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 512, rngs=rngs)
        self.head = nnx.Linear(512, 10, rngs=rngs)

    def features(self, images):
        """Images ``[B, 64]`` to features ``[B, 512]``."""
        return nnx.relu(self.hidden(images))

    def __call__(self, images):
        """Images ``[B, 64]`` to logits ``[B, 10]``."""
        return self.head(self.features(images))


def loss_fn(network, images, labels, key, weight):
    """Cross-entropy, and SD-Dropout with its weight."""
    features = network.features(images)
    ce = sdd_jax.cross_entropy(network.head(features), labels)
    sdd = sdd_jax.sd_dropout_loss(features, network.head, key, rate=0.5, temperature=3.0)
    return jnp.mean(ce + weight * sdd)


@nnx.jit
def step(network, optimizer, *batch):
    """Updates the network and the optimizer."""
    optimizer.update(network, nnx.grad(loss_fn)(network, *batch))


def main():
    """Trains without and with SD-Dropout."""
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images / 16, labels, train_size=100, stratify=labels, random_state=0
    )
    for weight in (0.0, 1.0):
        key = jax.random.key(0)
        network = Network(nnx.Rngs(0))
        optimizer = nnx.Optimizer(network, optax.adam(1e-3), wrt=nnx.Param)
        for i in range(200):
            step(network, optimizer, train_images, train_labels, jax.random.fold_in(key, i), weight)
        predictions = network(test_images).argmax(axis=-1)
        print(
            f"SD-Dropout, weight {weight:g}: test accuracy {(predictions == test_labels).mean():.1%}"
        )


if __name__ == "__main__":
    main()
