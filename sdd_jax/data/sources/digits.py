"""scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, embedded, nothing to download."""

import numpy as np

from sdd_jax.data.sources import sources


@sources.register("digits")
def digits():
    """The 1,797 images; every fifth of a fixed permutation is held out as the test set."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    test = np.arange(len(images)) % 5 == 0
    arrays = {}
    for split, index in (("train", order[~test]), ("test", order[test])):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[index], labels[index]
    return arrays, 10
