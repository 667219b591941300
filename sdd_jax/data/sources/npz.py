"""Arrays in a NumPy ``.npz`` file."""

import os

import numpy as np

from sdd_jax.data.sources import sources
from sdd_jax.errors import InputError

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@sources.register("npz")
def npz(*, argument: str, data_dir: str) -> tuple[dict[str, np.ndarray], int]:
    """Reads the four arrays; the largest training label gives the number of classes.

    Raises:
      InputError: no such file, not an npz file, or an array is missing.
    """
    path = os.path.join(data_dir, os.path.expanduser(argument))
    if not os.path.isfile(path):
        raise InputError(f"there is no file {path!r} (after npz:)", field="name")
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            missing = [name for name in ARRAYS if name not in file.files]
            arrays = {name: file[name] for name in ARRAYS if name not in missing}
    except Exception as error:  # on damaged files, NumPy and zipfile raise errors of many types
        raise InputError(f"{path!r} is not a readable npz file: {error}", field="name") from error
    if missing:
        names = f"{', '.join(ARRAYS)}; it lacks {', '.join(missing)}"
        raise InputError(f"{path!r} must hold {names}", field="name")
    labels = arrays["train_labels"]
    return arrays, int(labels.max()) + 1 if labels.size and labels.dtype.kind in "iu" else 0
