"""Arrays in a NumPy ``.npz`` file."""

import math
import os
import warnings
import zipfile

import numpy as np
from numpy.lib import format as npy

from sdd_jax.data.sources import sources
from sdd_jax.errors import InputError
from sdd_jax.paths import given_path, is_file

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@sources.register("npz")
def npz(*, argument: str, data_dir: str) -> tuple[dict[str, np.ndarray], int]:
    """Reads the four arrays. The number of classes is 0: their labels show it.

    Raises:
      InputError: no such file, not an npz file, damaged, larger than the memory of the machine, or an
        array is missing.
    """
    path = given_path(argument, field="name", below=given_path(data_dir, field="data_dir"))
    shown = repr(str(path))
    if not is_file(path):
        raise InputError(f"there is no file {shown} (after npz:)", field="name")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, about the syntax of damaged headers
            missing = [name for name in ARRAYS if f"{name}.npy" not in archive.namelist()]
            arrays = {} if missing else _read(archive)
    except Exception as error:  # on damaged files, NumPy and zipfile raise errors of many types
        reason = str(error) or type(error).__name__
        raise InputError(f"{shown} is not a readable npz file: {reason}", field="name") from error
    if missing:
        names = f"{', '.join(ARRAYS)}; it lacks {', '.join(missing)}"
        raise InputError(f"{shown} must hold {names}", field="name")
    return arrays, 0


def _read(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """The arrays, after a check of all sizes: NumPy allocates whatever the header of an array states."""
    members = {name: archive.getinfo(f"{name}.npy") for name in ARRAYS}
    size, memory = sum(info.file_size for info in members.values()), _memory()
    if size > memory:
        raise ValueError(f"its arrays have {size} bytes, more than the {memory} of this machine")
    arrays = {}
    for name, info in members.items():
        with archive.open(info) as member:
            version = npy.read_magic(member)
            if version not in HEADERS:
                raise ValueError(f"{name} has the unknown npy version {version}")
            shape, _, dtype = HEADERS[version](member)
            stated, present = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
        if dtype.hasobject:
            raise ValueError(f"{name} holds pickled objects, not numbers")
        if stated != present:
            raise ValueError(f"{name} states {stated} bytes of shape {shape}, but has {present}")
        with archive.open(info) as member:
            arrays[name] = npy.read_array(member, allow_pickle=False)
    return arrays


def _memory() -> int:
    """Physical memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
