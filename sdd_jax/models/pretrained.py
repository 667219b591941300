"""Parameters from a local safetensors file: our own, torchvision's or timm's.

Files in the naming of PyTorch hold a state dict of torchvision's ResNet-18 to ResNet-152 or DenseNet-121
(for the networks with ``stem="imagenet"``), or of timm's ``vit_tiny_patch16`` or ``vit_small_patch16``
(for those with ``patch_size=16``). They are written there, once, by::

  safetensors.torch.save_file(model.state_dict(), "resnet50.safetensors")

The logits are then those of PyTorch, for images normalised as that network expects. A network with an
encoder, as a U-Net, can also start from the backbone of a ResNet of the encoder's depth and width.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from sdd_jax.errors import InputError, within
from sdd_jax.paths import Path, given_path

FILE = "model.safetensors"  # in the folder of a saved network
HEAD = "params/classifier/"
BACKBONE, ENCODER = "/backbone/", "/backbone/encoder/"
TIMM_HEAD_WIDTH = 64  # features of an attention head; a state dict does not state it

HINT = "; torchvision's networks have stem='imagenet', timm's patch_size=16 and images of one size"
HINTED = re.compile(r".*/(stem_|patches|position_embedding)")

# Names of modules in PyTorch, and here.
_MODULES = {
    r"conv1": lambda: "stem_conv",
    r"bn1": lambda: "stem_norm",
    r"layer(\d+)\.(\d+)\.conv(\d)": lambda i, j, k: f"stage{i}_block{j + 1}/Conv_{k - 1}",
    r"layer(\d+)\.(\d+)\.bn(\d)": lambda i, j, k: f"stage{i}_block{j + 1}/BatchNorm_{k - 1}",
    r"layer(\d+)\.(\d+)\.downsample\.0": lambda i, j: f"stage{i}_block{j + 1}/shortcut_conv",
    r"layer(\d+)\.(\d+)\.downsample\.1": lambda i, j: f"stage{i}_block{j + 1}/shortcut_norm",
    r"features\.conv0": lambda: "stem_conv",
    r"features\.norm0": lambda: "stem_norm",
    # With the second dot in the files that torchvision distributes.
    r"features\.denseblock(\d+)\.denselayer(\d+)\.conv\.?(\d)": (
        lambda i, j, k: f"block{i}_layer{j}/Conv_{k - 1}"
    ),
    r"features\.denseblock(\d+)\.denselayer(\d+)\.norm\.?(\d)": (
        lambda i, j, k: f"block{i}_layer{j}/BatchNorm_{k - 1}"
    ),
    r"features\.transition(\d+)\.conv": lambda i: f"transition{i}_conv",
    r"features\.transition(\d+)\.norm": lambda i: f"transition{i}_norm",
    r"features\.norm5": lambda: "norm",
    r"patch_embed\.proj": lambda: "patches",
    r"blocks\.(\d+)\.norm(\d)": lambda i, k: f"block{i + 1}/LayerNorm_{k - 1}",
    r"blocks\.(\d+)\.mlp\.fc(\d)": lambda i, k: f"block{i + 1}/Dense_{k - 1}",
    r"norm": lambda: "norm",
}
_ATTENTION = re.compile(r"blocks\.(\d+)\.attn\.(query|key|value|proj)")
_PARAMETERS = {"cls_token": "class_token", "pos_embed": "position_embedding"}


def start_from(variables: Mapping[str, Any], path: str | os.PathLike) -> dict[str, Any]:
    """Replaces initial variables by those of a file.

    The head keeps its initial values if the file has none, or one for another number of classes. So does
    all but the encoder of a network with one, if the file is of a network without.

    Args:
      variables: ``{"params": ..., "batch_stats": ...}`` of a new network; may be abstract.
      path: a safetensors file, or a folder with ``model.safetensors``.

    Returns:
      The variables, float32 host arrays except for a head that is kept.

    Raises:
      InputError: the file cannot be read, or an array is absent, unknown or of another shape; the
        message names the first one.
    """
    with within("init"):
        return _start_from(variables, weights_file(path))


def _start_from(variables: Mapping[str, Any], file: Path) -> dict[str, Any]:
    arrays: dict[str, Any] = read(file)
    ours: dict[str, Any] = flatten_dict(variables, sep="/")
    if any(name.startswith("params/") for name in arrays):
        named = {name: (name, array) for name, array in arrays.items()}
    else:
        named = dict(_from_pytorch(arrays))
    kernel = f"{HEAD}kernel"
    if any(ENCODER in path for path in ours) and not any(ENCODER in path for path in named):
        named = {
            path.replace(BACKBONE, ENCODER): x
            for path, x in named.items()
            if not path.startswith(HEAD)
        } | {path: (path, x) for path, x in ours.items() if ENCODER not in path}
    elif kernel in ours and (
        kernel not in named or _for_other_classes(named[kernel][1], ours[kernel])
    ):
        named = {path: x for path, x in named.items() if not path.startswith(HEAD)}
        named |= {path: (path, x) for path, x in ours.items() if path.startswith(HEAD)}
    return matched(named, variables, file)


def _for_other_classes(theirs: Any, ours: Any) -> bool:
    """Whether two kernels ``[D, K]`` of a head differ in K alone."""
    return theirs.shape[:-1] == ours.shape[:-1] and theirs.shape != ours.shape


def matched(
    named: Mapping[str, tuple[str, Any]], variables: Mapping[str, Any], file: Path
) -> dict[str, Any]:
    """Arranges arrays as ``variables``.

    Args:
      named: ``{path: (name in the file, array)}``, paths such as ``params/classifier/bias``.
      variables: the variables of the network; may be abstract.
      file: for messages.

    Raises:
      InputError: an array is absent, unknown or of another shape or dtype.
    """
    ours: dict[str, Any] = flatten_dict(variables, sep="/")
    for path in sorted(ours.keys() | named.keys()):
        name, array = named.get(path, (path, None))
        if (theirs := _kind(array)) != (expected := _kind(ours.get(path))):
            hint = HINT if name != path and HINTED.match(path) else ""
            raise InputError(f"{name} is {theirs} in {file} and {expected} in this network{hint}")
    filled = unflatten_dict({path: array for path, (_, array) in named.items()}, sep="/")
    return {part: filled.get(part, {}) for part in variables}


def weights_file(path: str | os.PathLike) -> Path:
    """The safetensors file that a path of a file or folder stands for."""
    file = given_path(path, field="")
    return file / FILE if file.is_dir() else file


def read(file: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a safetensors file.

    Raises:
      InputError: there is no such file, or it is damaged or of another format. Other formats of weights
        are pickles, which can execute code, and are not read.
    """
    content = _content(file)
    try:
        return safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        raise InputError(f"{file} is no intact safetensors file: {error}") from error
    except KeyError as error:
        raise InputError(f"{file} holds arrays of type {error}; save float32") from error


def digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file of parameters, by which a resumed run recognises it.

    Raises:
      InputError: there is no such file, or it cannot be read.
    """
    with within("init"):
        return hashlib.sha256(_content(weights_file(path))).hexdigest()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"must be a safetensors file, got {file} ({reason})") from error


def _from_pytorch(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, tuple[str, Any]]]:
    """``(path here, (name there, array in our layout))``; an unknown name stays as it is."""
    for name, whole in arrays.items():
        if name.endswith(".num_batches_tracked"):
            continue
        parts = {name: whole}
        if ".attn.qkv." in name and len(whole) % 3 == 0:
            keys = [name.replace(".qkv.", f".{part}.") for part in ("query", "key", "value")]
            parts = dict(zip(keys, np.split(whole, 3), strict=True))
        for part, array in parts.items():
            if np.issubdtype(array.dtype, np.floating):
                array = array.astype(np.float32)
            yield _path(part, array), (name, _layout(part, array))


def _path(name: str, array: np.ndarray) -> str:
    """The path of a parameter here."""
    module, _, kind = name.rpartition(".")
    if not module and kind in _PARAMETERS:
        return f"params/backbone/{_PARAMETERS[kind]}"
    kinds = {"weight": "kernel" if array.ndim > 1 else "scale", "bias": "bias"}
    statistics = {"running_mean": "mean", "running_var": "var"}
    kind, collection = (
        (statistics[kind], "batch_stats") if kind in statistics else (kinds.get(kind), "params")
    )
    if kind is not None and module in ("fc", "classifier", "head"):
        return f"{HEAD}{kind}"
    if kind is not None and (match := _ATTENTION.fullmatch(module)):
        projection = "out" if match[2] == "proj" else match[2]
        block = f"block{int(match[1]) + 1}/MultiHeadDotProductAttention_0"
        return f"params/backbone/{block}/{projection}/{kind}"
    for pattern, translate in _MODULES.items() if kind is not None else ():
        if match := re.fullmatch(pattern, module):
            return f"{collection}/backbone/{translate(*map(int, match.groups()))}/{kind}"
    return name


def _layout(name: str, array: np.ndarray) -> np.ndarray:
    """Kernels with the outputs last; those of an attention divided into its heads."""
    if name in _PARAMETERS or array.ndim not in (1, 2, 4):
        return array
    array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    match = _ATTENTION.match(name)
    heads = (-1, TIMM_HEAD_WIDTH)
    if match and match[2] == "proj" and array.ndim == 2 and len(array) % TIMM_HEAD_WIDTH == 0:
        return array.reshape(*heads, array.shape[1])
    if match and match[2] != "proj" and array.shape[-1] % TIMM_HEAD_WIDTH == 0:
        return array.reshape(*array.shape[:-1], *heads)
    return array


def _kind(array: Any) -> str:
    return "absent" if array is None else f"{np.dtype(array.dtype).name}{list(array.shape)}"
