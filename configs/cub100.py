"""CUB-100 at 48 pixels, ResNet-18 at width 32: fine-grained classification, small enough for one core.

The paper's recipe, shrunk: 100 classes of CUB-200-2011 with about 30 training images each, 100 epochs. A
tenth of the training images is held out to select among values.

Paper     Lee et al. 2022, Self-Knowledge Distillation via Dropout (arXiv 2208.05642)
Data      DIR/cub100_48.npz: 2,999 training and 2,903 test images, resized to 48 x 48 pixels, as for
          "npz:PATH"
Command   python train.py --config=configs/cub100.py --config.dataset.data_dir=DIR
Variants  :ce (cross-entropy alone); :METHOD or :METHOD,sd_dropout with cs_kd, ddgsd, byot, dml or
          clean_student
          --config.optimizer.weight_decay=2e-3 (in place of the paper's 1e-4)
Expected  accuracy 54.7 %, with :ce 52.3 %, with :ce and weight decay 2e-3 56.2 % (one seed each)
"""

from sdd_jax.recipes import sd_dropout_cifar


def get_config(argument: str = "sd_dropout"):
    """``argument``: ``sd_dropout``, ``ce`` or a method."""
    config = sd_dropout_cifar("npz:cub100_48.npz", "resnet18", argument)
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    config.dataset.validation = 0.1
    config.augment.pad = 6
    config.model.stem = "imagenet"
    config.model.width = 32
    config.batch_size = 32
    config.schedule.milestones = ("50 epochs", "75 epochs")
    config.duration = "100 epochs"
    config.eval_every = "25 epochs"
    config.checkpoint_every = "5 epochs"
    return config
