"""ImageNet, ResNet-152 at 224 pixels: the recipe of the SD-Dropout paper.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642)
Data      tfds build imagenet2012 --file_format=array_record --data_dir=DIR (its page lists the
          archives to download first); the 50,000 validation images are the test set, since the official
          test set has no labels
Command   python train.py --config=configs/imagenet_resnet152.py --config.dataset.data_dir=DIR
          --config.model.dtype=bfloat16 --config.engine.processes=true --config.engine.workers=N
Variants  :ce (cross-entropy alone), :METHOD as for CIFAR-100; ,runlocal (width 16, 64 pixels, 1 epoch),
          --config.schedule.warmup="5 epochs"
Expected  top-1 accuracy 75.5 with SD-Dropout, 74.8 with :ce (the paper's; not yet reproduced here)
"""

from sdd_jax.recipes import sd_dropout_imagenet


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout``, ``ce`` or a method; and ``runlocal``."""
    return sd_dropout_imagenet("resnet152", argument)
