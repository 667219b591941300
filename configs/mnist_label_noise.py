"""MNIST with wrong training labels: an MLP that fits all of its 10,000 labels, 40 % of which are wrong.

The images and labels held out, and the test set, are clean.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642); other data
Data      tfds build mnist --file_format=array_record --data_dir=DIR
Command   python train.py --config=configs/mnist_label_noise.py --config.dataset.data_dir=DIR
          --config.sd_dropout.weight=0.5 --config.dataset.label_noise=0.2
Variants  :ce (cross-entropy alone)
Expected  with 40 % wrong labels, last epoch: weight 2 83.9 %, :ce with weight decay 1e-3 75.6 %
          (python -m benchmarks.label_noise; test accuracy, mean of three seeds)
"""

from sdd_jax import config as configs
from sdd_jax.models import models

ROWS = ("sd_dropout", "ce")


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout`` or ``ce``."""
    words = configs.words(argument, ROWS, alternatives=[ROWS])
    config = configs.default()
    config.dataset.name = "mnist"
    config.dataset.examples_per_class = 1000
    config.dataset.validation = 0.1
    config.dataset.label_noise = 0.4
    config.model = models.options("mlp", width=512, depth=2)
    config.sd_dropout.weight = 0.0 if "ce" in words else 0.5
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 0.0
    config.duration = "40 epochs"
    config.log_every = "10 epochs"
    config.eval_every = "2 epochs"
    config.checkpoint_every = "40 epochs"
    return config
