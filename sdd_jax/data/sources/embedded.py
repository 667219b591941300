"""Data sets made of what is installed with scikit-learn; nothing is downloaded."""

import numpy as np

from sdd_jax.data.sources import sources
from sdd_jax.errors import require

PHOTO_SIZE = 32  # pixels
SCENE_SIZE = 64
SCENES = {"train": 2000, "test": 500}
MOST_DIGITS, SIZES = 3, (24, 41)  # in a scene, and their range in pixels
MOST_BOXES, BOX_SIZES = 6, (12, 25)
ATTEMPTS = 20  # to place a digit where it hides no other


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
    """Bright handwritten digits on darker crops of two photographs, 64x64 pixels.

    The labels of ``scenes`` are maps, ``[N, 64, 64]``: 0 for the background, the digit plus 1 elsewhere.
    Those of ``scenes:labels`` are ``[N, 10]``: which digits are in the image. Both have one to three
    digits of 24 to 40 pixels in an image. ``scenes:boxes`` has one to six of 12 to 24 pixels, none on
    another, and their boxes, ``[N, 6, 5]``: class, left, top, width and height; -1 where there is none.

    2,000 training images show digits of the training set of ``digits``, 500 test images those of its
    test set; they are the same everywhere.
    """
    from sklearn.datasets import load_sample_images

    allowed = "scenes, scenes:labels or scenes:boxes"
    require(argument in ("", "labels", "boxes"), "name", f"scenes:{argument}", allowed)
    source, _ = digits(argument="")
    photos = load_sample_images().images
    arrays: dict[str, np.ndarray] = {}
    for seed, (split, count) in enumerate(SCENES.items()):
        glyphs, classes = source[f"{split}_images"][..., 0] / 255, source[f"{split}_labels"]
        images, maps, boxes = _scenes(
            np.random.default_rng(seed), count, glyphs, classes, photos, small=argument == "boxes"
        )
        if argument == "boxes":
            labels = boxes
        elif argument == "labels":
            digit = np.arange(1, 11).reshape(-1, 1, 1)
            labels = (maps[:, None] == digit).any(axis=(2, 3)).astype(np.int8)
        else:
            labels = maps
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images, labels
    return arrays, 10 if argument else 11


def _scenes(rng, count, glyphs, classes, photos, *, small) -> tuple[np.ndarray, ...]:
    """Images, maps of their pixels, and boxes; of many small digits or of few large ones."""
    most, sizes = (MOST_BOXES, BOX_SIZES) if small else (MOST_DIGITS, SIZES)
    images = np.empty((count, SCENE_SIZE, SCENE_SIZE, 3), np.uint8)
    maps = np.zeros((count, SCENE_SIZE, SCENE_SIZE), np.uint8)
    boxes = np.tile(np.array([-1, 0, 0, 0, 0], np.int32), (count, most, 1))
    for image, label_map, in_image in zip(images, maps, boxes, strict=True):
        photo = photos[rng.integers(len(photos))]
        top, left = (rng.integers(n - SCENE_SIZE) for n in photo.shape[:2])
        image[:] = photo[top : top + SCENE_SIZE, left : left + SCENE_SIZE] // 2
        for box in in_image[: rng.integers(1, most + 1)]:
            chosen, size = rng.integers(len(glyphs)), rng.integers(*sizes)
            place = _place(rng, size, label_map, apart=small)
            if place is not None:
                marked = _paste(rng, glyphs[chosen], size, place, image)
                label_map[marked] = classes[chosen] + 1
                rows, columns = (np.unique(index) for index in marked)
                extent = np.ptp(columns) + 1, np.ptp(rows) + 1
                box[:] = classes[chosen], columns[0], rows[0], *extent
    return images, maps, boxes


def _place(rng, size, label_map, *, apart) -> tuple[int, int] | None:
    """Top and left of a digit; ``apart`` from the others, or None if there is hardly any room."""
    for _ in range(ATTEMPTS):
        top, left = rng.integers(SCENE_SIZE - size + 1, size=2)
        if not (apart and label_map[top : top + size, left : left + size].any()):
            return top, left
    return None


def _paste(rng, glyph, size, place, image) -> tuple[np.ndarray, np.ndarray]:
    """Draws a digit over what is there, and returns rows and columns of its pixels."""
    top, left = place
    index = np.arange(size) * 8 // size
    opacity = glyph[index][:, index]
    part = image[top : top + size, left : left + size]
    colour = rng.integers(160, 256, size=3)
    blended = part + opacity[..., None] * (colour - part.astype(np.float64))
    part[:] = np.round(blended)
    rows, columns = np.nonzero(opacity > 0.4)
    return rows + top, columns + left
