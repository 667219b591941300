"""Data sets made of what is installed with scikit-learn; nothing is downloaded."""

import numpy as np

from sdd_jax.data.sources import sources
from sdd_jax.errors import require

PHOTO_SIZE = 32  # pixels
SCENE_SIZE = 64
SCENES = {"train": 2000, "test": 500}
MOST_DIGITS = 3  # in a scene


@sources.register("digits")
def digits(*, argument: str) -> tuple[dict[str, np.ndarray], int]:
    """Handwritten digits: 1,797 grey images of 8x8 pixels; the test set is a fixed random fifth.

    ``digits:features`` are their 64 intensities, from 0 to 16, as features; ``digits:tokens`` the same
    as 64 tokens, of which 17 i + v says that pixel i, from 0, has the intensity v, and 1088 that pixel 0
    has none.
    """
    from sklearn.datasets import load_digits

    known = argument in ("", "features", "tokens")
    require(known, "name", f"digits:{argument}", "digits, digits:features or digits:tokens")
    images, labels = load_digits(return_X_y=True)
    if argument == "features":
        images = images.astype(np.float32)
    elif argument == "tokens":
        images = np.arange(64) * 17 + images.astype(np.int32)
        images[images == 0] = 64 * 17  # 0 is padding
    else:
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


@sources.register("scenes")
def scenes(*, argument: str) -> tuple[dict[str, np.ndarray], int]:
    """One to three bright handwritten digits on darker crops of two photographs, 64x64 pixels.

    The labels are maps, ``[N, 64, 64]``: 0 for the background, the digit plus 1 elsewhere. Those of
    ``scenes:labels`` are ``[N, 10]``: which digits are in the image. 2,000 training images show digits
    of the training set of ``digits``, 500 test images those of its test set; they are the same
    everywhere.
    """
    from sklearn.datasets import load_sample_images

    require(argument in ("", "labels"), "name", f"scenes:{argument}", "scenes or scenes:labels")
    source, _ = digits(argument="")
    photos = load_sample_images().images
    arrays: dict[str, np.ndarray] = {}
    for seed, (split, count) in enumerate(SCENES.items()):
        rng = np.random.default_rng(seed)
        glyphs, classes = source[f"{split}_images"][..., 0] / 255, source[f"{split}_labels"]
        images = np.empty((count, SCENE_SIZE, SCENE_SIZE, 3), np.uint8)
        maps = np.zeros((count, SCENE_SIZE, SCENE_SIZE), np.uint8)
        for image, label_map in zip(images, maps, strict=True):
            photo = photos[rng.integers(len(photos))]
            top, left = (rng.integers(n - SCENE_SIZE) for n in photo.shape[:2])
            image[:] = photo[top : top + SCENE_SIZE, left : left + SCENE_SIZE] // 2
            for _ in range(rng.integers(1, MOST_DIGITS + 1)):
                _paste(rng, glyphs, classes, image, label_map)
        arrays[f"{split}_images"] = images
        digit = np.arange(1, 11).reshape(-1, 1, 1)
        has = (maps[:, None] == digit).any(axis=(2, 3)) if argument else None
        arrays[f"{split}_labels"] = maps if has is None else has.astype(np.int8)
    return arrays, 10 if argument else 11


def _paste(rng, glyphs, classes, image, label_map) -> None:
    """Draws one digit of 24 to 40 pixels, over what is there."""
    chosen, size = rng.integers(len(glyphs)), rng.integers(24, 41)
    index = np.arange(size) * 8 // size
    opacity = glyphs[chosen][index][:, index]
    top, left = rng.integers(SCENE_SIZE - size + 1, size=2)
    at = slice(top, top + size), slice(left, left + size)
    colour = rng.integers(160, 256, size=3)
    blended = image[at] + opacity[..., None] * (colour - image[at].astype(np.float64))
    image[at] = np.round(blended)
    label_map[at][opacity > 0.4] = classes[chosen] + 1
