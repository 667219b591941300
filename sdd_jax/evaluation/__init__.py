"""Evaluation of trained networks: metrics, the checks that compute them, and the report."""

from sdd_jax.evaluation.evaluator import EvaluationSetup, Evaluator

__all__ = ["EvaluationSetup", "Evaluator"]
