"""COCO 2017, CenterNet with a ResNet-50 at 512 pixels: boxes around objects of 80 classes.

Paper     Zhou et al. 2019, Objects as Points (arXiv 1904.07850), for the detector and its schedule; the
          setup of Lee et al. 2022 on COCO is not published
Data      DIR/coco with train2017/, val2017/ and annotations/, as cocodataset.org distributes them; the
          5,000 images of val2017 are the test set
Command   python train.py --config=configs/coco_resnet50.py --config.dataset.data_dir=DIR
          --config.model.init=resnet50.safetensors --config.model.dtype=bfloat16
          --config.engine.processes=true --config.engine.workers=N
Variants  :ce (focal loss and boxes alone); :runlocal (ResNet-18 of width 16, 128 pixels, 1 epoch);
          --config.dataset.name=coco:PATH:train=NAME:val=NAME for a folder of your own
Expected  not yet trained here; in bfloat16 a chip of TPU v5e holds 16 images in 6.3 GiB, by the compiler
"""

from sdd_jax import config as configs
from sdd_jax.data.engines import engines
from sdd_jax.models import models
from sdd_jax.training.optimizers import optimizers
from sdd_jax.training.schedules import schedules

WORDS = ("sd_dropout", "ce", "runlocal")


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout`` or ``ce``; and ``runlocal``."""
    words = configs.words(argument, WORDS, alternatives=[("sd_dropout", "ce")])
    local = "runlocal" in words
    config = configs.default()
    config.dataset.name = "coco:coco"
    config.dataset.image_size = 128 if local else 512
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    config.augment.flip = True
    config.model = models.options(
        "centernet",
        encoder="resnet18" if local else "resnet50",
        width=16 if local else 64,
    )
    config.sd_dropout.weight = 0.0 if "ce" in words else 0.1
    config.engine = engines.options("streamed")
    config.optimizer = optimizers.options("adamw", learning_rate=5e-4, weight_decay=0.0)
    config.schedule = schedules.options("step", milestones=("90 epochs", "120 epochs"))
    config.batch_size = 32 if local else 128
    config.duration = "1 epochs" if local else "140 epochs"
    config.eval_every = config.checkpoint_every = "1 epochs" if local else "5 epochs"
    config.eval.batch_size = 32 if local else 128
    return config
