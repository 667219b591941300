"""SD-Dropout in a project of Equinox: a hundred handwritten digits, a hidden layer, optax.

python examples/digits_equinox.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import sdd_jax


class Network(eqx.Module):
    """A hidden layer and a linear head."""

    hidden: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        hidden_key, head_key = jax.random.split(key)
        self.hidden = eqx.nn.Linear(64, 512, key=hidden_key)
        self.head = eqx.nn.Linear(512, 10, key=head_key)

    def features(self, image):
        """An image ``[64]`` to features ``[512]``."""
        return jax.nn.relu(self.hidden(image))

    def __call__(self, image):
        """An image ``[64]`` to logits ``[10]``."""
        return self.head(self.features(image))


optimizer = optax.adam(1e-3)


def loss_fn(network, images, labels, key, weight):
    """Cross-entropy, and SD-Dropout with its weight."""
    features, head = jax.vmap(network.features)(images), jax.vmap(network.head)
    ce = sdd_jax.cross_entropy(head(features), labels)
    sdd = sdd_jax.sd_dropout_loss(features, head, key, rate=0.5, temperature=3.0)
    return jnp.mean(ce + weight * sdd)


@eqx.filter_jit
def step(network, state, *batch):
    """Returns the network and the optimizer's state after a step."""
    updates, state = optimizer.update(eqx.filter_grad(loss_fn)(network, *batch), state)
    return eqx.apply_updates(network, updates), state


def main():
    """Trains without and with SD-Dropout."""
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images / 16, labels, train_size=100, stratify=labels, random_state=0
    )
    for weight in (0.0, 1.0):
        key = jax.random.key(0)
        network = Network(key)
        state = optimizer.init(eqx.filter(network, eqx.is_array))
        for i in range(200):
            batch = train_images, train_labels, jax.random.fold_in(key, i), weight
            network, state = step(network, state, *batch)
        predictions = jax.vmap(network)(test_images).argmax(axis=-1)
        print(
            f"SD-Dropout, weight {weight:g}: test accuracy {(predictions == test_labels).mean():.1%}"
        )


if __name__ == "__main__":
    main()
