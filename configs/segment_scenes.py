"""Segmentation of handwritten digits on photographs: a class for each pixel. No download.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642); another task
Data      scikit-learn's digits on crops of its photographs; npz:PATH with label maps [N, H, W] for yours
Command   python train.py --config=configs/segment_scenes.py
Variants  :ce (cross-entropy alone)
Expected  mIoU 47 % with either, in a few minutes on a CPU core: no evidence for the method, see
          docs/results.md
"""

from sdd_jax.models import models
from sdd_jax.recipes import scenes


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout`` or ``ce``."""
    model = models.options("unet", width=16, features=32, stem="imagenet")
    return scenes("scenes", model, argument, weight=0.01)
