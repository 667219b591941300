"""Data sets, batch orders, and engines that bring batches to the devices."""

from sdd_jax.data.dataset import Dataset, Split, load, load_other
from sdd_jax.data.images import resized

__all__ = ["Dataset", "Split", "load", "load_other", "resized"]
