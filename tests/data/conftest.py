"""Small data sets on disk; what still runs in the background."""

import multiprocessing
import threading
import time

import numpy as np
import pytest


@pytest.fixture
def npz(tmp_path):
    """Writes 20 training and 7 test images of 6x5 pixels and 4 classes; returns the data set's name."""

    def write(**arrays):
        rng = np.random.default_rng(0)
        all_arrays = {
            "train_images": rng.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8),
            "train_labels": np.arange(20) % 4,
            "test_images": rng.integers(0, 256, (7, 6, 5, 3), dtype=np.uint8),
            "test_labels": np.arange(7) % 4,
        } | arrays
        path = tmp_path / "arrays.npz"
        np.savez(path, **{name: array for name, array in all_arrays.items() if array is not None})
        return f"npz:{path}"

    return write


@pytest.fixture
def background_threads():
    """Lists the threads of grain."""
    return lambda: [t.name for t in threading.enumerate() if t.name.startswith("grain-")]


@pytest.fixture
def assert_nothing_runs(background_threads):
    """Fails if threads of grain or processes remain; stopped threads may finish their work first."""

    def check():
        deadline = time.monotonic() + 20
        while background_threads() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not background_threads()
        assert not multiprocessing.active_children()

    return check
