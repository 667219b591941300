"""MNIST, LeNet with dropout: a teacher for Dropout Distillation.

Paper     Rota Bulo et al. 2016, Dropout Distillation (PMLR 48:99-107)
Data      tfds build mnist --file_format=array_record --data_dir=DIR
Command   python train.py --config=configs/lenet_mnist.py
Variants  :all (LeNetAll: dropout after every convolution and hidden layer)
Expected  test error 0.67 %, with :all 0.51 % (the paper's "Standard"; not yet reproduced here)
"""

from sdd_jax import config as configs
from sdd_jax.recipes import lenet_teacher


def get_config(argument: str = ""):
    """``argument``: ``all`` or nothing."""
    return lenet_teacher(all_layers="all" in configs.words(argument, ("all",)))
