"""CUB-200-2011, ResNet-18 at 224 pixels: BYOT, alone or with SD-Dropout.

Paper     Lee et al. 2022 (arXiv 2208.05642), whose recipe this is;
          BYOT: Zhang et al. 2019 (arXiv 1905.08094)
Data      tfds build caltech_birds2011 --file_format=array_record --data_dir=DIR
Command   python train.py --config=configs/cub200_byot.py:sd_dropout --config.dataset.data_dir=DIR
Variants  without :sd_dropout the method alone; ,runlocal (width 16, 64 pixels, 3 epochs)
Expected  accuracy 62.8 alone, 72.3 with SD-Dropout (the authors' logs, 2 seeds; not yet reproduced here)
"""

from functools import partial

from sdd_jax.recipes import beside_sd_dropout, sd_dropout_fine_grained


def get_config(argument: str = ""):
    """``argument``: ``sd_dropout`` or nothing, and ``runlocal``."""
    recipe = partial(sd_dropout_fine_grained, "caltech_birds2011", "resnet18")
    return beside_sd_dropout(recipe, "byot", argument)
