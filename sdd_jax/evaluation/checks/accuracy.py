"""Accuracy and likelihood."""

from sdd_jax.evaluation import metrics
from sdd_jax.evaluation.checks import checks


@checks.register("accuracy")
def accuracy(evaluation) -> dict[str, float]:
    """Accuracy, top-5 accuracy (where there are more than five classes) and NLL."""
    log_probs, labels = metrics.log_softmax(evaluation.logits), evaluation.labels
    result = {"accuracy": metrics.top_k_accuracy(log_probs, labels)}
    if log_probs.shape[-1] > 5:
        result["top5_accuracy"] = metrics.top_k_accuracy(log_probs, labels, k=5)
    return result | {"nll": metrics.negative_log_likelihood(log_probs, labels)}
