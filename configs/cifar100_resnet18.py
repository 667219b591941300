"""CIFAR-100, ResNet-18 (3x3 stem, no pooling): the recipe of the SD-Dropout paper, and its methods.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642)
Data      tfds build cifar100 --file_format=array_record --data_dir=DIR
Command   python train.py --config=configs/cifar100_resnet18.py --config.model.dtype=bfloat16
Variants  :ce (cross-entropy alone); :METHOD or :METHOD,sd_dropout with cs_kd, ddgsd, byot, dml or
          clean_student; ,runlocal with any of them (width 16, 3 epochs, a laptop)
Expected  accuracy 76.8 % with SD-Dropout, 74.8 % with :ce (not yet reproduced here); all methods, last
          epoch, in the authors' logs (mean and sample standard deviation over 5 seeds, 2 for dml):

                          alone          with SD-Dropout
          :ce             74.8 +- 0.3    76.8 +- 0.3
          :clean_student  76.8 +- 0.3
          :cs_kd          77.3 +- 0.2    77.2 +- 0.4
          :ddgsd          76.7 +- 0.5    77.2 +- 0.1
          :byot           77.0 +- 0.1    77.4 +- 0.2
          :dml            78.9           78.8
"""

from sdd_jax.recipes import sd_dropout_cifar


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout``, ``ce`` or a method; and ``runlocal``."""
    return sd_dropout_cifar("cifar100", "resnet18", argument)
