"""Arrays in a NumPy ``.npz`` file: bring your own images."""

import os
import zipfile

import numpy as np

from sdd_jax.data.sources import sources
from sdd_jax.errors import InputError

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@sources.register("npz")
def npz(*, argument: str, data_dir: str):
    """Reads the four arrays; there are as many classes as the largest training label says.

    Raises:
      InputError: no such file, not an npz file, or an array is missing.
    """
    path = os.path.join(data_dir, os.path.expanduser(argument))
    if not os.path.isfile(path):
        raise InputError(f"config.dataset.name: there is no file {path!r} (after npz:)")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ARRAYS if name not in file.files]
            if missing:
                raise InputError(
                    f"config.dataset.name: {path!r} must hold {', '.join(ARRAYS)}; it lacks "
                    f"{', '.join(missing)}"
                )
            arrays = {name: file[name] for name in ARRAYS}
    except InputError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"config.dataset.name: {path!r} is not a readable npz file: {error}"
        ) from error
    labels = arrays["train_labels"]
    return arrays, int(labels.max()) + 1 if labels.size and labels.dtype.kind in "iu" else 0
