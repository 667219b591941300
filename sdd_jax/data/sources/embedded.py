"""Images that are installed with scikit-learn; nothing is downloaded."""

import numpy as np

from sdd_jax.data.sources import sources

PHOTO_SIZE = 32  # pixels


@sources.register("digits")
def digits() -> tuple[dict[str, np.ndarray], int]:
    """Handwritten digits: 1,797 grey images of 8x8 pixels; the test set is a fixed random fifth."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    test = np.arange(len(images)) % 5 == 0
    arrays = {}
    for split, index in (("train", order[~test]), ("test", order[test])):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[index], labels[index]
    return arrays, 10


@sources.register("photos")
def photos() -> tuple[dict[str, np.ndarray], int]:
    """Tiles of two photographs, unlike any set of digits or objects, for out-of-distribution checks.

    520 tiles of 32x32 pixels, half of them in train and half in test; the label is the photograph.
    """
    from sklearn.datasets import load_sample_images

    parts = {}
    for label, photo in enumerate(load_sample_images().images):
        rows, columns = (n // PHOTO_SIZE for n in photo.shape[:2])
        grid = photo[: rows * PHOTO_SIZE, : columns * PHOTO_SIZE]
        grid = grid.reshape(rows, PHOTO_SIZE, columns, PHOTO_SIZE, 3)
        tiles = grid.swapaxes(1, 2).reshape(-1, PHOTO_SIZE, PHOTO_SIZE, 3)
        for split, part in (("train", tiles[::2]), ("test", tiles[1::2])):
            parts.setdefault(f"{split}_images", []).append(part)
            parts.setdefault(f"{split}_labels", []).append(np.full(len(part), label))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}, 2
