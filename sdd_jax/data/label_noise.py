"""Training labels with errors: symmetric noise, and labels of annotators in a file."""

import warnings
import zlib

import numpy as np
from numpy.lib import format as npy

from sdd_jax.errors import InputError, require
from sdd_jax.paths import given_path, is_file


def symmetric_noise(
    labels: np.ndarray, *, fraction: float, num_classes: int, seed: int
) -> np.ndarray:
    """Replaces a fraction of the labels, each by one of the K - 1 other classes, uniformly.

    The exact number ``round(fraction * N)`` of labels is wrong. The labels that are wrong at a smaller
    fraction are wrong, in the same way, at a larger one.

    Args:
      labels: integers ``[N]`` in [0, K).
      fraction: in [0, 1].
      num_classes: K.
      seed: the run's seed.

    Returns:
      ``[N]``, of the dtype of ``labels``; the same on every machine.

    Raises:
      InputError: there is no other class.
    """
    require(num_classes > 1, "label_noise", fraction, "0 for a data set of one class")
    # Not the methods of a Generator: NumPy keeps the stream of a bit generator from version to version,
    # but not what they make of it.
    bits = np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(b"label_noise")]))
    rank, shift = bits.random_raw((2, len(labels)))
    wrong = np.argsort(rank, kind="stable")[: round(fraction * len(labels))]
    result = labels.copy()
    shift = 1 + (shift[wrong] % (num_classes - 1)).astype(np.int64)  # biased by less than K / 2^64
    result[wrong] = (labels[wrong] + shift) % num_classes
    return result


def read_labels(path: str, data_dir: str) -> np.ndarray:
    """Reads an array in NumPy's npy format. Pickled objects, which could execute code, are refused.

    Args:
      path: path of the file, relative to ``data_dir``.
      data_dir: the folder; empty: the current one.

    Raises:
      InputError: no such file, or not an array of numbers.
    """
    field = "train_labels"
    file_path = given_path(path, field=field, below=given_path(data_dir, field="data_dir"))
    shown = repr(str(file_path))
    if not is_file(file_path):
        raise InputError(f"there is no file {shown}", field=field)
    try:
        with file_path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, about the syntax of damaged headers
            return npy.read_array(file, allow_pickle=False)
    except Exception as error:  # on damaged files, NumPy raises errors of many types
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{shown} is not a readable npy file of numbers: {reason}", field=field
        ) from error
