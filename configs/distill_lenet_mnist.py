"""MNIST, LeNet: the student of configs/lenet_mnist.py.

Paper     Rota Bulo et al. 2016, Dropout Distillation (PMLR 48:99-107)
Data      tfds build mnist --file_format=array_record --data_dir=DIR
Command   python train.py --config=configs/distill_lenet_mnist.py --config.teacher=WORKDIR
          python eval.py --workdir=runs/distill_lenet_mnist --checks=distillation
Variants  :all (of the teacher's :all run), --config.inputs=train; a student that keeps the spread of the
          ensemble: :two_heads, :dirichlet, :gaussian
Expected  test error: Standard 0.67 %, MC(100) 0.67 %, Distilled 0.67 %; with :all 0.51, 0.49 and 0.49 %
          (the paper, 5 repetitions; not yet reproduced here)
"""

from sdd_jax import config as configs
from sdd_jax.recipes import SPREADS, distilled, keeping_spread, lenet_teacher


def get_config(argument: str = ""):
    """``argument``: ``all`` or nothing, and a student's ``model.spread``."""
    words = configs.words(argument, ("all", *SPREADS), alternatives=[SPREADS])
    all_layers = "all" in words
    config = distilled(
        lenet_teacher(all_layers=all_layers),
        "runs/lenet_mnist-all" if all_layers else "runs/lenet_mnist",
        last_learning_rate=1e-4,
        inputs="perturbed",
    )
    return keeping_spread(config, words)
