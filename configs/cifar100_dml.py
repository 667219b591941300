"""CIFAR-100, ResNet-18: DML, alone or with SD-Dropout.

Paper     Lee et al. 2022 (arXiv 2208.05642), whose recipe this is;
          DML: Zhang et al. 2018 (arXiv 1706.00384)
Command   python train.py --config=configs/cifar100_dml.py:sd_dropout --config.model.dtype=bfloat16
Variants  without :sd_dropout the method alone; ,runlocal (width 16, 3 epochs, a laptop)
Expected  last-epoch accuracy 78.9 alone, 78.8 with SD-Dropout
          (the authors' logs, 2 seeds; not yet reproduced here)
"""

from functools import partial

from sdd_jax.recipes import beside_sd_dropout, sd_dropout_cifar


def get_config(argument: str = ""):
    """``argument``: ``sd_dropout`` or nothing, and ``runlocal``."""
    recipe = partial(sd_dropout_cifar, "cifar100", "resnet18")
    return beside_sd_dropout(recipe, "dml", argument)
