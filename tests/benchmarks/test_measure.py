"""Measuring in turns, ratios, the result file, and a training step to time."""

import json

import numpy as np
import pytest

from benchmarks import large_vocabulary, measure


def test_sides_take_turns_and_the_first_round_does_not_count():
    calls = []

    def side(name, seconds):
        timings = iter(seconds)
        return lambda: calls.append(name) or next(timings)

    timings = measure.take_turns({"a": side("a", [9, 1, 2]), "b": side("b", [8, 3, 4])}, 2)
    assert timings == {"a": [1, 2], "b": [3, 4]}
    assert calls == ["a", "b"] * 3


def test_a_ratio_is_taken_within_each_round():
    slowdown = np.array([1, 1, 5, 1, 1])  # in the third round the machine is slow, for both sides
    ratio = measure.ratio(3.0 * slowdown, 2.0 * slowdown)
    assert ratio == {"median": 1.5, "quartiles": [1.5, 1.5], "rounds": 5}
    spread = measure.ratio([1, 2, 3, 4, 10], [1, 1, 1, 1, 1])
    assert spread == {"median": 3, "quartiles": [2, 4], "rounds": 5}
    assert measure.summary([0.25]) == {"median": 0.25, "quartiles": [0.25, 0.25], "rounds": 1}


def test_a_benchmark_writes_its_figures_with_machine_and_versions(tmp_path, monkeypatch):
    output = tmp_path / "result.json"
    sizes = ["--batch=4", "--features=8", "--classes=40", "--chunk-size=16", "--rounds=1"]
    monkeypatch.setattr("sys.argv", ["large_vocabulary", *sizes, f"--output={output}"])
    large_vocabulary.main()
    result = json.loads(output.read_text())
    assert result["command"].startswith("python -m benchmarks.large_vocabulary --batch 4")
    assert "commit" in result
    assert result["versions"].keys() >= {"python", "jax", "sdd_jax"}
    assert "CPU cores" in result["machine"]
    for loss in result["losses"].values():
        for form in ("chunked", "kept"):
            assert loss[f"time_{form}_over_plain"]["median"] > 0
            assert max(loss["relative_difference"][form].values()) < 1e-5


def test_a_training_step_can_be_timed_while_its_loss_is_finite(tiny_config):
    step = measure.training_step(tiny_config)
    assert step() > 0
    assert step() > 0
    tiny_config.optimizer.learning_rate = 1e30
    diverging = measure.training_step(tiny_config)
    with pytest.raises(AssertionError, match="the loss is not finite"):
        sum(diverging() for _ in range(5))
