"""CUB-200-2011, ResNet-18 at 224 pixels: the recipe of the SD-Dropout paper.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642)
Data      tfds build caltech_birds2011 --file_format=array_record --data_dir=DIR
Command   python train.py --config=configs/cub200_resnet18.py --config.dataset.data_dir=DIR
Variants  :ce (cross-entropy alone), :ce,runlocal or :sd_dropout,runlocal (width 16, 64 pixels, 3
          epochs), --config.engine.workers=N, --config.engine.processes=true
Expected  accuracy 66.6 with SD-Dropout, 53.8 with :ce (the paper's; not yet reproduced here)
"""

from sdd_jax.recipes import sd_dropout_fine_grained


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout`` or ``ce``, and ``runlocal``."""
    return sd_dropout_fine_grained("caltech_birds2011", "resnet18", argument)
