"""Equations, one file an idea. Per-example values; the caller owns the mean.

Half precision is computed and returned in float32; float64 stays float64.
"""

from sdd_jax.losses._classification import cross_entropy, label_smoothing
from sdd_jax.losses._divergence import GRADIENTS, entropy, kl_divergence, symmetric_kl
from sdd_jax.losses._dropout_distillation import DIVERGENCES, dropout_distillation_loss
from sdd_jax.losses._sd_dropout import (
    dropped_logits,
    pairwise_symmetric_kl,
    sd_dropout_clean_student_loss,
    sd_dropout_loss,
)

__all__ = [
    "DIVERGENCES",
    "GRADIENTS",
    "cross_entropy",
    "dropout_distillation_loss",
    "dropped_logits",
    "entropy",
    "kl_divergence",
    "label_smoothing",
    "pairwise_symmetric_kl",
    "sd_dropout_clean_student_loss",
    "sd_dropout_loss",
    "symmetric_kl",
]
