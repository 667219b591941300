"""Self-knowledge distillation through dropout, in JAX.

Importing this package loads only jax and optax, so that any project can use its losses. The program
around them (models, data, training, evaluation) is imported by name, or on first use of `load`,
`TrainedRun`, `train_and_evaluate` and `evaluate_workdir`; it needs the extra ``train``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sdd_jax.dropout import dropout, dropout_pair, dropout_samples
from sdd_jax.losses import (
    byot_feature_loss,
    byot_loss,
    cross_entropy,
    cs_kd_loss,
    ddgsd_feature_loss,
    ddgsd_loss,
    dirichlet_nll_loss,
    dirichlet_proxy_loss,
    dlb_loss,
    dml_loss,
    dropout_distillation_loss,
    dropped_logits,
    generalised_cross_entropy,
    kl_divergence,
    label_smoothing,
    linear_cross_entropy,
    linear_sd_dropout_loss,
    logit_gaussian_loss,
    mutual_information_loss,
    pairwise_symmetric_kl,
    ps_kd_loss,
    r_drop_loss,
    sd_dropout_clean_student_loss,
    sd_dropout_loss,
    sd_dropout_loss_from_logits,
    squared_error,
    sum_and_count,
    symmetric_bernoulli_kl,
    symmetric_kl,
    tf_kd_loss,
)
from sdd_jax.mc_dropout import DropoutEnsemble, mc_dropout
from sdd_jax.spread import (
    dirichlet_prediction,
    logit_gaussian_prediction,
    two_head_prediction,
)

if TYPE_CHECKING:
    from sdd_jax.evaluate import evaluate_workdir
    from sdd_jax.train import train_and_evaluate
    from sdd_jax.trained_run import TrainedRun, load

__version__ = "0.2.0"

__all__ = [
    "DropoutEnsemble",
    "TrainedRun",
    "byot_feature_loss",
    "byot_loss",
    "cross_entropy",
    "cs_kd_loss",
    "ddgsd_feature_loss",
    "ddgsd_loss",
    "dirichlet_nll_loss",
    "dirichlet_prediction",
    "dirichlet_proxy_loss",
    "dlb_loss",
    "dml_loss",
    "dropout",
    "dropout_distillation_loss",
    "dropout_pair",
    "dropout_samples",
    "dropped_logits",
    "evaluate_workdir",
    "generalised_cross_entropy",
    "kl_divergence",
    "label_smoothing",
    "linear_cross_entropy",
    "linear_sd_dropout_loss",
    "load",
    "logit_gaussian_loss",
    "logit_gaussian_prediction",
    "mc_dropout",
    "mutual_information_loss",
    "pairwise_symmetric_kl",
    "ps_kd_loss",
    "r_drop_loss",
    "sd_dropout_clean_student_loss",
    "sd_dropout_loss",
    "sd_dropout_loss_from_logits",
    "squared_error",
    "sum_and_count",
    "symmetric_bernoulli_kl",
    "symmetric_kl",
    "tf_kd_loss",
    "train_and_evaluate",
    "two_head_prediction",
]

_LAZY = {  # `sdd_jax.train` and `sdd_jax.evaluate` are modules, so these two have longer names
    "TrainedRun": "sdd_jax.trained_run",
    "evaluate_workdir": "sdd_jax.evaluate",
    "load": "sdd_jax.trained_run",
    "train_and_evaluate": "sdd_jax.train",
}


def __getattr__(name: str) -> Any:
    """Imports a name of the program on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        from sdd_jax.extras import pip_command

        missing = str(error.name).partition(".")[0]
        raise ImportError(f"sdd_jax.{name} needs {missing}; {pip_command('train')}") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
