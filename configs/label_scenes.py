"""Which handwritten digits a photograph shows: any number of labels for each image. No download.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642); another task
Data      scikit-learn's digits on crops of its photographs; npz:PATH with labels [N, K] for yours
Command   python train.py --config=configs/label_scenes.py
Variants  :ce (cross-entropy alone)
Expected  mAP 72.3 %, with :ce 72.3 %, in a minute on two CPU cores (one seed): a first run, no evidence
          for the method
"""

from sdd_jax.models import models
from sdd_jax.recipes import scenes


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout`` or ``ce``."""
    model = models.options("resnet18", width=16, stem="imagenet")
    return scenes("scenes:labels", model, argument, weight=0.1)
