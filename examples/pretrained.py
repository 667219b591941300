"""SD-Dropout in fine-tuning a pretrained ResNet-18: ten handwritten images of each digit from 5 to 9.

    python examples/pretrained.py --backbone=resnet18.safetensors
    python examples/pretrained.py

The file is a state dict of torchvision's or timm's ResNet-18, written once by
``safetensors.torch.save_file(model.state_dict(), PATH)``. Without one, the program trains a narrow
ResNet-18 of its own on the digits from 0 to 4 and starts from that.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import sdd_jax
from sdd_jax.models import build
from sdd_jax.models.pretrained import start_from

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])  # of ImageNet

optimizer = optax.adam(1e-3)


def loss_fn(params, network, variables, images, labels, key, weight):
    """Cross-entropy and SD-Dropout with its weight, and the statistics of batch norm."""
    variables = variables | {"params": params}
    features, statistics = network.apply(
        variables, images, train=True, mutable=["batch_stats"], method="features"
    )
    head = functools.partial(network.apply, variables, method="head")
    ce = sdd_jax.cross_entropy(head(features), labels)
    sdd = sdd_jax.sd_dropout_loss(features, head, key, rate=0.5, temperature=3.0)
    return jnp.mean(ce + weight * sdd), statistics


@functools.partial(jax.jit, static_argnames="network")
def step(network, variables, state, *batch):
    """Returns the variables and the optimizer's state after a step."""
    params = variables["params"]
    gradients, statistics = jax.grad(loss_fn, has_aux=True)(params, network, variables, *batch)
    updates, state = optimizer.update(gradients, state)
    return {"params": optax.apply_updates(params, updates), **statistics}, state


def train(network, variables, images, labels, weight, steps):
    """Returns the variables after steps on all images."""
    state = optimizer.init(variables["params"])
    for i in range(steps):
        batch = images, labels, jax.random.fold_in(jax.random.key(0), i), weight
        variables, state = step(network, variables, state, *batch)
    return variables


def main():
    """Fine-tunes without and with SD-Dropout."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--backbone", metavar="PATH", help="safetensors file in torchvision's naming"
    )
    backbone = parser.parse_args().backbone

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).repeat(4, axis=1).repeat(4, axis=2) / 16
    images = ((images - MEAN) / STD).astype(np.float32)  # [N, 32, 32, 3]
    old = labels < 5
    train_images, test_images, train_labels, test_labels = train_test_split(
        images[~old], labels[~old] - 5, train_size=50, stratify=labels[~old], random_state=0
    )

    width = 64 if backbone else 16
    network = build({"name": "resnet18", "stem": "imagenet", "width": width}, num_classes=5)
    new = jax.jit(network.init)(jax.random.key(0), images[:1])
    if backbone:
        start = start_from(new, backbone)
    else:
        start = train(network, new, images[old][:50], labels[old][:50], 0.0, steps=50)
        start["params"]["classifier"] = new["params"]["classifier"]
    predict = jax.jit(network.apply)
    for weight in (0.0, 0.1):
        variables = train(network, start, train_images, train_labels, weight, steps=50)
        predictions = predict(variables, test_images).argmax(axis=-1)
        print(
            f"SD-Dropout, weight {weight:g}: test accuracy {(predictions == test_labels).mean():.1%}"
        )


if __name__ == "__main__":
    main()
