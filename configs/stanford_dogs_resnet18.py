"""Stanford Dogs, ResNet-18 at 224 pixels: the recipe of the SD-Dropout paper.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642)
Data      tfds build stanford_dogs --file_format=array_record --data_dir=DIR
Command   python train.py --config=configs/stanford_dogs_resnet18.py --config.dataset.data_dir=DIR
Variants  :ce (cross-entropy alone), :METHOD as for CIFAR-100; ,runlocal (width 16, 64 pixels, 3
          epochs), --config.engine.workers=N, --config.engine.processes=true
Expected  higher accuracy than :ce, as in the paper (its figures are not known here)
"""

from sdd_jax.recipes import sd_dropout_fine_grained


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout``, ``ce`` or a method; and ``runlocal``."""
    return sd_dropout_fine_grained("stanford_dogs", "resnet18", argument)
