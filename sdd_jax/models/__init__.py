"""Networks in Flax linen, registered by name; :mod:`sdd_jax.models.base` describes their interface."""

from sdd_jax.models.base import Classifier, build, models
from sdd_jax.models.layers import Dropout

__all__ = ["Classifier", "Dropout", "build", "models"]
