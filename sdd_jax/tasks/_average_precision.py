"""COCO's average precision, by faster-coco-eval, and which detections are right.

Labels are ``[N, M, 8]`` and detections ``[N, P, 6]``, as of :class:`sdd_jax.tasks.detection.Detection`.
"""

import numpy as np

# The first of COCO's statistics.
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
OVERLAP = 0.5  # intersection over union of a detection that is right


def average_precision(detections: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The mean over classes and over overlaps of 0.5 to 0.95, and so on; nan without an object.

    Args:
      detections: with scores in place of logits.
      labels: the boxes.

    Returns:
      ``ap``, ``ap50``, ``ap75``; ``ap_small``, ``ap_medium`` and ``ap_large`` if there are such objects.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    image, box = np.nonzero(labels[..., 0] >= 0)
    if not len(image):
        return dict.fromkeys(NAMES[:3], float("nan"))
    scale = labels[:, 0, 7]
    boxes = labels[image, box].astype(np.float64)
    annotations = [
        {
            "id": i + 1,
            "image_id": int(n),
            "category_id": int(row[0]),
            "bbox": (row[1:5] * scale[n]).tolist(),
            "area": float(row[5]),
            "iscrowd": int(row[6]),
        }
        for i, (n, row) in enumerate(zip(image, boxes, strict=True))
    ]
    truth = COCO(
        {
            "images": [{"id": n} for n in range(len(labels))],
            "categories": [{"id": int(c)} for c in np.unique(boxes[:, 0])],
            "annotations": annotations,
        }
    )
    found = detections[..., 5] > 0
    image, _ = np.nonzero(found)
    chosen = detections[found].astype(np.float64)
    rows = [image, *(chosen[:, i] * scale[image] for i in range(4)), chosen[:, 5], chosen[:, 4]]
    evaluation = COCOeval_faster(truth, truth.loadRes(np.stack(rows, axis=-1)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    values = zip(NAMES, evaluation.stats, strict=False)
    return {name: float(value) for name, value in values if value >= 0}


def correct(detections: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which detections are right, booleans ``[N, P]``, as COCO decides at an overlap of 0.5.

    From the best on, each detection takes the object of its class that it overlaps most among those
    that none has taken. One in a group is not right, and does not take it.
    """
    right = np.zeros(detections.shape[:2], bool)
    for n, (found, boxes) in enumerate(zip(detections, labels, strict=True)):
        objects = boxes[(boxes[:, 0] >= 0) & (boxes[:, 6] == 0)]
        if not len(objects):
            continue
        overlaps = _overlaps(found[:, :4], objects[:, 1:5])
        overlaps[found[:, 4, None] != objects[:, 0]] = 0
        for p in np.flatnonzero((overlaps >= OVERLAP).any(axis=1)):
            best = overlaps[p].argmax()
            if overlaps[p, best] >= OVERLAP:
                right[n, p], overlaps[:, best] = True, 0
    return right


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union ``[P, M]`` of boxes ``[P, 4]`` and ``[M, 4]``."""
    first = np.maximum(a[:, None, :2], b[:, :2])
    last = np.minimum(a[:, None, :2] + a[:, None, 2:], b[:, :2] + b[:, 2:])
    both = np.maximum(last - first, 0).prod(axis=-1)
    union = a[:, 2:].prod(axis=-1)[:, None] + b[:, 2:].prod(axis=-1) - both
    return both / np.maximum(union, np.finfo(np.float32).tiny)
