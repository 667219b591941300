"""Writes attacks.json: the results of torchattacks' APGD and Square on a small network.

torchattacks' classes are the authors' code of AutoAttack. Not run by the tests. To repeat it, in an
environment of its own::

    pip install torch torchattacks==3.5.1 && python tests/evaluation/peers/attacks.py
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

EPSILON = 0.015
STEPS = (4, 100)
SEED = 10  # with it, each rule of the step size changes a result
QUERIES, SEEDS = 200, 5  # of Square


def inputs():
    """Images in [0, 1], noise for the last eight, a network of two layers, and its predictions."""
    rng = np.random.default_rng(SEED)
    images = rng.random((56, 4, 4, 2)).round(3)
    kernels = [rng.standard_normal(shape) / np.sqrt(shape[0]) for shape in ((32, 16), (16, 4))]
    noise = rng.uniform(-1, 1, (8, 4, 4, 2))
    noise = (noise / np.abs(noise).max(axis=(1, 2, 3), keepdims=True)).round(3)
    arrays = {
        "images": images,
        "noise": noise,
        "first": (8 * kernels[0]).round(3),
        "second": (2 * kernels[1]).round(3),
    }
    labels = logits(images.reshape(56, -1), arrays["first"], arrays["second"]).argmax(-1)
    return arrays | {"labels": labels}


def logits(pixels, first, second):
    """The network: ``[N, 32]`` to ``[N, 4]``."""
    return np.sin(pixels @ first) @ second


def results(images, noise, first, second, labels):
    """Attacked images and largest losses of APGD from ``noise``; robust accuracies of Square."""
    import torch
    import torchattacks

    torch.set_default_dtype(
        torch.float64
    )  # otherwise their step sizes and loss histories are float32
    first, second = torch.tensor(first), torch.tensor(second)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))  # tells torchattacks the device

        def forward(self, x):  # [N, C, H, W]
            return torch.sin(x.permute(0, 2, 3, 1).flatten(1) @ first) @ second

    network = Network().eval()
    x, y = torch.tensor(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)
    noise, rand, apgd = torch.tensor(noise).permute(0, 3, 1, 2), torch.rand, {}
    for loss in ("ce", "dlr"):
        for steps in STEPS:
            attack = torchattacks.APGD(network, eps=EPSILON, steps=steps, loss=loss)
            torch.rand = lambda shape: (noise + 1) / 2
            best, is_robust, losses, fooling = attack.attack_single_run(x[-8:], y[-8:])
            torch.rand = rand
            attacked = torch.where(is_robust[:, None, None, None], best, fooling)
            apgd[f"{loss}/{steps}"] = {
                "attacked": rounded(attacked.permute(0, 2, 3, 1)),
                "largest_loss": rounded(losses),
                "robust": is_robust.tolist(),
            }

    class Square(torchattacks.Square):
        def random_int(self, low=0, high=1, shape=(1,)):
            return torch.randint(
                low, high + 1, shape
            )  # the paper's range; theirs leaves out the end

    square = []
    for seed in range(SEEDS):
        attack = Square(network, eps=EPSILON, n_queries=QUERIES, seed=seed)
        attacked = attack.perturb(x, y)
        square.append((network(attacked).argmax(1) == y).double().mean().item())
    return {"apgd": apgd, "square": square}


def rounded(tensor):
    """Nested lists of six digits."""
    return np.vectorize(lambda value: float(f"{value:.6g}"))(tensor.detach().numpy()).tolist()


def main():
    """Writes the file beside this one."""
    data = inputs()
    record = {
        "versions": {name: version(name) for name in ("torchattacks", "torch")}
        | {"python": sys.version.split()[0]},
        "options": {
            "epsilon": EPSILON,
            "steps": STEPS,
            "queries": QUERIES,
        },
        "inputs": {name: array.tolist() for name, array in data.items()},
        **results(**data),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
