"""CUB-200-2011, ResNet-18 at 224 pixels: the recipe of the SD-Dropout paper, and its methods.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642)
Data      tfds build caltech_birds2011 --file_format=array_record --data_dir=DIR
Command   python train.py --config=configs/cub200_resnet18.py --config.dataset.data_dir=DIR
Variants  :ce (cross-entropy alone); :METHOD or :METHOD,sd_dropout with cs_kd, ddgsd, byot, dml or
          clean_student; ,runlocal with any of them (width 16, 64 pixels, 3 epochs);
          --config.engine.workers=N, --config.engine.processes=true
Expected  accuracy, %: the paper's 53.8 with :ce and 66.6 with SD-Dropout; in the authors' logs (2 seeds)
          62.8 with :byot and 72.3 with :byot,sd_dropout, 61.5 with :dml and 65.7 with :dml,sd_dropout
          (not yet reproduced here)
"""

from sdd_jax.recipes import sd_dropout_fine_grained


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout``, ``ce`` or a method; and ``runlocal``."""
    return sd_dropout_fine_grained("caltech_birds2011", "resnet18", argument)
