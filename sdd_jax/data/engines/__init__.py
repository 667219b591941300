"""Engines bring batches to the devices; each is registered in a file of this package, see ``base``."""

from sdd_jax.data.engines.base import Engine, RawBatch, engines

__all__ = ["Engine", "RawBatch", "engines"]
