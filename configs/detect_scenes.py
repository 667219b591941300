"""Detection of handwritten digits on photographs: boxes around one to six of them. No download.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642); another task
Data      scikit-learn's digits on crops of its photographs; npz:PATH with boxes [N, M, 5] for yours
Command   python train.py --config=configs/detect_scenes.py
Variants  :ce (focal loss and boxes alone)
Expected  AP 57 % with either, in two minutes on a CPU core: no evidence for the method, see
          docs/results.md
"""

from sdd_jax.models import models
from sdd_jax.recipes import scenes


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout`` or ``ce``."""
    model = models.options("centernet", width=16, features=32)
    return scenes("scenes:boxes", model, argument, weight=0.1)
