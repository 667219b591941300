"""Every task from training to the report and to Python, on small arrays in a file."""

import json
from typing import ClassVar

import flax.linen as nn
import numpy as np
import pytest

import sdd_jax
from sdd_jax import config as configs
from sdd_jax.errors import InputError
from sdd_jax.evaluate import evaluate_workdir
from sdd_jax.experiment import load_experiment
from sdd_jax.models import Classifier, models
from sdd_jax.models.centernet import CenterNet
from sdd_jax.tasks import tasks
from sdd_jax.train import train_and_evaluate

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(96, 6))
SETS = (FEATURES @ RNG.normal(size=(6, 3)) > 0).astype(int)
TOKENS = RNG.integers(1, 15, (96, 8))
TOKENS[::2] += 15  # the classes have no token in common
IMAGES = RNG.integers(0, 256, (96, 8, 8, 3), dtype=np.uint8)
MAPS = IMAGES.argmax(axis=-1)  # the strongest colour of each pixel
MAPS[:, 0] = 255
SQUARES, BOXES = np.zeros((96, 16, 16, 3), np.uint8), np.zeros((96, 2, 5))
for image, (box, none) in zip(SQUARES, BOXES, strict=True):
    colour, (left, top) = RNG.integers(3), RNG.integers(8, size=2)
    image[top : top + 8, left : left + 8, colour], box[:] = 255, (colour, left, top, 8, 8)
    none[0] = -1
CASES = {
    "features": (FEATURES, SETS[:, 0], "linear", {}),
    "multi_label": (FEATURES, SETS, "mlp", {"width": 16, "depth": 1}),
    "tokens": (TOKENS, TOKENS[:, 0] // 15, "bag_of_tokens",
               {"vocabulary": 30, "embedding": 8, "width": 8}),
    "segmentation": (IMAGES, MAPS, "pixels_in_test", {}),
    "detection": (SQUARES, BOXES, "cells_in_test", {}),
}  # fmt: skip


@models.register("pixels_in_test")
def pixels(*, num_classes: int) -> Classifier:
    return Classifier(Pixels(), num_classes)


class Pixels(nn.Module):
    @nn.compact
    def __call__(self, images, *, train, dropout_keys):
        return nn.relu(nn.Dense(16)(images))


@models.register("cells_in_test")
def cells(*, num_classes: int) -> CenterNet:
    return CenterNet(Cells(), num_classes)


class Cells(nn.Module):
    @nn.compact
    def __call__(self, images, *, train, dropout_keys):
        x = nn.relu(nn.Conv(32, (12, 12), (4, 4))(images))
        return nn.relu(nn.Dense(64)(x))


@tasks.register("exact_in_test")
class Exact(tasks.get("multi_label")):
    figures: ClassVar = {"exact": "exact match"}

    def metrics(self, outputs, labels):
        return {"exact": float(np.mean(((outputs > 0) == labels).all(axis=-1)))}


def small(folder, case):
    inputs, labels, network, options = CASES[case]
    np.savez(
        folder / "data.npz",
        train_images=inputs[:64], train_labels=labels[:64],
        test_images=inputs[64:], test_labels=labels[64:],
    )  # fmt: skip
    config = configs.default()
    config.dataset.name = f"npz:{folder / 'data.npz'}"
    config.dataset.validation = 0.25
    config.model = models.options(network, **options)
    config.optimizer.learning_rate = 0.1
    config.sd_dropout.weight = 0.1
    config.batch_size = 16
    epochs = 64 if case == "detection" else 8
    config.duration = f"{epochs} epochs"
    config.eval_every = config.checkpoint_every = f"{epochs // 2} epochs"
    config.log_to = ()
    return config


@pytest.fixture(scope="module", params=list(CASES))
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    config = small(folder, request.param)
    result = train_and_evaluate(config, str(folder / "run"))
    return request.param, folder / "run", result


def test_a_run_reports_the_metric_of_its_task(trained, capsys):
    case, folder, result = trained
    own = {"multi_label": "eval/map", "segmentation": "eval/miou", "detection": "eval/ap"}
    own = own.get(case, "eval/accuracy")
    chance = {"multi_label": 0.6, "segmentation": 0.4, "detection": 0.1}.get(case, 0.55)
    assert chance < result[own] <= 1
    assert {"eval/accuracy", "eval/nll", "eval/ece"} <= result.keys()
    record = json.loads((folder / "config.json").read_text())["network"]
    task = case if own != "eval/accuracy" else "classification"
    assert record["task"] == task
    assert train_and_evaluate(small(folder.parent, case), str(folder)) == result  # it is finished
    assert f"{own} {result[own]:.4f}" in capsys.readouterr().out


def test_all_checks_that_apply_give_a_report(trained, capsys):
    case, folder, result = trained
    found = evaluate_workdir(folder, "all", overrides={"eval.mc_samples": 3})
    np.testing.assert_allclose(found["eval/accuracy"], result["eval/accuracy"], rtol=1e-6)
    assert found["eval/calibration/scaled/nll"] > 0
    checks = json.loads((folder / "eval" / "checks.json").read_text())
    expected = {"accuracy", "calibration"}
    if case != "detection":
        expected |= {"mc_dropout"}
        assert 0 < found["eval/mc_dropout/3/accuracy"] <= 1
    assert {name for name, record in checks.items() if record["metrics"]} == expected
    assert (folder / "eval" / "examples.png").is_file() == (case in ("detection", "segmentation"))
    intervals = checks["accuracy"]["intervals"]
    low, high = intervals["accuracy"]
    assert low < found["eval/accuracy"] < high
    nouns = {"multi_label": "label", "segmentation": "pixel", "tokens": "text"}
    noun = (nouns | {"detection": "detection"}).get(case, "example")
    assert f"validation {noun}s" in capsys.readouterr().out


def test_a_run_predicts_from_python(trained, tmp_path):
    case, folder, result = trained
    inputs, labels, *_ = CASES[case]
    run = sdd_jax.load(folder)
    probabilities = run.predict(inputs[64:])
    if case == "multi_label":
        assert probabilities.shape == (32, 3)
        accuracy = np.mean((probabilities > 0.5) == labels[64:])
    elif case == "detection":
        assert probabilities.shape == (32, 4 * 4 * 3, 6)
        assert np.all((probabilities[..., 5] >= 0) & (probabilities[..., 5] <= 1))
        best, boxes = probabilities[:, 0], labels[64:, 0]  # an image has one box
        assert np.mean(best[:, 4] == boxes[:, 0]) > 0.9
        assert np.median(np.abs(best[:, :4] - boxes[:, 1:])) < 1
        accuracy = result["eval/accuracy"]
    else:
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
        known = labels[64:] != 255
        accuracy = np.mean((probabilities.argmax(-1) == labels[64:])[known])
    np.testing.assert_allclose(accuracy, result["eval/accuracy"], rtol=1e-6)
    if case == "detection":
        with pytest.raises(ValueError, match="the detections of two masks differ"):
            run.mc_dropout(inputs[64:], num_samples=2)
    else:
        assert np.all(run.mc_dropout(inputs[64:], num_samples=2).mutual_information >= 0)
    run.save_pretrained(tmp_path / "export")
    again = sdd_jax.load(tmp_path / "export").predict(inputs[64:])
    np.testing.assert_array_equal(again, probabilities)
    with pytest.raises(ValueError, match=f"must be .*got {np.asarray(labels).dtype}"):
        run.predict(np.zeros((2, 3, 4, 5, 6), labels.dtype))


def test_a_task_of_your_own_selects_by_its_metric(tmp_path):
    config = small(tmp_path, "multi_label")
    config.dataset.task, config.duration = "exact_in_test", "8 epochs"
    result = train_and_evaluate(config, str(tmp_path / "run"))
    run = sdd_jax.load(tmp_path / "run")
    predicted = run.predict(FEATURES[64:]) > 0.5
    assert result["eval/exact"] == np.mean((predicted == SETS[64:]).all(axis=-1)) > 0.3
    assert "eval/map" not in result


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("features", {"model": {"name": "lenet"}},
         "config.model.name: 'lenet' takes images, got the features of npz:"),
        ("tokens", {"model": {"name": "mlp"}},
         "config.model.name: 'mlp' takes images or features, got the tokens"),
        ("tokens", {"model": {"name": "bag_of_tokens", "vocabulary": 29}},
         "config.model.vocabulary: must be at least 30, above the largest token id, got 29"),
        ("segmentation", {"model": {"name": "mlp"}},
         r"config.model.name: 'mlp' has outputs \[3\] .* task segmentation needs \[8, 8, 3\]"),
        ("multi_label", {"objective": {"name": "label_smoothing"}},
         "config.objective.name: 'label_smoothing' needs one label per example; the task of .* is mul"),
        ("features", {"augment": {"flip": True}},
         "config.augment.flip: must be False for features, not images, got True"),
        ("features", {"inputs": "perturbed"}, "config.inputs: needs images, got features"),
    ],
    ids=range(7),
)  # fmt: skip
def test_parts_that_do_not_fit_are_one_line(tmp_path, case, change, message):
    config = small(tmp_path, case)
    for key, value in change.items():
        config[key] = value
    with pytest.raises(InputError, match=message) as caught:
        load_experiment(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("trained", ["features"], indirect=True)
def test_out_of_distribution_features_are_those_of_another_file(trained, tmp_path):
    _, folder, _ = trained
    inputs, labels, *_ = CASES["features"]
    np.savez(tmp_path / "far.npz", train_images=inputs + 9, train_labels=labels,
             test_images=inputs + 9, test_labels=labels)  # fmt: skip
    options = {"eval.ood": (f"npz:{tmp_path / 'far.npz'}",)}
    found = evaluate_workdir(folder, "ood", overrides=options)
    assert found["eval/ood/far/knn/auroc"] > 0.95
    assert not any("odin" in name for name in found)
    np.savez(tmp_path / "far.npz", train_images=TOKENS, train_labels=labels,
             test_images=TOKENS, test_labels=labels)  # fmt: skip
    with pytest.raises(InputError, match="tokens .*, where the run has features"):
        evaluate_workdir(folder, "ood", overrides=options)
