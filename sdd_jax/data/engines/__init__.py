"""How batches reach the device. An engine is a file here that registers a function; see ``base``."""

from sdd_jax.data.engines.base import Engine, RawBatch, engines

__all__ = ["Engine", "RawBatch", "engines"]
