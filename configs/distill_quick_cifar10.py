"""CIFAR-10, Quick: the student of configs/quick_cifar10.py.

Paper     Rota Bulo et al. 2016, Dropout Distillation (PMLR 48:99-107)
Data      tfds build cifar10 --file_format=array_record --data_dir=DIR
Command   python train.py --config=configs/distill_quick_cifar10.py --config.teacher=WORKDIR
          python eval.py --workdir=runs/distill_quick_cifar10 --checks=distillation
Variants  :short (of the teacher's :short run), --config.inputs=perturbed (or unlabelled:NAME),
          --config.model.hidden=8 (a smaller student)
Expected  test error: Standard 18.15 %, MC(100) 16.78 %, Distilled 17.15 % (the paper, 5 repetitions);
          with :short 25.9, 24.0 and 24.6 % (docs/results.md)
"""

from sdd_jax import config as configs
from sdd_jax.recipes import distilled, quick_teacher


def get_config(argument: str = ""):
    """``argument``: ``short`` or nothing."""
    short = "short" in configs.words(argument, ("short",))
    return distilled(
        quick_teacher(short=short),
        "runs/quick_cifar10-short" if short else "runs/quick_cifar10",
        last_learning_rate=0.005,
        inputs="train",
    )
