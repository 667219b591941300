"""Pieces of scikit-learn's two photographs: something that no data set of digits or objects holds."""

import numpy as np

from sdd_jax.data.sources import sources

SIZE = 32


@sources.register("photos")
def photos():
    """520 pieces of 32x32 pixels; labels say which photograph, train and test have half of each."""
    from sklearn.datasets import load_sample_images

    arrays = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = [], []
    for label, photo in enumerate(load_sample_images().images):
        rows, columns = (n // SIZE for n in photo.shape[:2])
        grid = photo[: rows * SIZE, : columns * SIZE].reshape(rows, SIZE, columns, SIZE, 3)
        pieces = grid.swapaxes(1, 2).reshape(-1, SIZE, SIZE, 3)
        for split, part in (("train", pieces[::2]), ("test", pieces[1::2])):
            arrays[f"{split}_images"].append(part)
            arrays[f"{split}_labels"].append(np.full(len(part), label))
    return {name: np.concatenate(parts) for name, parts in arrays.items()}, 2
