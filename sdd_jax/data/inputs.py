"""What a network takes: images, feature vectors or tokens.

A kind of inputs says which arrays it accepts, how they are normalised, and how they are augmented.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data import images
from sdd_jax.data.lazy_images import LazyImages
from sdd_jax.errors import InputError, require, require_array


@dataclasses.dataclass(frozen=True)  # equal to another of its class, for compiled functions
class Inputs:
    """A kind of inputs.

    Attributes:
      name: its name, in the plural, in records and messages.
      noun: what one is called.
      dtype: of the inputs as the network takes them.
    """

    name: ClassVar[str]
    noun: ClassVar[str] = "example"
    dtype: ClassVar[Any] = jnp.float32

    def fits(self, array: np.ndarray) -> bool:
        """Whether an array ``[N, ...]`` is of this kind."""
        raise NotImplementedError

    def validated(self, name: str, array: Any) -> Any:
        """The array in its final shape and dtype.

        Raises:
          InputError: it cannot be used; ``name`` is what the message calls it.
        """
        del name
        return array

    def channels(self, shape: tuple[int, ...]) -> int:
        """Number of means and standard deviations for inputs of this shape."""
        return shape[-1]

    def statistics(self, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations by channel."""
        raise NotImplementedError

    def normalise(self, inputs: jax.Array, mean: Any, std: Any) -> jax.Array:
        """What the network takes, from inputs ``[B, ...]`` as they are stored."""
        raise NotImplementedError

    def augment(
        self, keys: jax.Array, inputs: jax.Array, labels: jax.Array | None, **options: Any
    ) -> tuple[jax.Array, jax.Array | None]:
        """Augments inputs, each by its own key, and labels that move with them."""
        del keys, options
        return inputs, labels

    def check_augmentation(self, shape: tuple[int, ...], options: dict[str, Any]) -> None:
        """Raises an InputError for an option of :func:`sdd_jax.data.images.augment` without a use."""
        for field, value in options.items():
            require(not value, field, value, f"{type(value)()} for {self.name}, not images")


@dataclasses.dataclass(frozen=True)
class Images(Inputs):
    """Images uint8 ``[N, H, W, C]``; pixels in [0, 1] are normalised by channel."""

    name = "images"
    noun = "image"

    def fits(self, array):
        """Of rank 3 or 4."""
        return array.ndim in (3, 4)

    def validated(self, name, array):
        """The images with a channel axis."""
        if array.ndim == 3:
            array = array[..., None]
        require_array(array.dtype == np.uint8, name, array.dtype, "uint8")
        require_array(array.shape[-1] in (1, 3), name, array.shape, "of 1 or 3 channels")
        return array

    def statistics(self, array):
        """From the histogram: exact, and without a floating-point copy of the images."""
        pixels = np.asarray(array)
        counts = np.stack(
            [np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(pixels.shape[-1])]
        )
        shares, levels = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
        mean = shares @ levels
        variance = shares @ levels**2 - mean**2
        return mean, np.sqrt(np.maximum(variance, 1e-6))

    def normalise(self, inputs, mean, std):
        """``(images / 255 - mean) / std``."""
        return images.normalise(inputs, mean, std)

    def augment(self, keys, inputs, labels, **options):
        """:func:`sdd_jax.data.images.augment_pairs`."""
        return images.augment_pairs(keys, inputs, labels, **options)

    def check_augmentation(self, shape, options):
        """The crop must not miss the image."""
        images.check_crop(options["pad"], shape)


@dataclasses.dataclass(frozen=True)
class Features(Inputs):
    """Feature vectors ``[N, D]``, floating-point; normalised by feature."""

    name = "features"

    def fits(self, array):
        """Floating-point of rank 2."""
        return array.ndim == 2 and np.issubdtype(array.dtype, np.floating)

    def validated(self, name, array):
        """The features as finite float32."""
        array = array.astype(np.float32)
        require_array(bool(np.isfinite(array).all()), name, "nan or infinity", "finite numbers")
        return array

    def statistics(self, array):
        """In float64; a constant feature has the standard deviation 1."""
        std = array.std(axis=0, dtype=np.float64)
        return array.mean(axis=0, dtype=np.float64), np.where(std > 0, std, 1.0)

    def normalise(self, inputs, mean, std):
        """``(features - mean) / std``."""
        mean, std = (jnp.asarray(values, jnp.float32).reshape(1, -1) for values in (mean, std))
        return (inputs - mean) / std


@dataclasses.dataclass(frozen=True)
class Tokens(Inputs):
    """Token ids ``[N, L]``, integers of at least 0; 0 is padding."""

    name = "tokens"
    noun = "text"
    dtype = jnp.int32

    def fits(self, array):
        """Integers of rank 2, but uint8, the type of pixels."""
        return (
            array.ndim == 2 and np.issubdtype(array.dtype, np.integer) and array.dtype != np.uint8
        )

    def validated(self, name, array):
        """The ids as int32."""
        low, high = int(array.min(initial=0)), int(array.max(initial=0))
        largest = np.iinfo(np.int32).max
        in_range = low >= 0 and high <= largest
        require_array(in_range, name, low if low < 0 else high, f"in [0, {largest}]")
        return array.astype(np.int32)

    def channels(self, shape):
        """0: nothing is normalised."""
        return 0

    def statistics(self, array):
        """None."""
        return np.zeros(0), np.ones(0)

    def normalise(self, inputs, mean, std):
        """The ids as they are."""
        return inputs


KINDS = {kind.name: kind for kind in (Images(), Features(), Tokens())}


def of_array(name: str, array: np.ndarray | LazyImages) -> Inputs:
    """The kind of an array, ``[N, ...]``.

    Raises:
      InputError: it is of no kind; ``name`` is what the message calls it.
    """
    for kind in KINDS.values():
        if kind.fits(array):
            return kind
    allowed = (
        "[N, H, W, C] or [N, H, W] (uint8: images), [N, D] (floating-point: features) or [N, L] (int32 "
        "or int64: tokens)"
    )
    raise InputError(f"{name} must be {allowed}, got {array.dtype} {list(array.shape)}")
