"""Self-distillation losses, in which one posterior or feature of a network teaches another."""

import jax
import jax.numpy as jnp

from sdd_jax.losses._arguments import at_least_float32, check_same_shape
from sdd_jax.losses._divergence import kl_divergence, symmetric_kl


def cs_kd_loss(
    logits: jax.Array,
    partner_logits: jax.Array,
    *,
    temperature: float | jax.Array = 4.0,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""Computes the CS-KD loss, in which another image of the same class is the teacher.

    .. math:: T^2\, \mathrm{KL}(\mathrm{sg}(p_{\mathrm{partner}}) \| p), \qquad
              p = \mathrm{softmax}(z / T)

    Add it to the cross-entropy of ``logits``; the partner has none.

    Args:
      logits: ``[..., K]``.
      partner_logits: ``[..., K]``, of another image of each example's class; its gradient is stopped.
      temperature: T > 0.
      where: boolean, broadcast to the logits; classes that are False are ignored.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: shapes that differ, or temperature not positive.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> print(f"{sdd_jax.cs_kd_loss(jnp.array([0.0, 2.0]), jnp.array([0.0, 3.0])):.4f}")
      0.1120

    References:
      Yun et al., `Regularizing Class-wise Predictions via Self-knowledge Distillation
      <https://arxiv.org/abs/2003.13964>`_, 2020.
    """
    check_same_shape(logits=logits, partner_logits=partner_logits)
    return _teach(partner_logits, logits, temperature, where)


def dlb_loss(
    logits: jax.Array,
    last_logits: jax.Array,
    *,
    temperature: float | jax.Array = 3.0,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""Computes the DLB loss, in which an image's posterior in the last mini-batch is the target.

    .. math:: T^2\, \mathrm{KL}(\mathrm{sg}(p_{t-1}) \| p_t), \qquad p = \mathrm{softmax}(z / T)

    Each batch repeats half of the previous one with new augmentations; the loss is on that half. The
    authors' code passes the repeated and the new images through the network separately; this package
    trains with one pass over both, so batch norm normalises them together.

    Args:
      logits: ``[..., K]``, at this step.
      last_logits: ``[..., K]``, of the same images at the last step; its gradient is stopped.
      temperature: T > 0.
      where: boolean, broadcast to the logits; classes that are False are ignored.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: shapes that differ, or temperature not positive.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> print(f"{sdd_jax.dlb_loss(jnp.array([0.0, 2.0]), jnp.array([0.0, 3.0])):.4f}")
      0.1032

    References:
      Shen et al., `Self-Distillation from the Last Mini-Batch for Consistency Regularization
      <https://arxiv.org/abs/2203.16172>`_, 2022.
    """
    check_same_shape(logits=logits, last_logits=last_logits)
    return _teach(last_logits, logits, temperature, where)


def byot_loss(
    mid_logits: jax.Array,
    final_logits: jax.Array,
    *,
    temperature: float | jax.Array = 3.0,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""Computes the BYOT loss, in which the final classifier teaches an intermediate one.

    .. math:: T^2\, \mathrm{KL}(\mathrm{sg}(p_{\mathrm{final}}) \| p_{\mathrm{mid}}), \qquad
              p = \mathrm{softmax}(z / T)

    This is the loss of one branch. Sum it over the branches, and add their cross-entropies and
    :func:`sdd_jax.byot_feature_loss`.

    Args:
      mid_logits: ``[..., K]``, of the branch.
      final_logits: ``[..., K]``, of the final classifier; its gradient is stopped.
      temperature: T > 0.
      where: boolean, broadcast to the logits; classes that are False are ignored.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: shapes that differ, or temperature not positive.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> print(f"{sdd_jax.byot_loss(jnp.array([0.0, 2.0]), jnp.array([0.0, 3.0])):.4f}")
      0.1032

    References:
      Zhang et al., `Be Your Own Teacher <https://arxiv.org/abs/1905.08094>`_, 2019, the second of its
      three losses.
    """
    check_same_shape(mid_logits=mid_logits, final_logits=final_logits)
    return _teach(final_logits, mid_logits, temperature, where)


def byot_feature_loss(mid_features: jax.Array, final_features: jax.Array) -> jax.Array:
    r"""Computes the BYOT feature loss, in which the penultimate features teach a branch's features.

    .. math:: \frac{1}{D} \| f_{\mathrm{mid}} - \mathrm{sg}(f_{\mathrm{final}}) \|^2

    The mean over features, as in the SD-Dropout authors' code; the paper has the sum.

    Args:
      mid_features: ``[..., D]``, of one branch.
      final_features: ``[..., D]``; its gradient is stopped.

    Returns:
      Per-example loss ``[...]``.

    Raises:
      ValueError: shapes that differ.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> print(sdd_jax.byot_feature_loss(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
      2.0

    References:
      Zhang et al., `Be Your Own Teacher <https://arxiv.org/abs/1905.08094>`_, 2019, the third of its
      three losses.
    """
    check_same_shape(mid_features=mid_features, final_features=final_features)
    target = jax.lax.stop_gradient(at_least_float32(final_features))
    return jnp.mean((at_least_float32(mid_features) - target) ** 2, axis=-1)


def ddgsd_loss(
    logits_1: jax.Array,
    logits_2: jax.Array,
    *,
    temperature: float | jax.Array = 3.0,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""Computes the DDGSD loss, in which two augmentations of an image teach each other.

    .. math:: T^2 \left[\mathrm{KL}(\mathrm{sg}(p_2) \| p_1) +
              \mathrm{KL}(\mathrm{sg}(p_1) \| p_2)\right], \qquad p = \mathrm{softmax}(z / T)

    Add it to the cross-entropies of both views and :func:`sdd_jax.ddgsd_feature_loss`. To combine it
    with SD-Dropout as those authors do, drop the features of each view once and add
    :func:`sdd_jax.sd_dropout_loss_from_logits` of the two views' dropped logits.

    Args:
      logits_1: ``[..., K]``, of the first view.
      logits_2: ``[..., K]``, of the second.
      temperature: T > 0.
      where: boolean, broadcast to the logits; classes that are False are ignored.

    Returns:
      Per-example loss ``[...]`` in nats, one for both views together.

    Raises:
      ValueError: shapes that differ, or temperature not positive.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> print(f"{sdd_jax.ddgsd_loss(jnp.array([0.0, 2.0]), jnp.array([0.0, 3.0])):.4f}")
      0.2109

    References:
      Xu and Liu, `Data-Distortion Guided Self-Distillation for Deep Neural Networks
      <https://doi.org/10.1609/aaai.v33i01.33015565>`_, 2019.
    """
    check_same_shape(logits_1=logits_1, logits_2=logits_2)
    return _teach_each_other(logits_1, logits_2, temperature, where)


def ddgsd_feature_loss(
    features_1: jax.Array, features_2: jax.Array, *, axis_name: str | None = None
) -> jax.Array:
    r"""Computes the squared distance of the mean features of two augmentations of a batch.

    .. math:: \left\| \frac{1}{B} \sum_b f_1^{(b)} - \frac{1}{B} \sum_b f_2^{(b)} \right\|^2

    This is the squared maximum mean discrepancy with a linear kernel. Compute both views in one joint
    batch, as the SD-Dropout authors do: batch norm over each view alone equalises the views' means, and
    with them most of this loss.

    The loss belongs to the batch, not to its examples: its mean over parts of a batch is larger. Where
    the batch is sharded over devices, pass ``axis_name``. Every device then returns the distance for
    the whole batch, and the ``pmean`` of the devices' gradients is the gradient for the whole batch, as
    for a mean over examples. (Inside ``shard_map`` with ``check_vma``, where gradients with respect to
    replicated parameters are summed, differentiate the ``pmean`` of the loss.)

    Args:
      features_1: ``[B, D]``, of the first view.
      features_2: ``[B, D]``, of the second view of the same images.
      axis_name: the mapped axis over which the batch is sharded in equal parts, or None.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes that differ.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> print(sdd_jax.ddgsd_feature_loss(jnp.ones((4, 8)), jnp.zeros((4, 8))))
      8.0

    References:
      Xu and Liu, `Data-Distortion Guided Self-Distillation for Deep Neural Networks
      <https://doi.org/10.1609/aaai.v33i01.33015565>`_, 2019.
    """
    check_same_shape(features_1=features_1, features_2=features_2)
    difference = jnp.mean(at_least_float32(features_1) - at_least_float32(features_2), axis=0)
    if axis_name is not None:
        difference = jax.lax.pmean(difference, axis_name)
    return jnp.sum(difference**2)


def dml_loss(
    logits_a: jax.Array,
    logits_b: jax.Array,
    *,
    temperature: float | jax.Array = 3.0,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""Computes the DML loss, in which two networks teach each other.

    .. math:: T^2 \left[\mathrm{KL}(\mathrm{sg}(p_b) \| p_a) +
              \mathrm{KL}(\mathrm{sg}(p_a) \| p_b)\right], \qquad p = \mathrm{softmax}(z / T)

    Add it to the cross-entropies of both networks. The paper gives each network its own loss; because
    the targets are stopped, training both on the sum gives the same gradients. The SD-Dropout authors
    halve the sum of the cross-entropies but not this loss, which doubles its weight.

    Args:
      logits_a: ``[..., K]``, of one network.
      logits_b: ``[..., K]``, of the other, for the same images.
      temperature: T > 0; 1 in the original paper.
      where: boolean, broadcast to the logits; classes that are False are ignored.

    Returns:
      Per-example loss ``[...]`` in nats, one for both networks together.

    Raises:
      ValueError: shapes that differ, or temperature not positive.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> print(f"{sdd_jax.dml_loss(jnp.array([0.0, 2.0]), jnp.array([0.0, 3.0])):.4f}")
      0.2109

    References:
      Zhang et al., `Deep Mutual Learning <https://arxiv.org/abs/1706.00384>`_, 2018.
    """
    check_same_shape(logits_a=logits_a, logits_b=logits_b)
    return _teach_each_other(logits_a, logits_b, temperature, where)


def r_drop_loss(
    logits_1: jax.Array,
    logits_2: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""Computes the R-Drop loss, which penalises disagreement between two dropout passes.

    .. math:: \frac{1}{2} \left[\mathrm{KL}(p_1 \| p_2) + \mathrm{KL}(p_2 \| p_1)\right], \qquad
              p = \mathrm{softmax}(z / T)

    Half of :func:`sdd_jax.symmetric_kl`. No factor :math:`T^2`, and no stopped gradient. Codebases
    differ: the authors' code for ViT does not halve the two divergences, and sums them over the batch
    where its cross-entropies are means. Scale the weight accordingly. For other heads, take half of
    :func:`sdd_jax.symmetric_bernoulli_kl` or :func:`sdd_jax.squared_error`.

    Args:
      logits_1: ``[..., K]``, of the first pass.
      logits_2: ``[..., K]``, of the second, for the same inputs.
      temperature: T > 0.
      where: boolean, broadcast to the logits; classes that are False are ignored. ``mask[..., None]``
        ignores the padding of sequences: its loss and gradients are zero.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: shapes that differ, or temperature not positive.

    Example:
      >>> import jax.numpy as jnp, sdd_jax
      >>> print(f"{sdd_jax.r_drop_loss(jnp.array([0.0, 2.0]), jnp.array([0.0, 3.0])):.4f}")
      0.0359

    References:
      Liang et al., `R-Drop <https://arxiv.org/abs/2106.14448>`_, 2021.
    """
    check_same_shape(logits_1=logits_1, logits_2=logits_2)
    return symmetric_kl(logits_1, logits_2, temperature=temperature, where=where) / 2


def _teach(target_logits, prediction_logits, temperature, where):
    options = {"temperature": temperature, "gradient": "forward", "where": where}
    return kl_divergence(target_logits, prediction_logits, **options) * temperature**2


def _teach_each_other(logits_1, logits_2, temperature, where):
    options = {"temperature": temperature, "gradient": "forward", "where": where}
    return symmetric_kl(logits_1, logits_2, **options) * temperature**2
