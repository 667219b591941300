"""Dropout Distillation: a deterministic student matches the mean of a dropout ensemble."""

import jax
import jax.numpy as jnp

from sdd_jax.losses._arguments import at_least_float32, teacher_samples
from sdd_jax.losses._divergence import kl_divergence


def _brier(student_logits, teacher_logits):
    p, q = (jax.nn.softmax(at_least_float32(z)) for z in (teacher_logits, student_logits))
    return jnp.sum((p - q) ** 2, axis=-1)


DIVERGENCES = {
    "kl": lambda student, teacher: kl_divergence(teacher, student, gradient="forward"),
    "brier": _brier,
    "reverse_kl": lambda student, teacher: kl_divergence(student, teacher, gradient="reverse"),
}


def dropout_distillation_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    divergence: str = "kl",
    sample_axis: int | None = None,
) -> jax.Array:
    r"""Computes the divergence of a student from a teacher whose dropout is on.

    .. math:: \mathrm{KL}(f_\sigma(x) \,\|\, q(x)) =
              \sum_c f_\sigma(x)_c \left[\log f_\sigma(x)_c - \log q(x)_c\right]

    With a fresh mask sigma at each step, its gradient is an unbiased estimate of the gradient of
    :math:`\mathrm{KL}(\mathbb{E}_\sigma f_\sigma \,\|\, q)`, for any number of masks: the student learns
    the mean of the ensemble. The minimum of the value is not zero but the mean mutual information
    :math:`I(y; \sigma \mid x)` of the teacher (see :func:`sdd_jax.mc_dropout`), so a plateau there is
    convergence.

    Args:
      student_logits: ``[..., K]``.
      teacher_logits: ``[..., K]``, or with an additional axis for several masks. Its gradient is
        stopped.
      divergence: "kl", the paper's; "brier", the squared error of the probabilities, with the same
        minimiser; or "reverse_kl", KL(student || teacher), minimised by the normalised geometric mean.
      sample_axis: the axis of ``teacher_logits`` over masks, along which the loss is averaged.

    Returns:
      Per-example loss ``[...]``, in nats for the KL divergences.

    Raises:
      ValueError: an unknown divergence, or shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> student, teacher = jnp.zeros((4, 3)), jnp.ones((7, 4, 3))  # seven masks
      >>> sdd_jax.dropout_distillation_loss(student, teacher, sample_axis=0).shape
      (4,)

    References:
      Rota Bulo et al., `Dropout Distillation <https://proceedings.mlr.press/v48/bulo16.html>`_, 2016,
      section 3, theorem 1.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {divergence!r}")
    samples = teacher_samples(student_logits, teacher_logits, sample_axis)
    diverge = DIVERGENCES[divergence]
    if sample_axis is None:
        return diverge(student_logits, samples[0])
    return jnp.mean(jax.vmap(diverge, (None, 0))(student_logits, samples), axis=0)
