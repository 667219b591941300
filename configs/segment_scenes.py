"""Segmentation of handwritten digits on photographs: a class for each pixel. No download.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642); another task
Data      scikit-learn's digits on crops of its photographs; npz:PATH with label maps [N, H, W] for yours
Command   python train.py --config=configs/segment_scenes.py
Variants  :ce (cross-entropy alone)
Expected  mIoU 47 % with either, in a few minutes on a CPU core: no evidence for the method, see
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
    config.dataset.name = "scenes"
    config.model = models.options("unet", width=16, features=32, stem="imagenet")
    config.sd_dropout.weight = 0.0 if "ce" in words else 0.01
    config.optimizer = optimizers.options("adamw", learning_rate=0.005)
    config.batch_size = 32
    config.duration = "15 epochs"
    config.eval_every = "5 epochs"
    config.checkpoint_every = "5 epochs"
    return config
