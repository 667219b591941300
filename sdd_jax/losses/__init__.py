"""Losses, one equation each, grouped into a file per idea.

They return one value per example, or per location of an example; the caller takes the mean. Half
precision is computed and returned in float32; float64 stays float64.
"""

from sdd_jax.losses._arguments import GRADIENTS
from sdd_jax.losses._classification import (
    cross_entropy,
    generalised_cross_entropy,
    label_smoothing,
)
from sdd_jax.losses._dirichlet import dirichlet_nll_loss, dirichlet_proxy_loss
from sdd_jax.losses._divergence import (
    entropy,
    kl_divergence,
    pairwise_symmetric_kl,
    symmetric_kl,
)
from sdd_jax.losses._dropout_distillation import DIVERGENCES, dropout_distillation_loss
from sdd_jax.losses._elementwise import squared_error, symmetric_bernoulli_kl
from sdd_jax.losses._large_vocabulary import linear_cross_entropy, linear_sd_dropout_loss
from sdd_jax.losses._logit_gaussian import logit_gaussian_loss
from sdd_jax.losses._mutual_information import mutual_information_loss
from sdd_jax.losses._reduction import sum_and_count
from sdd_jax.losses._sd_dropout import (
    dropped_logits,
    head_of_each,
    sd_dropout_clean_student_loss,
    sd_dropout_loss,
    sd_dropout_loss_from_logits,
)
from sdd_jax.losses._self_distillation import (
    byot_feature_loss,
    byot_loss,
    cs_kd_loss,
    ddgsd_feature_loss,
    ddgsd_loss,
    dlb_loss,
    dml_loss,
    r_drop_loss,
)
from sdd_jax.losses._soft_targets import ps_kd_loss, tf_kd_loss

__all__ = [
    "DIVERGENCES",
    "GRADIENTS",
    "byot_feature_loss",
    "byot_loss",
    "cross_entropy",
    "cs_kd_loss",
    "ddgsd_feature_loss",
    "ddgsd_loss",
    "dirichlet_nll_loss",
    "dirichlet_proxy_loss",
    "dlb_loss",
    "dml_loss",
    "dropout_distillation_loss",
    "dropped_logits",
    "entropy",
    "generalised_cross_entropy",
    "head_of_each",
    "kl_divergence",
    "label_smoothing",
    "linear_cross_entropy",
    "linear_sd_dropout_loss",
    "logit_gaussian_loss",
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
]
