"""Detection of handwritten digits on photographs: boxes around one to six of them. No download.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642); another task
Data      scikit-learn's digits on crops of its photographs; npz:PATH with boxes [N, M, 5] for yours
Command   python train.py --config=configs/detect_scenes.py
Variants  :ce (focal loss and boxes alone)
Expected  AP 57 % with either, in two minutes on a CPU core: no evidence for the method, see
          docs/results.md
"""

from sdd_jax import config as configs
from sdd_jax.models import models
from sdd_jax.training.optimizers import optimizers

ROWS = ("sd_dropout", "ce")


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout`` or ``ce``."""
    words = configs.words(argument, ROWS, alternatives=[ROWS])
    config = configs.default()
    config.dataset.name = "scenes:boxes"
    config.model = models.options("centernet", width=16, features=32)
    config.sd_dropout.weight = 0.0 if "ce" in words else 0.1
    config.optimizer = optimizers.options("adamw", learning_rate=0.005)
    config.batch_size = 32
    config.duration = "15 epochs"
    config.eval_every = "5 epochs"
    config.checkpoint_every = "5 epochs"
    return config
