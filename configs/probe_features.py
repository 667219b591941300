"""A linear head, or an MLP, on features of another network. No download.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642); another task
Data      the 64 intensities of scikit-learn's digits; npz:PATH with features [N, D] for yours
Command   python train.py --config=configs/probe_features.py --config.dataset.name=npz:features.npz
Variants  :ce (cross-entropy alone), :mlp (a hidden layer before the head)
Expected  accuracy 96.4 % on the digits, in a few seconds (one seed): a first run, no evidence for the
          method
"""

from sdd_jax import config as configs
from sdd_jax.models import models

ROWS = ("sd_dropout", "ce")


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout`` or ``ce``, and ``mlp``."""
    words = configs.words(argument, (*ROWS, "mlp"), alternatives=[ROWS])
    config = configs.default()
    config.dataset.name = "digits:features"
    config.model = models.options("mlp", depth=1) if "mlp" in words else models.options("linear")
    config.sd_dropout.weight = 0.0 if "ce" in words else 0.1
    config.optimizer.learning_rate = 0.05
    config.batch_size = 64
    config.duration = "20 epochs"
    config.eval_every = "5 epochs"
    config.checkpoint_every = "5 epochs"
    return config
