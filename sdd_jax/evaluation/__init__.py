"""Evaluation of a network: metrics, and the checks that compute them on a data set."""

from sdd_jax.evaluation.evaluate import Evaluation

__all__ = ["Evaluation"]
