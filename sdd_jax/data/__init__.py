"""Data: sources give images, samplers choose examples, engines bring batches to the device."""

from sdd_jax.data.dataset import Dataset, Split, load, load_other
from sdd_jax.data.resize import resized

__all__ = ["Dataset", "Split", "load", "load_other", "resized"]
