"""Unusable data, diverging training and missing classes."""

import json

import numpy as np
import pytest

RNG = np.random.default_rng(0)


def images(number, labels):
    """Noise images whose brightness depends on the class."""
    noise = RNG.normal(0, 20, (number, 8, 8, 3))
    return np.clip(noise + 25 * labels[:, None, None, None], 0, 255).astype(np.uint8)


def arrays(**changes):
    splits = {}
    for split, number in (("train", 200), ("test", 80)):
        labels = np.arange(number) % 8
        splits |= {f"{split}_images": images(number, labels), f"{split}_labels": labels}
    return splits | changes


def without(split, label):
    """The arrays without one class of one split."""
    splits = arrays()
    keep = splits[f"{split}_labels"] != label
    for name in (f"{split}_images", f"{split}_labels"):
        splits[name] = splits[name][keep]
    return splits


@pytest.fixture
def data(tmp_path):
    def data(splits):
        np.savez(tmp_path / "data.npz", **splits)
        return f"--config.dataset.name=npz:{tmp_path / 'data.npz'}"

    return data


def test_float_images_with_nan_are_refused(programs, tiny, data, refused, tmp_path):
    pixels = arrays()["train_images"].astype(np.float32)
    pixels[3, 4, 4] = np.nan
    done = programs.train(tmp_path / "run", *tiny, data(arrays(train_images=pixels)))
    refused(2, done.returncode, done.stderr, "train images must be uint8, got float32")
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_data_is_refused(programs, tiny, data, refused, tmp_path):
    done = programs.train(tmp_path / "run", *tiny, data(arrays()), "--config.batch_size=201")
    refused(
        2,
        done.returncode,
        done.stderr,
        "config.batch_size: must be at most 200, the number of training images",
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("every", ["1 steps", "3 steps"])
def test_a_diverging_run_keeps_its_last_good_checkpoint(
    programs, tiny, inspect, refused, tmp_path, every
):
    """The learning rate is multiplied by 1e32 after step 12."""
    arguments = (
        *tiny,
        "--config.schedule={'name': 'step', 'milestones': ('12 steps',), 'factor': 1e32}",
        f"--config.checkpoint_every={every}",
        "--config.log_every=4 steps",
    )
    for _ in range(2):  # the same command fails in the same way
        done = programs.train(tmp_path / "run", *arguments)
        refused(1, done.returncode, done.stderr, "step 1", "the checkpoint of step 1")
        assert "not finite" in done.stderr or "the loss is" in done.stderr
        assert inspect(tmp_path / "run").steps[-1] in (12, 13)
        logged = (tmp_path / "run" / "metrics.jsonl").read_text()
        assert "NaN" not in logged
        assert "Infinity" not in logged


@pytest.mark.parametrize(
    ("objective", "split"), [("cs_kd", "train"), ("cross_entropy", "train"), ("cs_kd", "test")]
)
def test_a_class_without_images(programs, tiny, data, tmp_path, objective, split):
    path = tmp_path / "run"
    arguments = (
        *tiny,
        data(without(split, 3)),
        f"--config.objective={{'name': '{objective}'}}",
        "--config.sd_dropout.weight=0.1",
        "--config.dataset.validation=0.2",
        "--config.batch_size=32",
        "--config.duration=20 steps",
    )
    programs.finished(path, *arguments)
    options = ("max_images=8", "pgd_steps=1", "mc_samples=2", "apgd_steps=1", "square_queries=2")
    fast = [f"--config.eval.{option}" for option in options]
    done = programs.run("eval.py", f"--workdir={path}", "--checks=all", *fast)
    assert done.returncode == 0, done.stderr
    warnings = ["1 of 8 classes (3) have no training image"] if split == "train" else []
    assert [line.rpartition(": ")[2] for line in done.stderr.splitlines()] == warnings
    metrics = json.loads((path / "eval" / "metrics.json").read_text())
    for name in ("eval/accuracy", "eval/nll", "eval/calibration/classwise_ece"):
        assert 0 <= metrics[name] < 10
    assert 0 < metrics["eval/calibration/temperature"] <= 100
