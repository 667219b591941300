"""CIFAR-100, ResNet-18: CS-KD, alone or with SD-Dropout.

Paper     Lee et al. 2022 (arXiv 2208.05642), whose recipe this is;
          CS-KD: Yun et al. 2020 (arXiv 2003.13964)
Command   python train.py --config=configs/cifar100_cs_kd.py:sd_dropout --config.model.dtype=bfloat16
Variants  without :sd_dropout the method alone; ,runlocal (width 16, 3 epochs, a laptop)
Expected  last-epoch accuracy 77.3 +- 0.2 alone, 77.2 +- 0.4 with SD-Dropout
          (the authors' logs, mean and sample standard deviation over 5 seeds; not yet reproduced here)
"""

from functools import partial

from sdd_jax.recipes import beside_sd_dropout, sd_dropout_cifar


def get_config(argument: str = ""):
    """``argument``: ``sd_dropout`` or nothing, and ``runlocal``."""
    recipe = partial(sd_dropout_cifar, "cifar100", "resnet18")
    return beside_sd_dropout(recipe, "cs_kd", argument)
