"""CIFAR, Network in Network with dropout: a teacher for Dropout Distillation.

Paper     Rota Bulo et al. 2016, Dropout Distillation (PMLR 48:99-107)
Data      tfds build cifar10 --file_format=array_record --data_dir=DIR, or cifar100
Command   python train.py --config=configs/nin_cifar.py
Variants  :cifar100 (CIFAR-10 otherwise)
Expected  test error 11.16 %, with :cifar100 35.28 % (the paper's "Standard"; not yet reproduced here)
"""

from sdd_jax import config as configs
from sdd_jax.recipes import nin_teacher


def get_config(argument: str = ""):
    """``argument``: ``cifar100`` or nothing."""
    words = configs.words(argument, ("cifar100",))
    return nin_teacher("cifar100" if words else "cifar10")
