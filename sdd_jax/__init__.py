"""Self-knowledge distillation through dropout, in JAX.

Importing this package loads only jax and optax, so that any project can use its losses. The program
around them (models, data, training, evaluation) is imported by name.
"""

from sdd_jax.dropout import dropout, dropout_pair, dropout_samples
from sdd_jax.losses import (
    byot_feature_loss,
    byot_loss,
    cross_entropy,
    cs_kd_loss,
    ddgsd_feature_loss,
    ddgsd_loss,
    dlb_loss,
    dml_loss,
    dropout_distillation_loss,
    dropped_logits,
    generalised_cross_entropy,
    kl_divergence,
    label_smoothing,
    linear_cross_entropy,
    linear_sd_dropout_loss,
    pairwise_symmetric_kl,
    ps_kd_loss,
    r_drop_loss,
    sd_dropout_clean_student_loss,
    sd_dropout_loss,
    sd_dropout_loss_from_logits,
    symmetric_kl,
    tf_kd_loss,
)
from sdd_jax.mc_dropout import DropoutEnsemble, mc_dropout

__version__ = "0.2.0"

__all__ = [
    "DropoutEnsemble",
    "byot_feature_loss",
    "byot_loss",
    "cross_entropy",
    "cs_kd_loss",
    "ddgsd_feature_loss",
    "ddgsd_loss",
    "dlb_loss",
    "dml_loss",
    "dropout",
    "dropout_distillation_loss",
    "dropout_pair",
    "dropout_samples",
    "dropped_logits",
    "generalised_cross_entropy",
    "kl_divergence",
    "label_smoothing",
    "linear_cross_entropy",
    "linear_sd_dropout_loss",
    "mc_dropout",
    "pairwise_symmetric_kl",
    "ps_kd_loss",
    "r_drop_loss",
    "sd_dropout_clean_student_loss",
    "sd_dropout_loss",
    "sd_dropout_loss_from_logits",
    "symmetric_kl",
    "tf_kd_loss",
]
