"""CIFAR, the All-Convolutional net with dropout: a teacher for Dropout Distillation.

Paper     Rota Bulo et al. 2016, Dropout Distillation (PMLR 48:99-107)
Data      tfds build cifar10 --file_format=array_record --data_dir=DIR, or cifar100
Command   python train.py --config=configs/all_conv_cifar.py
Variants  :cifar100 (CIFAR-10 otherwise)
Expected  test error 11.20 %, with :cifar100 32.46 % (the paper's "Standard"; not yet reproduced here)
"""

from sdd_jax import config as configs
from sdd_jax.recipes import all_conv_teacher


def get_config(argument: str = ""):
    """``argument``: ``cifar100`` or nothing."""
    words = configs.words(argument, ("cifar100",))
    return all_conv_teacher("cifar100" if words else "cifar10")
