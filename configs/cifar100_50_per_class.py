"""CIFAR-100 with 50 training images per class, ResNet-18 at width 16: small enough for one core.

The paper's recipe, shrunk to compare weights and objectives without an accelerator. A tenth of the
training images, none of which is among the 50, is held out to select among these.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642)
Data      tfds build cifar100 --file_format=array_record --data_dir=DIR
Command   python train.py --config=configs/cifar100_50_per_class.py --config.sd_dropout.weight=0.1
Variants  :ce (cross-entropy alone); ,fitted with either: the ImageNet stem at width 32 and 100 epochs,
          which fit the training images
Expected  test accuracy 29.5 +- 0.1 % with :ce, about the same at 0.02 and 0.1; with :ce,fitted
          and weight decay 4e-3 30.6 +- 0.6 %, no more with SD-Dropout; at 2e-3 27.4 +- 0.3 %,
          1.5 +- 0.8 points more at weight 1 (docs/results.md)
"""

from sdd_jax import config as configs
from sdd_jax.recipes import sd_dropout_cifar

ROWS = ("sd_dropout", "ce")


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout`` or ``ce``; and ``fitted``."""
    words = configs.words(argument, (*ROWS, "fitted"), alternatives=[ROWS])
    config = sd_dropout_cifar("cifar100", "resnet18", ",".join(words - {"fitted"}))
    config.dataset.examples_per_class = 50
    config.dataset.validation = 0.1
    config.model.width = 16
    config.schedule.milestones = ("30 epochs", "45 epochs")
    config.duration = "60 epochs"
    config.eval_every = "15 epochs"
    config.checkpoint_every = "5 epochs"
    if "fitted" in words:
        config.model.stem = "imagenet"
        config.model.width = 32
        config.schedule.milestones = ("50 epochs", "75 epochs")
        config.duration = "100 epochs"
    return config
