"""CIFAR-10, Quick with dropout after every layer but the last: a teacher for Dropout Distillation.

Paper     Rota Bulo et al. 2016, Dropout Distillation (PMLR 48:99-107)
Data      tfds build cifar10 --file_format=array_record --data_dir=DIR
Command   python train.py --config=configs/quick_cifar10.py
Variants  :short (60 epochs: the same schedule in a fifth of the time)
Expected  test error 18.15 % (the paper's "Standard": dropout off at test time); 25.9 % with :short
"""

from sdd_jax import config as configs
from sdd_jax.recipes import quick_teacher


def get_config(argument: str = ""):
    """``argument``: ``short`` or nothing."""
    return quick_teacher(short="short" in configs.words(argument, ("short",)))
