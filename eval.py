"""Evaluates a run's checkpoint: ``python eval.py --workdir=DIR [--checks=accuracy,calibration]``."""

from sdd_jax.cli import evaluate

if __name__ == "__main__":
    evaluate()
