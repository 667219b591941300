"""The corruptions of CIFAR-10-C that are given by a formula, as pure functions of images and PRNG keys.

A mean over them is not the published mean over 15 corruptions. That mean includes seven that are missing
here (motion, zoom and glass blur, snow, frost, fog, elastic transform) and excludes three that are here
(speckle noise, Gaussian blur, saturation), which the authors keep for validation.

A severity is represented by arrays of the same shapes for all five, so they share one compilation. As in
the authors' code, results are truncated to whole levels, not rounded.

References:
  Hendrycks and Dietterich, `Benchmarking Neural Network Robustness to Common Corruptions and
  Perturbations <https://arxiv.org/abs/1903.12261>`_, 2019.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Shape = tuple[int, int, int]

SEVERITIES = (1, 2, 3, 4, 5)

_FLOAT_ERROR = 1e-3  # in levels: exceeds float32's error, so that level k is not truncated to k - 1

_einsum = functools.partial(jnp.einsum, precision="highest")  # the default is coarser on GPUs, TPUs


@dataclasses.dataclass(frozen=True)
class ImageCorruption:
    """An image corruption with its settings at five severities.

    Attributes:
      apply: ``(key, image, *arrays) -> image``, float32 ``[H, W, C]`` in [0, 1]; :func:`corrupt` clips
        the result.
      settings: one setting for each of `SEVERITIES`.
      arrays: ``(setting, image_shape) -> arrays``, of the same shapes for all settings.
      channels: supported numbers of channels.
    """

    apply: Callable[..., Array]
    settings: tuple[Any, ...]
    arrays: Callable[[Any, Shape], tuple]
    channels: tuple[int, ...]


CORRUPTIONS: dict[str, ImageCorruption] = {}


def names(channels: int) -> tuple[str, ...]:
    """Lists the corruptions that support 1 (grey) or 3 (RGB) channels.

    Raises:
      ValueError: another number of channels.
    """
    if channels not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {channels}")
    return tuple(name for name, kind in CORRUPTIONS.items() if channels in kind.channels)


def parameters(name: str, severity: int, image_shape: Shape) -> tuple[np.ndarray, ...]:
    """Computes the arrays that describe a severity to :func:`corrupt`, in NumPy.

    Args:
      name: a key of `CORRUPTIONS`.
      severity: one of `SEVERITIES`, 5 the strongest.
      image_shape: ``(H, W, C)``.

    Returns:
      float32 arrays, whose shapes depend on the name and the image's shape but not on the severity.

    Raises:
      ValueError: unknown name or severity, or an unsupported number of channels.
    """
    corruption = _get(name, image_shape[-1])
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be one of {SEVERITIES}, got {severity!r}")
    setting = corruption.settings[SEVERITIES.index(severity)]
    return tuple(np.asarray(a, np.float32) for a in corruption.arrays(setting, image_shape))


def corrupt(
    name: str,
    keys: Array,
    images: Array | np.ndarray,
    parameters: tuple[Array | np.ndarray, ...],
) -> Array:
    """Corrupts images, each as a function of itself and its own key alone.

    Args:
      name: a key of `CORRUPTIONS`; static under ``jax.jit``.
      keys: one PRNG key per image, ``[B]``; used by the noise corruptions only.
      images: uint8 ``[B, H, W, C]``.
      parameters: arrays of a severity, from :func:`parameters`.

    Returns:
      uint8 ``[B, H, W, C]``.

    Raises:
      ValueError: unknown name, or an unsupported number of channels.
      TypeError: images that are not uint8.

    Examples:
      >>> images = np.full((1, 2, 2, 1), 100, np.uint8)
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> corrupt("brightness", keys, images, parameters("brightness", 4, (2, 2, 1))).ravel()
      Array([151, 151, 151, 151], dtype=uint8)
    """
    apply = _get(name, images.shape[-1]).apply
    if images.dtype != np.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    arrays = tuple(map(jnp.asarray, parameters))  # a traced index cannot index a NumPy array

    def corrupt_one(key, image):
        corrupted = apply(key, image.astype(jnp.float32) / 255, *arrays)
        return jnp.floor(255 * jnp.clip(corrupted, 0, 1) + _FLOAT_ERROR).astype(jnp.uint8)

    return jax.vmap(corrupt_one)(keys, images)


def _get(name: str, channels: int) -> ImageCorruption:
    allowed = names(channels)
    if name not in allowed:
        raise ValueError(
            f"a corruption of {channels}-channel images must be one of {', '.join(allowed)}, "
            f"got {name!r}"
        )
    return CORRUPTIONS[name]


def _scalars(setting: Any, image_shape: Shape) -> tuple:
    return setting if isinstance(setting, tuple) else (setting,)


def _corruption(
    *settings: Any,
    arrays: Callable[[Any, Shape], tuple] = _scalars,
    channels: tuple[int, ...] = (1, 3),
) -> Callable[[Callable], Callable]:
    """Decorator that registers a function in `CORRUPTIONS` under its own name."""

    def add(apply):
        CORRUPTIONS[apply.__name__] = ImageCorruption(apply, settings, arrays, channels)
        return apply

    return add


def _rounded(x: Array) -> Array:
    """Rounds to whole numbers, halves upwards."""
    return jnp.floor(x + 0.5)


@_corruption(0.04, 0.06, 0.08, 0.09, 0.10)
def gaussian_noise(key: Array, x: Array, std: Array) -> Array:
    r"""Adds sensor noise: :math:`x + \sigma n`, n standard normal."""
    return x + std * jax.random.normal(key, x.shape, x.dtype)


def _poisson_table(white: int, image_shape: Shape) -> tuple:
    """Tabulates ``P(count <= n)`` for 256 levels and n < 512, ``[256, 512]``; returns ``white`` too."""
    mean = np.maximum(np.arange(256) * white / 255, 1e-30)[:, None]
    log_probability = np.cumsum(np.hstack([-mean, np.log(mean / np.arange(1, 512))]), axis=1)
    return np.cumsum(np.exp(log_probability), axis=1), white


@_corruption(500, 250, 100, 75, 50, arrays=_poisson_table)
def shot_noise(key: Array, x: Array, table: Array, white: Array) -> Array:
    r"""Draws photon noise: :math:`\mathrm{Poisson}(c x) / c`, white being c photons.

    An image has only 256 levels, so the distribution function of each is tabulated. The count is the
    quantile of a uniform number, found by bisection: on CPU, ten times faster than
    ``jax.random.poisson``.
    """
    uniform = jax.random.uniform(key, x.shape, x.dtype)
    level = jnp.round(255 * x).astype(jnp.int32)
    count = jnp.zeros_like(level)
    for step in (256, 128, 64, 32, 16, 8, 4, 2, 1):
        count = jnp.where(uniform < table[level, count + step - 1], count, count + step)
    return count.astype(x.dtype) / white


@_corruption(0.01, 0.02, 0.03, 0.05, 0.07)
def impulse_noise(key: Array, x: Array, amount: Array) -> Array:
    """Adds salt and pepper: an element becomes 1 or 0, each with probability ``amount / 2``."""
    uniform = jax.random.uniform(key, x.shape, x.dtype)
    return jnp.where(uniform < amount / 2, 1, jnp.where(uniform < amount, 0, x))


@_corruption(0.06, 0.1, 0.12, 0.16, 0.2)
def speckle_noise(key: Array, x: Array, std: Array) -> Array:
    r"""Adds noise in proportion to the brightness: :math:`x + x \sigma n`, n standard normal."""
    return x + x * std * jax.random.normal(key, x.shape, x.dtype)


def _gaussian_matrices(std: float, image_shape: Shape) -> tuple:
    """Returns blurs of columns ``[H, H]`` and of rows ``[W, W]`` as matrices; edges are repeated."""
    radius = int(4 * std + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-(offsets**2) / (2 * std**2))
    weights /= weights.sum()

    def matrix(size):
        sources = np.clip(np.arange(size) + offsets[:, None], 0, size - 1)
        return np.tensordot(weights, np.eye(size)[sources], axes=1)

    return tuple(matrix(size) for size in image_shape[:2])


@_corruption(0.4, 0.6, 0.7, 0.8, 1, arrays=_gaussian_matrices)
def gaussian_blur(key: Array, x: Array, rows: Array, columns: Array) -> Array:
    """Convolves with a Gaussian, truncated at four standard deviations."""
    return _einsum("ih,hwc,jw->ijc", rows, x, columns)


def _disk(setting: tuple[float, float], image_shape: Shape) -> tuple:
    """Returns the kernel ``[5, 5]`` of a disk whose edge is softened by a 3 x 3 Gaussian."""
    radius, std = setting
    offsets = np.arange(-2, 3)
    disk = (offsets**2 + offsets[:, None] ** 2 <= radius**2).astype(float)
    gaussian = np.exp(-(np.arange(-1, 2) ** 2) / (2 * std**2))
    gaussian /= gaussian.sum()
    for _ in range(2):
        disk = np.stack([np.convolve(row, gaussian, "same") for row in disk]).T
    return (disk / disk.sum(),)


@_corruption((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1), arrays=_disk)
def defocus_blur(key: Array, x: Array, kernel: Array) -> Array:
    """Convolves with a disk, like a lens out of focus; the image is mirrored at its edges."""
    height, width, _ = x.shape
    size = kernel.shape[0]
    padded = jnp.pad(x, ((size // 2, size // 2), (size // 2, size // 2), (0, 0)), mode="reflect")
    shifted = (
        kernel[i, j] * padded[i : i + height, j : j + width]
        for i, j in itertools.product(range(size), repeat=2)
    )
    return functools.reduce(jnp.add, shifted)


@_corruption(0.05, 0.1, 0.15, 0.2, 0.3)
def brightness(key: Array, x: Array, amount: Array) -> Array:
    r"""Increases the value V of HSV, the largest channel, and keeps hue and saturation.

    .. math:: x V' / V, \qquad V' = \min(V + c, 1)

    A black pixel becomes grey, of value V'.
    """
    value = x.max(axis=-1, keepdims=True)
    return jnp.minimum(value + amount, 1) * jnp.where(value > 0, x / jnp.maximum(value, 1e-3), 1)


@_corruption(0.75, 0.5, 0.4, 0.3, 0.15)
def contrast(key: Array, x: Array, factor: Array) -> Array:
    r"""Moves each channel towards its mean over the image: :math:`(x - \bar x) c + \bar x`."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * factor + mean


@_corruption((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2), channels=(3,))
def saturate(key: Array, x: Array, factor: Array, offset: Array) -> Array:
    r"""Changes the saturation S of HSV and keeps hue and value.

    .. math::
       V (1 - S' t), \qquad S' = \mathrm{clip}(a S + b, 0, 1), \qquad t = (V - x) / (V - \min x)

    where V is the largest channel and S = (V - min x) / V. Grey has the hue of red, t = (0, 1, 1), so
    b > 0 makes it reddish, as in the authors' code.
    """
    value = x.max(axis=-1, keepdims=True)
    spread = value - x.min(axis=-1, keepdims=True)
    saturation = jnp.clip(factor * spread / jnp.maximum(value, 1e-3) + offset, 0, 1)
    red = jnp.array([[[0, 1, 1]]], x.dtype)
    return value * (
        1 - saturation * jnp.where(spread > 0, (value - x) / jnp.maximum(spread, 1e-3), red)
    )


def _box_resize(size: int, new_size: int) -> np.ndarray:
    """Returns resizing as a matrix ``[new_size, size]``: each new pixel is the mean over its window.

    The order of operations is Pillow's: where a window ends on a pixel's centre, rounding decides.
    """
    scale = size / new_size
    width = max(scale, 1)
    pixel, middle = np.arange(size), (np.arange(new_size)[:, None] + 0.5) * scale
    first, end = (np.floor(middle + sign * width / 2 + 0.5) for sign in (-1, 1))
    offset = (pixel - middle + 0.5) * (1 / width)
    inside = (first <= pixel) & (pixel < end) & (offset > -0.5) & (offset <= 0.5)
    return inside / inside.sum(axis=1, keepdims=True)


def _pixelate_matrices(scale: float, image_shape: Shape) -> tuple:
    """Returns resizing to ``scale`` times the size and back, as matrices ``[H, H]`` and ``[W, W]``."""

    def matrix(size):
        small = max(int(size * scale), 1)
        return _box_resize(small, size) @ _box_resize(size, small)

    return tuple(matrix(size) for size in image_shape[:2])


@_corruption(0.95, 0.9, 0.85, 0.75, 0.65, arrays=_pixelate_matrices)
def pixelate(key: Array, x: Array, rows: Array, columns: Array) -> Array:
    """Shrinks the image and enlarges it again, as Pillow's box filter: rounded after each axis."""
    levels = _rounded(_einsum("jw,hwc->hjc", columns, jnp.round(255 * x)))
    return _rounded(_einsum("ih,hwc->iwc", rows, levels)) / 255


# Tables K.1 and K.2 of the standard, for luminance and chrominance.
_LUMA_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_CHROMA_TABLE = np.pad(
    [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]],
    (0, 4),
    constant_values=99,
)


def _quantisation_tables(quality: int, image_shape: Shape) -> tuple:
    """Scales the tables of luminance and chrominance, ``[8, 8]`` each, to a quality in 1..100."""
    percent = 200 - 2 * quality if quality >= 50 else 5000 // quality
    tables = (_LUMA_TABLE, _CHROMA_TABLE)
    return tuple(np.clip((table * percent + 50) // 100, 1, 255) for table in tables)


# Between RGB and YCbCr, in units of 2^-16: ITU-T T.871 (JFIF), section 7.
_TO_YCC = np.array(
    [[19595, 38470, 7471], [-11058, -21710, 32768], [32768, -27439, -5329]], np.int32
)
_FROM_YCC = np.array([[65536, 0, 91881], [65536, -22554, -46802], [65536, 116130, 0]], np.int32)
_IS_CHROMA = np.array([0, 1, 1], np.int32)[:, None, None]

# Left half of sqrt(8) times the orthogonal DCT, row k being frequency k, in units of 2^-13. The right
# half is its mirror image, negated in odd rows. Some elements differ by 1 from the rounded cosine,
# because libjpeg computes them from rounded constants.
_DCT_LEFT = np.array(
    [
        [8192, 8192, 8192, 8192],
        [11363, 9633, 6437, 2260],
        [10703, 4433, -4433, -10703],
        [9633, -2259, -11362, -6436],
        [8192, -8192, -8192, 8192],
        [6437, -11362, 2261, 9633],
        [4433, -10704, 10704, -4433],
        [2260, -6436, 9633, -11363],
    ],
    np.int32,
)
_DCT = np.hstack([_DCT_LEFT, _DCT_LEFT[:, ::-1] * np.array([[1], [-1]] * 4, np.int32)])


@_corruption(80, 65, 58, 50, 40, arrays=_quantisation_tables)
def jpeg_compression(key: Array, x: Array, luma_table: Array, chroma_table: Array) -> Array:
    """Encodes and decodes as Pillow (libjpeg) does by default; grey images have luminance only.

    Colour is coded as luminance and chrominance, the latter at half the resolution. Huffman coding is
    lossless and left out. The arithmetic is libjpeg's, in integers, so results are equal to the bit;
    floating-point arithmetic changes about a tenth of the pixels.

    References:
      `ITU-T T.81 <https://www.w3.org/Graphics/JPEG/itu-t81.pdf>`_, 1992; `libjpeg-turbo
      <https://github.com/libjpeg-turbo/libjpeg-turbo>`_ for sampling, edges and rounding.
    """
    levels = jnp.round(255 * x).astype(jnp.int32)
    if x.shape[-1] == 1:
        return _quantised(levels[..., 0], luma_table)[..., None] / 255
    ycc = jnp.einsum("yc,hwc->yhw", _TO_YCC, levels)
    ycc = _shifted(ycc - _IS_CHROMA, 16) + 128 * _IS_CHROMA  # chrominance rounds halves downwards
    luma = _quantised(ycc[0], luma_table)
    chroma = [_at_half_resolution(plane, chroma_table) for plane in ycc[1:]]
    ycc = jnp.stack([luma, *chroma]) - 128 * _IS_CHROMA
    return _shifted(jnp.einsum("cy,yhw->hwc", _FROM_YCC, ycc), 16) / 255


def _shifted(x: Array, bits: int) -> Array:
    """Divides by ``2**bits`` and rounds, halves upwards."""
    return (x + (1 << (bits - 1))) >> bits


def _quantised(plane: Array, table: Array) -> Array:
    """Quantises the DCT of 8 x 8 blocks of levels ``[H, W]``; edge pixels fill the last blocks."""
    height, width = plane.shape
    plane = jnp.pad(plane, ((0, -height % 8), (0, -width % 8)), mode="edge")
    blocks = plane.reshape(plane.shape[0] // 8, 8, plane.shape[1] // 8, 8) - 128
    rows = _shifted(jnp.einsum("vj,aibj->aibv", _DCT, blocks), 11)  # in quarters
    frequencies = _shifted(jnp.einsum("ui,aibv->aubv", _DCT, rows), 15)  # in eighths
    step = table.astype(jnp.int32)[None, :, None, :]
    multiples = jnp.sign(frequencies) * ((jnp.abs(frequencies) + 4 * step) // (8 * step))
    rows = _shifted(jnp.einsum("ui,aubv->aibv", _DCT, multiples * step), 11)
    blocks = _shifted(jnp.einsum("vj,aibv->aibj", _DCT, rows), 18)
    return jnp.clip(blocks + 128, 0, 255).reshape(plane.shape)[:height, :width]


def _at_half_resolution(plane: Array, table: Array) -> Array:
    """Quantises the means of 2 x 2 pixels and interpolates back to ``[H, W]``."""
    height, width = plane.shape
    plane = jnp.pad(plane, ((0, -height % 2), (0, -width % 16)), mode="edge")
    blocks = plane.reshape(plane.shape[0] // 2, 2, plane.shape[1] // 2, 2)
    sums = blocks.sum(axis=(1, 3), dtype=plane.dtype)
    odd = np.arange(sums.shape[1], dtype=np.int32)[None] % 2  # odd columns round the other way
    plane = _quantised((sums + 1 + odd) // 4, table)[: -(-height // 2), : -(-width // 2)]
    for _ in range(2):
        plane = _doubled_rows(plane).T
    odd = np.arange(plane.shape[1], dtype=np.int32)[None] % 2
    return ((plane + 8 - odd) // 16)[:height, :width]


def _doubled_rows(plane: Array) -> Array:
    """Interpolates a quarter of a row before and after each row, times four: ``[2 H, W]``."""
    padded = jnp.pad(plane, ((1, 1), (0, 0)), mode="edge")
    pairs = jnp.stack([3 * plane + padded[:-2], 3 * plane + padded[2:]], axis=1)
    return pairs.reshape(-1, plane.shape[1])
