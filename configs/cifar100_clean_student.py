"""CIFAR-100, ResNet-18: the one-mask variant of SD-Dropout (the dropped posterior teaches the clean).

Paper     Lee et al. 2022 (arXiv 2208.05642), whose recipe this is; the variant is in the authors' code
Command   python train.py --config=configs/cifar100_clean_student.py --config.model.dtype=bfloat16
Variants  :runlocal (width 16, 3 epochs, a laptop)
Expected  last-epoch accuracy 76.8 +- 0.3 (the authors' logs, mean and sample standard deviation over 5
          seeds; not yet reproduced here)
"""

from functools import partial

from sdd_jax.recipes import beside_sd_dropout, sd_dropout_cifar


def get_config(argument: str = ""):
    """``argument``: ``runlocal`` or nothing."""
    recipe = partial(sd_dropout_cifar, "cifar100", "resnet18")
    return beside_sd_dropout(recipe, "clean_student", argument)
