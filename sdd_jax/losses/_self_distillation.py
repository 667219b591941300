"""Self-distillation: one posterior, or feature, of a network teaches another."""

import jax
import jax.numpy as jnp

from sdd_jax.losses._divergence import kl_divergence, symmetric_kl
from sdd_jax.losses._precision import at_least_float32


def cs_kd_loss(
    logits: jax.Array,
    partner_logits: jax.Array,
    *,
    temperature: float = 4.0,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""CS-KD: the posterior of another image of the same class teaches.

    .. math:: T^2\, \mathrm{KL}(\mathrm{sg}(p_{\mathrm{partner}}) \| p), \qquad
              p = \mathrm{softmax}(z / T)

    Add it to the cross-entropy of ``logits``; the partner has none.

    Args:
      logits: ``[..., K]``.
      partner_logits: ``[..., K]``, of an image of the same class for each example; its gradient is
        stopped.
      temperature: T > 0.
      where: boolean, broadcast to the logits; classes that are False do not take part.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: temperature not positive.

    References:
      Yun et al., `Regularizing Class-wise Predictions via Self-knowledge Distillation
      <https://arxiv.org/abs/2003.13964>`_, 2020.
    """
    return _teach(partner_logits, logits, temperature, where)


def dlb_loss(
    logits: jax.Array,
    last_logits: jax.Array,
    *,
    temperature: float = 3.0,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""DLB: the posterior that an image had in the last mini-batch teaches.

    .. math:: T^2\, \mathrm{KL}(\mathrm{sg}(p_{t-1}) \| p_t), \qquad p = \mathrm{softmax}(z / T)

    Each batch repeats half of the one before it, augmented anew; the loss is on that half.

    Args:
      logits: ``[..., K]``, at this step.
      last_logits: ``[..., K]``, of the same images at the last step; its gradient is stopped.
      temperature: T > 0.
      where: boolean, broadcast to the logits; classes that are False do not take part.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: temperature not positive.

    References:
      Shen et al., `Self-Distillation from the Last Mini-Batch for Consistency Regularization
      <https://arxiv.org/abs/2203.16172>`_, 2022.
    """
    return _teach(last_logits, logits, temperature, where)


def byot_loss(
    mid_logits: jax.Array,
    final_logits: jax.Array,
    *,
    temperature: float = 3.0,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""BYOT: the last classifier teaches that of a branch from the middle of the network.

    .. math:: T^2\, \mathrm{KL}(\mathrm{sg}(p_{\mathrm{final}}) \| p_{\mathrm{mid}}), \qquad
              p = \mathrm{softmax}(z / T)

    For one branch; sum over the branches, beside their cross-entropies and
    :func:`sdd_jax.byot_feature_loss`.

    Args:
      mid_logits: ``[..., K]``, of the branch.
      final_logits: ``[..., K]``, of the network's own classifier; its gradient is stopped.
      temperature: T > 0.
      where: boolean, broadcast to the logits; classes that are False do not take part.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: temperature not positive.

    References:
      Zhang et al., `Be Your Own Teacher <https://arxiv.org/abs/1905.08094>`_, 2019: the second of its
      three losses.
    """
    return _teach(final_logits, mid_logits, temperature, where)


def byot_feature_loss(mid_features: jax.Array, final_features: jax.Array) -> jax.Array:
    r"""BYOT: the penultimate features teach those of a branch from the middle of the network.

    .. math:: \frac{1}{D} \| f_{\mathrm{mid}} - \mathrm{sg}(f_{\mathrm{final}}) \|^2

    The mean over features, as the authors of SD-Dropout compute it; the paper has the sum.

    Args:
      mid_features: ``[..., D]``, of one branch.
      final_features: ``[..., D]``; its gradient is stopped.

    Returns:
      Per-example loss ``[...]``.

    References:
      Zhang et al., `Be Your Own Teacher <https://arxiv.org/abs/1905.08094>`_, 2019: the third of its
      three losses.
    """
    target = jax.lax.stop_gradient(at_least_float32(final_features))
    return jnp.mean((at_least_float32(mid_features) - target) ** 2, axis=-1)


def ddgsd_loss(
    logits_1: jax.Array,
    logits_2: jax.Array,
    *,
    temperature: float = 3.0,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""DDGSD: the posteriors of two augmentations of an image teach each other.

    .. math:: T^2 \left[\mathrm{KL}(\mathrm{sg}(p_2) \| p_1) +
              \mathrm{KL}(\mathrm{sg}(p_1) \| p_2)\right], \qquad p = \mathrm{softmax}(z / T)

    Add it to the cross-entropies of both views and :func:`sdd_jax.ddgsd_feature_loss`. The authors of
    SD-Dropout combine the two by dropping the features of each view once: the term then is
    ``temperature**2 * symmetric_kl(...)`` of the two views' dropped logits.

    Args:
      logits_1: ``[..., K]``, of the first view.
      logits_2: ``[..., K]``, of the second.
      temperature: T > 0.
      where: boolean, broadcast to the logits; classes that are False do not take part.

    Returns:
      Per-example loss ``[...]`` in nats, one for both views together.

    Raises:
      ValueError: temperature not positive.

    References:
      Xu and Liu, `Data-Distortion Guided Self-Distillation for Deep Neural Networks
      <https://doi.org/10.1609/aaai.v33i01.33015565>`_, 2019.
    """
    return _teach_each_other(logits_1, logits_2, temperature, where)


def ddgsd_feature_loss(
    features_1: jax.Array, features_2: jax.Array, *, axis_name: str | None = None
) -> jax.Array:
    r"""DDGSD: the squared distance between the mean features of two augmentations of a batch.

    .. math:: \left\| \frac{1}{B} \sum_b f_1^{(b)} - \frac{1}{B} \sum_b f_2^{(b)} \right\|^2

    The squared maximum mean discrepancy with a linear kernel. It belongs to the batch and not to its
    examples: the mean of the distances on parts of a batch is another, larger loss. Where the batch is
    divided over devices, give ``axis_name``; every device then returns the distance for the whole
    batch, and the ``pmean`` of the gradients of the devices' losses is the gradient for the whole
    batch, as for losses that are means over examples. (Inside ``shard_map`` with ``check_vma``, where
    gradients by replicated parameters come out summed, differentiate the ``pmean`` of the loss.)

    Args:
      features_1: ``[B, D]``, of the first view.
      features_2: ``[B, D]``, of the second view of the same images.
      axis_name: the mapped axis over which the batch is divided into equal shares; None if it is not.

    Returns:
      A scalar.

    References:
      Xu and Liu, `Data-Distortion Guided Self-Distillation for Deep Neural Networks
      <https://doi.org/10.1609/aaai.v33i01.33015565>`_, 2019.
    """
    difference = jnp.mean(at_least_float32(features_1) - at_least_float32(features_2), axis=0)
    if axis_name is not None:
        difference = jax.lax.pmean(difference, axis_name)
    return jnp.sum(difference**2)


def dml_loss(
    logits_a: jax.Array,
    logits_b: jax.Array,
    *,
    temperature: float = 3.0,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""DML: the posteriors of two networks teach each other.

    .. math:: T^2 \left[\mathrm{KL}(\mathrm{sg}(p_b) \| p_a) +
              \mathrm{KL}(\mathrm{sg}(p_a) \| p_b)\right], \qquad p = \mathrm{softmax}(z / T)

    Add it to the cross-entropies of both networks. Stopping the targets gives each network the
    gradient of its own loss, though both are trained on the sum.

    Args:
      logits_a: ``[..., K]``, of one network.
      logits_b: ``[..., K]``, of the other, for the same images.
      temperature: T > 0; 1 in the original paper.
      where: boolean, broadcast to the logits; classes that are False do not take part.

    Returns:
      Per-example loss ``[...]`` in nats, one for both networks together.

    Raises:
      ValueError: temperature not positive.

    References:
      Zhang et al., `Deep Mutual Learning <https://arxiv.org/abs/1706.00384>`_, 2018.
    """
    return _teach_each_other(logits_a, logits_b, temperature, where)


def r_drop_loss(
    logits_1: jax.Array,
    logits_2: jax.Array,
    *,
    temperature: float = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    r"""R-Drop: two passes through a network with dropout are to agree.

    .. math:: \frac{1}{2} \left[\mathrm{KL}(p_1 \| p_2) + \mathrm{KL}(p_2 \| p_1)\right], \qquad
              p = \mathrm{softmax}(z / T)

    Half of :func:`sdd_jax.symmetric_kl`. No factor :math:`T^2`, and no stopped gradient.

    Args:
      logits_1: ``[..., K]``, of the first pass.
      logits_2: ``[..., K]``, of the second, for the same inputs.
      temperature: T > 0.
      where: boolean, broadcast to the logits; classes that are False do not take part.

    Returns:
      Per-example loss ``[...]`` in nats.

    Raises:
      ValueError: temperature not positive.

    References:
      Liang et al., `R-Drop <https://arxiv.org/abs/2106.14448>`_, 2021.
    """
    return symmetric_kl(logits_1, logits_2, temperature=temperature, where=where) / 2


def _teach(target_logits, prediction_logits, temperature, where):
    options = {"temperature": temperature, "gradient": "forward", "where": where}
    return temperature**2 * kl_divergence(target_logits, prediction_logits, **options)


def _teach_each_other(logits_1, logits_2, temperature, where):
    options = {"temperature": temperature, "gradient": "forward", "where": where}
    return temperature**2 * symmetric_kl(logits_1, logits_2, **options)
