"""Networks (Flax linen). A network is a file here that registers a function; see ``base``."""

from sdd_jax.models.base import Classifier, Dropout, build, models

__all__ = ["Classifier", "Dropout", "build", "models"]
