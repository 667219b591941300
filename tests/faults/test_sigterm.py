"""SIGTERM during an evaluation."""

import signal
import time

import numpy as np
import pytest

BOUND = 20  # maximum seconds to stop; an evaluation takes longer on a slow machine


@pytest.fixture(scope="module")
def slow_evaluation(tmp_path_factory):
    """Arguments of a run that evaluates many images one by one."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "many.npz"
    arrays = {}
    for split, number in (("train", 640), ("test", 12_000)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (number, 8, 8, 1), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(number) % 10
    np.savez(path, **arrays)
    return (
        f"--config.dataset.name=npz:{path}",
        "--config.dataset.validation=0.1",
        "--config.eval.batch_size=1",
        "--config.eval_every=15 steps",
        "--config.duration=30 steps",
    )


@pytest.fixture(scope="module")
def reference(programs, tiny, slow_evaluation, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reference") / "run"
    programs.finished(workdir, *tiny, *slow_evaluation)
    return workdir


def test_training_stops_during_an_evaluation_and_repeats_it_on_resume(
    programs, tiny, slow_evaluation, reference, inspect, ends_like, tmp_path
):
    path = tmp_path / "run"
    for step in (15, 30):  # an evaluation without a checkpoint, and the last one
        with programs.started("train.py", f"--workdir={path}", *tiny, *slow_evaluation) as process:
            inspect(path).await_line(process, step - 1)
            assert inspect(path).last_logged == step - 1  # the next step evaluates before it logs
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            sent_at = time.monotonic()
            error = process.communicate(timeout=240)[1]
            seconds = time.monotonic() - sent_at
        assert process.returncode == 143, error
        assert error == f"stopped after step {step}, which is saved; the same command resumes\n"
        assert seconds < BOUND
        assert inspect(path).steps[-1] == step
        last = inspect(path).lines[-1]
        assert last["step"] == step
        assert "train/loss" in last
        assert "eval/accuracy" not in last
    programs.finished(path, *tiny, *slow_evaluation)
    assert inspect(path).lines == inspect(reference).lines
    assert inspect(path).record(30)["checksums"] == inspect(reference).record(30)["checksums"]


def test_evaluation_stops_at_once_and_leaves_no_partial_result(programs, reference):
    metrics, started = reference / "eval" / "metrics.json", time.monotonic()
    assert programs.run("eval.py", f"--workdir={reference}").returncode == 0
    seconds, complete = time.monotonic() - started, metrics.read_bytes()
    for fraction in (0.3, 0.5, 0.7, 0.9):
        metrics.unlink(missing_ok=True)
        with programs.started("eval.py", f"--workdir={reference}") as process:
            time.sleep(fraction * seconds)
            process.send_signal(signal.SIGTERM)
            sent_at = time.monotonic()
            error = process.communicate(timeout=240)[1]
        assert time.monotonic() - sent_at < BOUND
        assert process.returncode == -signal.SIGTERM or fraction > 0.5  # a shell says 143
        assert error == ""
        assert not metrics.exists() or metrics.read_bytes() == complete
