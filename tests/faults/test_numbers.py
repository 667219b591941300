"""Data and numbers that no network can learn from, and data that lack something."""

import json

import numpy as np
import pytest

RNG = np.random.default_rng(0)


def images(number, labels):
    """Of each class its own brightness."""
    noise = RNG.normal(0, 20, (number, 8, 8, 3))
    return np.clip(noise + 25 * labels[:, None, None, None], 0, 255).astype(np.uint8)


def arrays(**changes):
    made = {}
    for split, number in (("train", 200), ("test", 80)):
        labels = np.arange(number) % 8
        made |= {f"{split}_images": images(number, labels), f"{split}_labels": labels}
    return made | changes


def without(split, label):
    """The arrays, one class of one split left out."""
    made = arrays()
    kept = made[f"{split}_labels"] != label
    for name in (f"{split}_images", f"{split}_labels"):
        made[name] = made[name][kept]
    return made


@pytest.fixture
def data(tmp_path):
    def data(made):
        np.savez(tmp_path / "data.npz", **made)
        return f"--config.dataset.name=npz:{tmp_path / 'data.npz'}"

    return data


def test_images_that_are_not_numbers(programs, tiny, data, refused, tmp_path):
    pixels = arrays()["train_images"].astype(np.float32)
    pixels[3, 4, 4] = np.nan
    done = programs.train(tmp_path / "run", *tiny, data(arrays(train_images=pixels)))
    refused(2, done.returncode, done.stderr, "train images must be uint8, got float32")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_is_larger_than_the_data(programs, tiny, data, refused, tmp_path):
    done = programs.train(tmp_path / "run", *tiny, data(arrays()), "--config.batch_size=201")
    refused(
        2,
        done.returncode,
        done.stderr,
        "config.batch_size: must be at most 200, the number of training images",
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("every", ["1 steps", "3 steps"])
def test_a_run_that_explodes_keeps_its_last_good_checkpoint(
    programs, tiny, look, refused, tmp_path, every
):
    """It is fine while it warms up; then the learning rate is beyond all reason."""
    arguments = (
        *tiny,
        "--config.schedule={'name': 'step', 'milestones': ('12 steps',), 'factor': 1e32}",
        f"--config.checkpoint_every={every}",
        "--config.log_every=4 steps",
    )
    for _ in range(2):  # the same command comes to the same end
        done = programs.train(tmp_path / "run", *arguments)
        refused(1, done.returncode, done.stderr, "step 1", "the last good checkpoint is kept")
        assert "not finite" in done.stderr or "the loss is" in done.stderr
        assert look(tmp_path / "run").steps[-1] in (12, 13)
        logged = (tmp_path / "run" / "metrics.jsonl").read_text()
        assert "NaN" not in logged
        assert "Infinity" not in logged


@pytest.mark.parametrize(
    ("objective", "split"), [("cs_kd", "train"), ("cross_entropy", "train"), ("cs_kd", "test")]
)
def test_a_class_that_is_not_there(programs, tiny, data, tmp_path, objective, split):
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
    fast = [f"--config.eval.{option}" for option in ("max_images=8", "pgd_steps=1", "mc_samples=2")]
    done = programs.run("eval.py", f"--workdir={path}", "--checks=all", *fast)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    figures = json.loads((path / "eval" / "metrics.json").read_text())
    for name in ("eval/accuracy", "eval/nll", "eval/calibration/classwise_ece"):
        assert 0 <= figures[name] < 10
    assert 0 < figures["eval/calibration/temperature"] <= 100
