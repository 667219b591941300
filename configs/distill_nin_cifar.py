"""CIFAR, Network in Network: the student of configs/nin_cifar.py.

Paper     Rota Bulo et al. 2016, Dropout Distillation (PMLR 48:99-107)
Data      tfds build cifar10 --file_format=array_record --data_dir=DIR, or cifar100
Command   python train.py --config=configs/distill_nin_cifar.py --config.teacher=WORKDIR
          python eval.py --workdir=runs/distill_nin_cifar --checks=distillation
Variants  :cifar100 (of the teacher's :cifar100 run), --config.inputs=perturbed
Expected  test error: Standard 11.16 %, MC(100) 11.04 %, Distilled 11.14 %; with :cifar100
          35.28, 35.05 and 35.20 % (the paper, 5 repetitions, inputs perturbed; not yet reproduced here)
"""

from sdd_jax import config as configs
from sdd_jax.recipes import distilled, nin_teacher


def get_config(argument: str = ""):
    """``argument``: ``cifar100`` or nothing."""
    words = configs.words(argument, ("cifar100",))
    return distilled(
        nin_teacher("cifar100" if words else "cifar10"),
        "runs/nin_cifar-cifar100" if words else "runs/nin_cifar",
        last_learning_rate=0.0005,
        inputs="train",
    )
