"""SD-Dropout on scikit-learn's handwritten digits: a first run without a download.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642); other data
Data      scikit-learn's digits, which are part of it
Command   python train.py
Variants  :ce (cross-entropy alone)
Expected  test accuracy 98.4 +- 0.4 %, with :ce 98.2 +- 0.5 % (5 seeds): a first run, no evidence for the
          method
"""

from sdd_jax import config as configs
from sdd_jax.models import models
from sdd_jax.training.schedules import schedules

ROWS = ("sd_dropout", "ce")


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout`` or ``ce``."""
    words = configs.words(argument, ROWS, alternatives=[ROWS])
    config = configs.default()
    config.dataset.name = "digits"
    config.augment.pad = 1
    config.model = models.options("mlp", width=256, depth=2)
    config.sd_dropout.weight = 0.0 if "ce" in words else 0.1
    config.optimizer.learning_rate = 0.05
    config.schedule = schedules.options("cosine")
    config.batch_size = 64
    config.duration = "60 epochs"
    config.log_every = "10 steps"
    config.eval_every = "10 epochs"
    config.checkpoint_every = "10 epochs"
    return config
