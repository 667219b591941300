"""CIFAR-10, ResNet-18 (3x3 stem, no pooling): the recipe of the SD-Dropout paper.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642)
Data      tfds build cifar10 --file_format=array_record --data_dir=DIR
Command   python train.py --config=configs/cifar10_resnet18.py --config.model.dtype=bfloat16
Variants  :ce (cross-entropy alone), :METHOD as for CIFAR-100; ,runlocal (width 16, 3 epochs, a laptop)
Expected  not known: the authors published no figure for CIFAR-10
"""

from sdd_jax.recipes import sd_dropout_cifar


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout``, ``ce`` or a method; and ``runlocal``."""
    return sd_dropout_cifar("cifar10", "resnet18", argument)
