"""CIFAR-100, ResNet-18: BYOT, alone or with SD-Dropout.

Paper     Lee et al. 2022 (arXiv 2208.05642), whose recipe this is;
          BYOT: Zhang et al. 2019 (arXiv 1905.08094)
Command   python train.py --config=configs/cifar100_byot.py:sd_dropout --config.model.dtype=bfloat16
Variants  without :sd_dropout the method alone; ,runlocal (width 16, 3 epochs, a laptop)
Expected  last-epoch accuracy 77.0 +- 0.1 alone, 77.4 +- 0.2 with SD-Dropout
          (the authors' logs, mean and sample standard deviation over 5 seeds; not yet reproduced here)
"""

from functools import partial

from sdd_jax.recipes import beside_sd_dropout, sd_dropout_cifar


def get_config(argument: str = ""):
    """``argument``: ``sd_dropout`` or nothing, and ``runlocal``."""
    recipe = partial(sd_dropout_cifar, "cifar100", "resnet18")
    return beside_sd_dropout(recipe, "byot", argument)
