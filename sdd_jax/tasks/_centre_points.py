"""CenterNet's targets, loss and detections, of one image.

Zhou et al., `Objects as Points <https://arxiv.org/abs/1904.07850>`_, 2019. Boxes are ``[M, 5]``: class
(-1: none), left, top, width and height in pixels. Outputs are ``[h, w, K + 4]``: logits, offset, size.
"""

import jax
import jax.numpy as jnp
from jax import lax

STRIDE = 4  # pixels in a cell, R in the paper
MOST = 100  # detections of an image; COCO counts no more
SIZE_WEIGHT, OFFSET_WEIGHT = 0.1, 1.0  # section 3
ALPHA, BETA = 2, 4  # equation 1


def heat_map(boxes: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    r"""Targets Y ``[h, w, K]`` in [0, 1]: for each class, the maximum over its objects of a Gaussian.

    .. math:: \exp\left(-\frac{(x - x_i)^2 + (y - y_i)^2}{2 \sigma_i^2}\right), \qquad
              \sigma_i = \frac{2 r_i + 1}{6}

    for cells at most :math:`r_i` from the centre in x and in y, and 0 beyond. The radius is that of the
    released code, CornerNet's: 2.8 times, rounded down, the one by which a box can grow on every side
    while its intersection with itself over their union is at least 0.7.
    """
    height, width, num_classes = shape
    column, row = (x.astype(jnp.float32)[:, None, None] for x in _cells(boxes, height, width))
    w, h = boxes[:, 3] / STRIDE, boxes[:, 4] / STRIDE
    half = 0.7 * (w + h)
    radius = jnp.floor(jnp.sqrt(half**2 + 0.84 * w * h) - half)[:, None, None]
    dx = jnp.arange(width, dtype=jnp.float32)[None, None, :] - column
    dy = jnp.arange(height, dtype=jnp.float32)[None, :, None] - row
    heat = jnp.exp(-(dx**2 + dy**2) / (2 * ((2 * radius + 1) / 6) ** 2))
    near = (jnp.maximum(jnp.abs(dx), jnp.abs(dy)) <= radius) & (boxes[:, 0] >= 0)[:, None, None]
    classes = boxes[:, 0].astype(jnp.int32)  # -1 is no segment
    by_class = jax.ops.segment_max(jnp.where(near, heat, 0.0), classes, num_classes)
    return jnp.maximum(jnp.moveaxis(by_class, 0, -1), 0.0)


def loss(outputs: jax.Array, boxes: jax.Array, groups: jax.Array) -> jax.Array:
    r"""The loss of an image with n objects; with p = sigmoid(z) and the targets Y of :func:`heat_map`,

    .. math:: -\frac{1}{n} \sum_{xyc} \begin{cases}
              (1 - p)^2 \log p & \text{if } Y = 1 \\
              (1 - Y)^4 \, p^2 \log (1 - p) & \text{otherwise} \end{cases}

    plus the L1 distances of offset and size, the latter times 0.1. Cells in the boxes of groups are no
    background. n is at least 1.
    """
    logits, there = outputs[..., :-4], boxes[:, 0] >= 0
    heat, p = heat_map(boxes, logits.shape), jax.nn.sigmoid(logits)
    positive = (1 - p) ** ALPHA * jax.nn.log_sigmoid(logits)
    negative = (1 - heat) ** BETA * p**ALPHA * jax.nn.log_sigmoid(-logits)
    background = ~_inside(groups, *logits.shape[:2])[..., None]
    focal = -jnp.sum(jnp.where(heat == 1, positive, jnp.where(background, negative, 0.0)))

    height, width, _ = logits.shape
    cell = jnp.stack(_cells(boxes, height, width), axis=-1).astype(jnp.float32)
    target = jnp.concatenate([_centres(boxes) - cell, boxes[:, 3:5] / STRIDE], axis=-1)
    distances = jnp.abs(at_centres(outputs, boxes)[:, -4:] - target)
    weights = jnp.array([[OFFSET_WEIGHT, OFFSET_WEIGHT, SIZE_WEIGHT, SIZE_WEIGHT]])
    regression = jnp.sum(jnp.where(there[:, None], weights * distances, 0.0))
    return (focal + regression) / jnp.maximum(jnp.sum(there.astype(jnp.float32)), 1)


def at_centres(outputs: jax.Array, boxes: jax.Array) -> jax.Array:
    """The outputs ``[M, K + 4]`` of the cells of the boxes' centres."""
    column, row = _cells(boxes, *outputs.shape[:2])
    return outputs[row, column]


def detections(outputs: jax.Array) -> jax.Array:
    """Detections ``[P, 6]``, P at most 100: left, top, width and height, class, logit, from the highest.

    Where one of the eight cells around has a higher logit of its class, the logit is minus infinity.
    """
    logits = outputs[..., :-4]
    height, width, num_classes = logits.shape
    highest = lax.reduce_window(logits, -jnp.inf, lax.max, (3, 3, 1), (1, 1, 1), "SAME")
    peaks = jnp.where(logits < highest, -jnp.inf, logits)
    best, index = lax.top_k(peaks.reshape(-1), min(MOST, peaks.size))
    cell, classes = jnp.divmod(index, num_classes)
    row, column = jnp.divmod(cell, width)
    offset, size = jnp.split(outputs[row, column, -4:], 2, axis=-1)
    size = jnp.maximum(size, 0.0)
    cells = jnp.stack([column, row], axis=-1).astype(jnp.float32)
    corners = STRIDE * (cells + offset - size / 2)
    extent = jnp.array([[STRIDE * width, STRIDE * height]], jnp.float32)
    first, last = (jnp.clip(x, 0, extent) for x in (corners, corners + STRIDE * size))
    chosen = classes.astype(jnp.float32)
    return jnp.concatenate([first, last - first, chosen[:, None], best[:, None]], axis=-1)


def _cells(boxes: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Column and row ``[M]`` of the cells of the boxes' centres."""
    column, row = jnp.floor(_centres(boxes)).astype(jnp.int32).T
    return jnp.clip(column, 0, width - 1), jnp.clip(row, 0, height - 1)


def _centres(boxes: jax.Array) -> jax.Array:
    """The boxes' centres ``[M, 2]``, x and y, in cells."""
    return (boxes[:, 1:3] + boxes[:, 3:5] / 2) / STRIDE


def _inside(boxes: jax.Array, height: int, width: int) -> jax.Array:
    """Whether the centre of each cell ``[h, w]`` is in one of the boxes."""
    x, y = ((jnp.arange(n, dtype=jnp.float32)[None] + 0.5) * STRIDE for n in (width, height))
    left, top, w, h = (boxes[:, i, None] for i in range(1, 5))
    columns = (x >= left) & (x < left + w) & (boxes[:, :1] >= 0)
    rows = (y >= top) & (y < top + h)
    return jnp.any(rows[:, :, None] & columns[:, None, :], axis=0)
