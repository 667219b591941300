"""CIFAR, the All-Convolutional net: the student of configs/all_conv_cifar.py.

Paper     Rota Bulo et al. 2016, Dropout Distillation (PMLR 48:99-107)
Data      tfds build cifar10 --file_format=array_record --data_dir=DIR, or cifar100
Command   python train.py --config=configs/distill_all_conv_cifar.py --config.teacher=WORKDIR
          python eval.py --workdir=runs/distill_all_conv_cifar --checks=distillation
Variants  :cifar100 (of the teacher's :cifar100 run), --config.inputs=perturbed
Expected  test error: Standard 11.20 %, MC(100) 10.60 %, Distilled 10.59 %; with :cifar100
          32.46, 30.99 and 31.88 % (the paper, 5 repetitions; not yet reproduced here)
"""

from sdd_jax import config as configs
from sdd_jax.recipes import all_conv_teacher, distilled


def get_config(argument: str = ""):
    """``argument``: ``cifar100`` or nothing."""
    words = configs.words(argument, ("cifar100",))
    return distilled(
        all_conv_teacher("cifar100" if words else "cifar10"),
        "runs/all_conv_cifar-cifar100" if words else "runs/all_conv_cifar",
        last_learning_rate=5e-05,
        inputs="train",
    )
