"""Dropout Distillation on scikit-learn's handwritten digits: teacher and student, without a download.

Paper     Rota Bulo et al. 2016, Dropout Distillation (PMLR 48:99-107); other data
Data      scikit-learn's digits, which are part of it
Command   python train.py --config=configs/distill_digits.py:teacher
          python train.py --config=configs/distill_digits.py
          python eval.py --workdir=runs/distill_digits --checks=distillation
Variants  :teacher; a student that keeps the spread of the ensemble: :two_heads, :dirichlet, :gaussian
          (python eval.py --workdir=runs/distill_digits-two_heads --checks=spread)
Expected  test error: teacher 2.2 %, its ensemble of 100 masks 3.1 %, student 2.5 % (one seed)
"""

from sdd_jax import config as configs
from sdd_jax.models import models
from sdd_jax.objectives import objectives
from sdd_jax.recipes import SPREADS, keeping_spread
from sdd_jax.training.schedules import schedules

ROLES = ("student", "teacher")


def get_config(argument: str = "student"):
    """``argument``: ``student`` or ``teacher``, or a student's ``model.spread``."""
    words = configs.words(argument, (*ROLES, *SPREADS), alternatives=[ROLES, ("teacher", *SPREADS)])
    config = configs.default()
    config.dataset.name = "digits"
    config.augment.pad = 1
    config.model = models.options("mlp", width=128, depth=2, dropout_rate=0.5)
    config.sd_dropout.weight = 0.0
    config.optimizer.learning_rate = 0.05
    config.schedule = schedules.options("step", milestones=("60 epochs",))
    config.batch_size = 64
    config.duration = "90 epochs"
    config.log_every = "22 steps"
    config.eval_every = "10 epochs"
    config.checkpoint_every = "10 epochs"
    if "teacher" not in words:
        config.teacher = "runs/distill_digits-teacher"
        config.objective = objectives.options("distill")
        config.inputs = "perturbed"
        config.schedule = schedules.options("cosine")
    return keeping_spread(config, words)
