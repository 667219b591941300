"""A bag of tokens, for texts as token ids. No download.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642); another task
Data      the pixels of scikit-learn's digits as tokens; npz:PATH with token ids [N, L] for yours, padded
          by 0, and config.model.vocabulary above the largest
Command   python train.py --config=configs/classify_tokens.py
Variants  :ce (cross-entropy alone)
Expected  accuracy 91.1 % on the digits, in a few seconds (one seed): a first run, no evidence for the
          method
"""

from sdd_jax import config as configs
from sdd_jax.models import models
from sdd_jax.training.optimizers import optimizers

ROWS = ("sd_dropout", "ce")


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout`` or ``ce``."""
    words = configs.words(argument, ROWS, alternatives=[ROWS])
    config = configs.default()
    config.dataset.name = "digits:tokens"
    config.model = models.options("bag_of_tokens", vocabulary=1089)
    config.sd_dropout.weight = 0.0 if "ce" in words else 0.1
    config.optimizer = optimizers.options("adamw", learning_rate=0.003)
    config.batch_size = 64
    config.duration = "20 epochs"
    config.eval_every = "5 epochs"
    config.checkpoint_every = "5 epochs"
    return config
