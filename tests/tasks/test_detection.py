"""Detection against numpy, and against pycocotools."""

import contextlib
import io
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import sdd_jax
from sdd_jax import models, objectives
from sdd_jax.data import images
from sdd_jax.data.engines import RawBatch
from sdd_jax.devices import AXIS, mapped
from sdd_jax.errors import InputError
from sdd_jax.prng import example_keys
from sdd_jax.tasks import Window, tasks
from sdd_jax.training import state as train_state
from sdd_jax.training.optimizers import Optimizer
from sdd_jax.training.step import train_step

DETECTION = tasks.get("detection")()
NO_BOX = [-1, 0, 0, 0, 0]
K = 3


def random_boxes(rng, count, most, side=64, smallest=4):
    """Labels ``[count, most, 5]`` of boxes within images of ``side`` pixels."""
    labels = np.zeros((count, most, 5), np.float32)
    labels[..., 0] = rng.integers(-1, K, (count, most))
    labels[..., 3:5] = rng.uniform(smallest, side / 2, (count, most, 2))
    labels[..., 1:3] = rng.uniform(0, side - labels[..., 3:5])
    return labels


def validated(labels):
    return DETECTION.validated("labels", np.asarray(labels), K, "[0, 3)")


# -------------------------------------------------------------------------------------- the loss


def gaussian(box, x, y):
    """The target of the cell at (x, y) for one box, by the definition of the radius."""
    _, left, top, width, height = box
    column, row = (left + width / 2) // 4, (top + height / 2) // 4
    width, height = width / 4, height / 4
    grown = np.linspace(0, 20, 200_001)  # by how much a box may grow on every side
    overlaps = width * height / ((width + 2 * grown) * (height + 2 * grown))
    radius = np.floor(2.8 * grown[overlaps >= 0.7].max())
    if max(abs(x - column), abs(y - row)) > radius:
        return 0.0
    sigma = (2 * radius + 1) / 6
    return np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * sigma**2))


def loss_of_an_image(outputs, objects, groups):
    """The equations of the paper, cell by cell."""
    total, n = 0.0, max(1, len(objects))
    for y, x, c in np.ndindex(*outputs.shape[:2], K):
        z = outputs[y, x, c]
        p, target = 1 / (1 + np.exp(-z)), 0.0
        for box in objects:
            target = max(target, gaussian(box, x, y) if box[0] == c else 0.0)
        u, v = 4 * x + 2, 4 * y + 2
        in_group = any(b[1] <= u < b[1] + b[3] and b[2] <= v < b[2] + b[4] for b in groups)
        if target == 1:
            total -= (1 - p) ** 2 * np.log(p)
        elif not in_group:
            total -= (1 - target) ** 4 * p**2 * np.log(1 - p)
    for _, left, top, width, height in objects:
        x, y = (left + width / 2) / 4, (top + height / 2) / 4
        found = outputs[int(y), int(x), K:]
        total += abs(found[0] - (x - int(x))) + abs(found[1] - (y - int(y)))
        total += 0.1 * (abs(found[2] - width / 4) + abs(found[3] - height / 4))
    return total / n


def test_the_loss_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    labels = validated(random_boxes(rng, 4, 5))
    labels[0, :, 0] = -1  # no object
    labels[1, 0, 0], labels[1, 0, 6] = 0, 1  # a group of objects
    outputs = rng.normal(size=(4, 16, 16, K + 4)) - 1
    expected = []
    for z, boxes in zip(outputs, labels, strict=True):
        there = boxes[boxes[:, 0] >= 0].astype(np.float64)
        expected.append(
            loss_of_an_image(z, there[there[:, 6] == 0, :5], there[there[:, 6] == 1, :5])
        )
    values = DETECTION.loss(jnp.float32(outputs), jnp.asarray(labels))
    np.testing.assert_allclose(values, expected, rtol=2e-5)


def test_the_loss_and_its_gradient_are_finite_at_large_logits():
    labels = jnp.asarray(validated(random_boxes(np.random.default_rng(1), 2, 3)))
    outputs = jnp.where(jnp.arange(16).reshape(1, 16, 1, 1) % 2 == 0, 1e4, -1e4)
    outputs = jnp.broadcast_to(outputs, (2, 16, 16, K + 4))
    value, gradient = jax.value_and_grad(lambda z: jnp.sum(DETECTION.loss(z, labels)))(outputs)
    assert np.isfinite([value, *np.asarray(gradient).flat]).all()


# ------------------------------------------------------------------------------------- the step


def experiment(axis_name=None):
    rng = np.random.default_rng(2)
    model = models.build({"name": "centernet", "width": 2, "features": 4}, num_classes=K)
    labels = validated(random_boxes(rng, 8, 4, side=32))
    for i in range(4):  # devices with unequal numbers of objects
        labels[i, :i, 0] = -1
    optimizer = Optimizer(optax.sgd(0.1))
    base = objectives.objectives.build({"name": "cross_entropy"})
    state = train_state.create(model, optimizer, seed=0, image_shape=(32, 32, 3))
    step = partial(
        train_step,
        model=model,
        objective=objectives.with_sd_dropout(base, 0.7),
        optimizer=optimizer,
        prepare=lambda keys, raw: raw,
        task=DETECTION,
        seed=0,
        axis_name=axis_name,
    )
    index = np.arange(8, dtype=np.int32)
    inputs = rng.normal(size=(8, 32, 32, 3)).astype(np.float32)
    return model, step, state, RawBatch((inputs,), labels, index, index)


def test_sd_dropout_is_the_bernoulli_divergence_near_objects():
    model, step, state, raw = experiment()
    _, values = jax.jit(step)(state, raw)
    features, _ = model.apply(
        state.variables, raw.views[0], method="features", train=True, mutable=["batch_stats"]
    )
    divergences = sdd_jax.sd_dropout_loss(
        features,
        lambda f: model.apply(state.variables, f, method="head")[..., :K],
        example_keys(0, "sd_dropout", state.step, raw.position),
        divergence=sdd_jax.symmetric_bernoulli_kl,
    )
    expected = []
    for d, boxes in zip(np.asarray(divergences), raw.labels, strict=True):
        objects = boxes[boxes[:, 0] >= 0, :5]
        near = np.array(
            [[any(gaussian(b, x, y) > 0 for b in objects) for x in range(8)] for y in range(8)]
        )
        expected.append(d[near].mean() if near.any() else 0.0)
    np.testing.assert_allclose(values["sd_dropout"], np.mean(expected), rtol=1e-4)


def test_four_devices_with_unequal_numbers_of_objects_make_the_step_of_one():
    _, alone, state, raw = experiment()
    _, sharded, _, _ = experiment(AXIS)
    # Batch norm sees a device's share alone unless its model knows the axis.
    model = models.build(
        {"name": "centernet", "width": 2, "features": 4}, num_classes=K, axis_name=AXIS
    )
    after, expected = jax.jit(alone)(state, raw)
    parts = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), raw)
    call = mapped(partial(sharded, model=model), in_axes=(None, 0), parallel="pmap")
    together, values = call(state, parts)
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        together.params,
        after.params,
    )


# ------------------------------------------------------------------------- labels that move


@pytest.mark.parametrize("backend", [np, jnp])
@pytest.mark.parametrize(
    "window",
    [
        Window(0, 0, 32, 40),
        Window(-5, 7, 32, 40, True),
        Window(8, -4, 16, 20),
        Window(3, 2, 64, 80),
    ],
)
def test_a_box_moves_as_the_pixels_in_it(backend, window):
    """The map of the box, moved by the task of pixels, spans the moved box."""
    box, shape = [1, 12, 9, 14, 12], (32, 40)
    label_map = np.zeros(shape, np.uint8)
    label_map[9:21, 12:26] = 1
    moved = DETECTION.moved(backend.asarray(validated([[box, NO_BOX]])[0]), window, shape)
    view = tasks.get("segmentation")().moved(backend.asarray(label_map), window, shape)
    rows, columns = np.nonzero(np.asarray(view) == 1)
    found = [1, columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    np.testing.assert_array_equal(moved[0, :5], found)
    np.testing.assert_allclose(moved[0, 5], 14 * 12)  # the area is that in the image
    np.testing.assert_allclose(moved[:, 7], window.width / 40)
    np.testing.assert_array_equal(moved[1, :5], NO_BOX)


def test_a_box_outside_the_view_is_none():
    labels = validated([[[0, 0, 0, 10, 10], [2, 9.5, 0, 10, 10]]])[0]
    moved = DETECTION.moved(labels, Window(0, 19, 20, 20), (20, 20))
    np.testing.assert_array_equal(moved[:, :5], [NO_BOX, NO_BOX])
    moved = DETECTION.moved(labels, Window(0, 18.5, 20, 20), (20, 20))
    np.testing.assert_array_equal(moved[:, :5], [NO_BOX, [2, 0, 0, 1, 10]])


def test_training_crops_and_mirrors_boxes_with_their_images():
    """Each image is black but for its box."""
    rng = np.random.default_rng(3)
    pixels, boxes = np.zeros((20, 24, 24, 1), np.uint8), np.zeros((20, 1, 5), np.int32)
    for image, (box,) in zip(pixels, boxes, strict=True):
        width, height = rng.integers(4, 12, 2)
        left, top = rng.integers(24 - width), rng.integers(24 - height)
        image[top : top + height, left : left + width], box[:] = 9, (0, left, top, width, height)
    keys = jax.random.split(jax.random.key(0), 20)
    options = {"move": DETECTION.moved, "pad": 6, "flip": True}
    views, moved = images.augment_pairs(keys, pixels, jnp.asarray(validated(boxes)), **options)
    gone = 0
    for view, box in zip(np.asarray(views)[..., 0], np.asarray(moved)[:, 0, :5], strict=True):
        rows, columns = np.nonzero(view)
        if len(rows):
            found = [0, columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        else:
            found, gone = NO_BOX, gone + 1
        np.testing.assert_array_equal(box, found)
    assert gone < 10


# ---------------------------------------------------------------------- detections and their figures


def test_outputs_that_are_the_targets_give_the_boxes():
    labels = [[0, 3, 5, 10, 12], [2, 30, 31, 20, 9], [1, 40, 2, 14, 25]]
    outputs = np.full((16, 16, K + 4), -5.0, np.float32)
    for score, (c, left, top, width, height) in enumerate(labels, start=1):
        x, y = (left + width / 2) / 4, (top + height / 2) / 4
        outputs[int(y), int(x), c] = score
        outputs[int(y), int(x), K:] = x % 1, y % 1, width / 4, height / 4
        outputs[int(y) + 1, int(x), c] = score - 0.5  # lower than its neighbour: no peak
    found = np.asarray(DETECTION.read_out(jnp.asarray(outputs[None])))[0]
    assert found.shape == (100, 6)
    for score, box, detection in zip((3, 2, 1), labels[::-1], found, strict=False):
        np.testing.assert_allclose(detection, [*box[1:], box[0], score], atol=1e-5)
    assert (found[3:, 5] <= -5).all()


def pycocotools(detections, labels, overlaps=None):
    """The evaluation by the reference implementation; areas and boxes in the units of ``scale``."""
    annotations = []
    for n, boxes in enumerate(labels):
        for box in boxes[boxes[:, 0] >= 0].astype(np.float64):
            fields = {"id": len(annotations) + 1, "image_id": n, "category_id": int(box[0])}
            fields |= {"bbox": list(box[1:5] * box[7]), "area": box[5], "iscrowd": int(box[6])}
            annotations.append(fields)
    found = [
        {"image_id": n, "category_id": int(d[4]), "bbox": list(d[:4] * labels[n, 0, 7]),
         "score": float(d[5])}
        for n, rows in enumerate(detections.astype(np.float64)) for d in rows
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": n} for n in range(len(labels))],
            "annotations": annotations,
            "categories": [{"id": c} for c in range(K)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        if overlaps:
            evaluation.params.iouThrs = np.array(overlaps)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize() if not overlaps else None
    return evaluation


@pytest.fixture(scope="module")
def found():
    """Detections of logits near the objects of some images, and the labels."""
    rng = np.random.default_rng(4)
    labels = validated(random_boxes(rng, 30, 6))
    labels[..., 7] = rng.uniform(0.5, 8, (30, 1))  # small, medium and large objects
    labels[..., 5] = labels[..., 3] * labels[..., 4] * labels[..., 7] ** 2
    labels[::3, 1, 6] = 1
    detections = np.zeros((30, 20, 6), np.float32)
    for n, boxes in enumerate(labels):
        chosen = boxes[rng.integers(6, size=20)]
        noise = rng.normal(size=(20, 4)) * rng.choice([0.3, 3.0], (20, 1))
        detections[n, :, :4] = np.maximum(chosen[:, 1:5] + noise, 0.5)
        detections[n, :, 4] = np.where(rng.random(20) < 0.8, chosen[:, 0], rng.integers(K, size=20))
    detections[..., 4] = np.maximum(detections[..., 4], 0)
    detections[..., 5] = -np.sort(-rng.normal(size=(30, 20)), axis=-1)
    return detections, labels


def test_average_precision_is_that_of_pycocotools(found):
    outputs, labels = found
    expected = pycocotools(DETECTION.probabilities(outputs), labels).stats[:6]
    values = DETECTION.metrics(outputs, labels)
    assert list(values) == ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
    np.testing.assert_allclose(list(values.values()), expected, rtol=1e-6)
    assert 0.05 < values["ap"] < values["ap50"] < 0.95


def test_decisions_are_the_matches_of_pycocotools(found):
    outputs, labels = found
    outputs, labels = outputs.copy(), labels.copy()
    outputs[0, :, 5] -= 10  # of an image without a confident detection, the best counts
    labels[..., 6] = 0  # pycocotools matches groups, too
    scores = DETECTION.probabilities(outputs)
    evaluation = pycocotools(scores, labels, [0.5])
    matched = {
        (entry["image_id"], entry["category_id"], np.float32(score)): bool(match)
        for entry in evaluation.evalImgs
        if entry is not None and entry["aRng"] == [0, 1e10]
        for score, match in zip(entry["dtScores"], entry["dtMatches"][0], strict=True)
    }
    decisions = DETECTION.decisions(outputs, labels)
    chosen = [
        (n, int(d[4]), np.float32(d[5]))
        for n, rows in enumerate(scores) for p, d in enumerate(rows) if d[5] >= 0.3 or p == 0
    ]  # fmt: skip
    assert decisions.labels.tolist() == [matched[key] for key in chosen]
    assert decisions.example.tolist() == [n for n, *_ in chosen]
    assert decisions.num_examples == 30
    probability = 1 / (1 + np.exp(-np.diff(decisions.logits, axis=-1)[:, 0]))
    np.testing.assert_allclose(probability, [score for *_, score in chosen], rtol=1e-6)
    assert 0.1 < decisions.labels.mean() < 0.9


def test_a_detection_in_a_group_is_not_right():
    box = [0, 10, 10, 20, 20, 400, 1, 1]
    outputs = np.array([[[10, 10, 20, 20, 0, 3.0]]])
    assert DETECTION.decisions(outputs, validated([[box]])).labels.tolist() == [0]
    box[6] = 0
    assert DETECTION.decisions(outputs, validated([[box]])).labels.tolist() == [1]


def test_images_without_objects_have_no_average_precision():
    outputs, labels = np.zeros((2, 3, 6)), validated([[NO_BOX]] * 2)
    assert np.isnan(list(DETECTION.metrics(outputs, labels).values())).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 1, 1, 0, 5]], "widths and heights of labels must be greater than 0, got 0.0"),
        ([[3, 1, 1, 4, 5]], r"classes of labels must be in \[0, 3\), or -1: no box, got 3.0"),
        ([[0.5, 1, 1, 4, 5]], r"classes of labels must be in \[0, 3\), or -1: no box, got 0.5"),
        ([[0, np.nan, 1, 4, 5]], "labels must be finite numbers, got nan or infinity"),
    ],
)
def test_what_is_no_box_is_one_line(labels, message):
    with pytest.raises(InputError, match=message):
        validated([labels])
