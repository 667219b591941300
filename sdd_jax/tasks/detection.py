"""Boxes around objects."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax import losses
from sdd_jax.errors import require_array
from sdd_jax.tasks import _centre_points as centre_points
from sdd_jax.tasks._average_precision import average_precision, correct
from sdd_jax.tasks.base import Decisions, Task, Window, tasks, yes_or_no

COLUMNS = 8
CLASS, LEFT, TOP, WIDTH, HEIGHT, AREA, CROWD, SCALE = range(COLUMNS)
CONFIDENT = 0.3  # score of a detection that counts as a decision
ORANGE = "#E69F00"


@tasks.register("detection")
class Detection(Task):
    r"""Boxes with one of K classes, at most M in an image.

    Labels are ``[N, M, 5]``: class, left, top, width and height in pixels. A class of -1 says that there
    is no box. Up to three more columns are the area, by default width times height; 1 for a group of
    objects in one box, COCO's ``iscrowd``; and the width of a pixel in the unit of the areas, by
    default 1.

    The network divides an image into cells of 4x4 pixels, as CenterNet does (Zhou et al., `Objects as
    Points <https://arxiv.org/abs/1904.07850>`_, 2019). Its outputs are ``[N, h, w, K + 4]``: logits of
    an object of each class with its centre in a cell, and the offset (x, y) of the centre in the cell
    and the size (width, height) of the box, in cells. The loss is, for an image with n objects,

    .. math:: L = L_\mathrm{focal} + \frac{1}{n} \sum_{i=1}^n \left(
              0.1 \, \lVert \hat s_i - s_i \rVert_1 + \lVert \hat o_i - o_i \rVert_1 \right)

    SD-Dropout compares the classes only, by the Bernoulli divergence. Its term is the mean over the
    cells near an object. Groups are neither objects nor background.

    An evaluation reads detections from the outputs, ``[N, P, 6]``, P at most 100: left, top, width and
    height in pixels, class, and the logit of the class, from the highest. A decision is whether a
    detection is right: whether its box has an intersection over union of at least 0.5 with an object of
    its class that no better detection has. There is one for each detection with a score of at least 0.3,
    and for the best of each image.
    """

    shape = "[N, M, 5 to 8]"
    noun = "detection"
    figures: ClassVar = {"ap": "AP", "ap50": "AP50"}
    moves = True
    whole_images = True
    fixed_decisions = False
    dtypes = "iuf"
    panels = ("",)
    caption = "White: boxes. Orange: detections with a score of at least 30 %, class and score."
    divergence = staticmethod(losses.symmetric_bernoulli_kl)

    def fits(self, labels: np.ndarray, input_shape: tuple[int, ...]) -> bool:
        """Labels ``[N, M, 5]`` to ``[N, M, 8]`` of images ``[N, H, W, C]``, M at least 1."""
        boxes = labels.ndim == 3 and 5 <= labels.shape[2] <= COLUMNS and labels.shape[1] > 0
        return boxes and len(input_shape) == 3 and labels.shape[1:] != input_shape[:-1]

    def count_classes(self, labels: np.ndarray) -> int:
        """The largest class plus one."""
        return int(labels[..., CLASS].max(initial=0)) + 1

    def validated(
        self, name: str, labels: np.ndarray, num_classes: int, allowed: str
    ) -> np.ndarray:
        """The labels as float32 ``[N, M, 8]``, with -1 and zeros where there is no box."""
        boxes = np.zeros((*labels.shape[:-1], COLUMNS), np.float32)
        boxes[..., : labels.shape[-1]] = labels
        classes, sizes = boxes[..., CLASS], boxes[..., WIDTH : HEIGHT + 1]
        require_array(bool(np.isfinite(boxes).all()), name, "nan or infinity", "finite numbers")
        wrong = classes[(classes != np.floor(classes)) | (classes < -1) | (classes >= num_classes)]
        shown = wrong[0] if wrong.size else 0
        require_array(not wrong.size, f"classes of {name}", shown, f"in {allowed}, or -1: no box")
        there = classes >= 0
        smallest = float(sizes[there].min(initial=1))
        require_array(smallest > 0, f"widths and heights of {name}", smallest, "greater than 0")
        if labels.shape[-1] <= AREA:
            boxes[..., AREA] = sizes.prod(axis=-1)
        if labels.shape[-1] <= SCALE:
            boxes[..., SCALE] = 1
        boxes[~there, CLASS + 1 : SCALE] = 0
        return boxes

    def output_shape(
        self, input_shape: tuple[int, ...], label_shape: tuple[int, ...], num_classes: int
    ) -> tuple[int, ...]:
        """``(H / 4, W / 4, K + 4)``."""
        height, width, _ = input_shape
        stride = centre_points.STRIDE
        return (height // stride, width // stride, num_classes + 4)

    def moved(self, labels: Any, window: Window, shape: tuple[int, int]) -> Any:
        """The parts of the boxes in the view. One with less than a pixel of either side is no box."""
        xp = jnp if isinstance(labels, jax.Array) else np
        start_y, start_x, *extent = (xp.asarray(x, labels.dtype) for x in window[:4])
        scale_y, scale_x = (size / of for size, of in zip(shape, extent, strict=True))
        top, left = (labels[:, TOP] - start_y) * scale_y, (labels[:, LEFT] - start_x) * scale_x
        bottom = xp.minimum(top + labels[:, HEIGHT] * scale_y, shape[0])
        right = xp.minimum(left + labels[:, WIDTH] * scale_x, shape[1])
        top, left = xp.maximum(top, 0), xp.maximum(left, 0)
        height, width = bottom - top, right - left
        left = xp.where(window.mirrored, shape[1] - right, left)
        there = (labels[:, CLASS] >= 0) & (height >= 1) & (width >= 1)
        columns = [labels[:, CLASS], left, top, width, height, labels[:, AREA], labels[:, CROWD]]
        none = [-1, 0, 0, 0, 0, 0, 0]
        moved = [xp.where(there, x, y) for x, y in zip(columns, none, strict=True)]
        return xp.stack([*moved, labels[:, SCALE] / scale_x], axis=-1).astype(labels.dtype)

    # -------------------------------------------------------------------------- in a training step

    def loss(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Focal loss of the centres and L1 of offsets and sizes, ``[B]``."""
        return jax.vmap(centre_points.loss)(outputs, *_objects_and_groups(labels))

    def sd_dropout(
        self, samples: Sequence[jax.Array], labels: jax.Array, **options: Any
    ) -> jax.Array:
        """Mean of the Bernoulli divergence over the cells near an object, ``[B]``."""
        logits = [outputs[..., :-4] for outputs in samples]
        boxes, _ = _objects_and_groups(labels)
        heat = jax.vmap(lambda b: centre_points.heat_map(b, logits[0].shape[1:]))(boxes)
        near = jnp.max(heat, axis=-1) > 0
        return self.mean_divergence(logits, near, **options)

    def choices(self, outputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any, Any]:
        """The class of each object, from the K logits of the cell of its centre."""
        boxes, _ = _objects_and_groups(labels)
        logits = jax.vmap(centre_points.at_centres)(outputs, boxes)[..., :-4]
        return logits, boxes[..., CLASS].astype(jnp.int32), boxes[..., CLASS] >= 0

    # ------------------------------------------------------------------------------ in an evaluation

    def read_out(self, outputs: jax.Array) -> jax.Array:
        """Detections ``[B, P, 6]``."""
        return jax.vmap(centre_points.detections)(outputs)

    def probabilities(self, outputs: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Detections with a score, sigmoid(z / T), in place of the logit z."""
        logits = outputs[..., -1:]
        with np.errstate(over="ignore"):
            return np.concatenate([outputs[..., :-1], 1 / (1 + np.exp(-logits / temperature))], -1)

    def decisions(self, outputs: np.ndarray, labels: np.ndarray) -> Decisions:
        """Whether each detection is right."""
        right, logits = correct(outputs, labels), outputs[..., -1]
        counts = logits >= np.log(CONFIDENT / (1 - CONFIDENT))
        counts[:, 0] = True
        example, _ = np.nonzero(counts)
        right = right[counts].astype(np.int32)
        return Decisions(yes_or_no(logits[counts]), right, example, len(labels))

    def metrics(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """COCO's average precision; those of small, medium and large objects if there are any."""
        return average_precision(self.probabilities(outputs), labels)

    def draw(
        self, panels: Sequence[Any], image: np.ndarray, outputs: np.ndarray, labels: np.ndarray
    ) -> None:
        """The image, the boxes of its objects, and the detections with a score of at least 0.3."""
        (axes,) = panels
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        for box in labels[labels[:, CLASS] >= 0]:
            axes.plot(*_outline(box[LEFT : HEIGHT + 1]), color="white", linewidth=2.5)
        by_box: dict[tuple[float, ...], list[str]] = {}  # a cell can have several classes
        for *box, c, score in self.probabilities(outputs):
            if score >= CONFIDENT:
                by_box.setdefault(tuple(box), []).append(f"{c:.0f}: {100 * score:.0f} %")
        for box, classes in by_box.items():
            axes.plot(*_outline(box), color=ORANGE, linewidth=1.2)
            axes.text(*box[:2], ", ".join(classes), color=ORANGE, va="bottom", size=7)


def _outline(box: Sequence[float]) -> tuple[list[float], list[float]]:
    """x and y of the corners of a box: left, top, width, height. Pixels are centred on integers."""
    left, top, width, height = (box[0] - 0.5, box[1] - 0.5, *box[2:])
    x = [left, left + width, left + width, left, left]
    return x, [top, top, top + height, top + height, top]


def _objects_and_groups(labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The boxes ``[B, M, 5]`` of objects, and those of groups; others have the class -1."""
    boxes, group = labels[..., : HEIGHT + 1], labels[..., CROWD] > 0

    def only(there):
        return boxes.at[..., CLASS].set(jnp.where(there, boxes[..., CLASS], -1))

    return only(~group), only(group)
