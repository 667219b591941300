"""Losses do not promote: users with strict settings can call them."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict():
    """No implicit promotion of dtypes or ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
