"""SIGTERM in the middle of an evaluation."""

import signal
import time

import numpy as np
import pytest

BOUND = 20  # seconds to stop within; a whole evaluation here takes longer on a slow machine


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Arguments of a run whose evaluation goes image by image through many."""
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
def whole(programs, tiny, slow, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    programs.finished(workdir, *tiny, *slow)
    return workdir


def test_training_stops_in_its_evaluation_and_makes_it_up(
    programs, tiny, slow, whole, look, ends_like, tmp_path
):
    path = tmp_path / "run"
    for step in (15, 30):  # 15 has no checkpoint otherwise, 30 is the end
        with programs.started("train.py", f"--workdir={path}", *tiny, *slow) as process:
            look(path).await_line(process, step - 1)
            assert look(path).last_logged == step - 1  # at the next it evaluates, then logs
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            sent = time.monotonic()
            error = process.communicate(timeout=240)[1]
            took = time.monotonic() - sent
        assert process.returncode == 143, error
        assert error == f"stopped after step {step}, which is saved; the same command resumes\n"
        assert took < BOUND
        assert look(path).steps[-1] == step
        last = look(path).lines[-1]
        assert last["step"] == step
        assert "train/loss" in last
        assert "eval/accuracy" not in last
    programs.finished(path, *tiny, *slow)
    assert look(path).lines == look(whole).lines
    assert look(path).record(30)["checksums"] == look(whole).record(30)["checksums"]


def test_evaluation_ends_at_once_and_leaves_nothing_half_done(programs, whole):
    figures, started = whole / "eval" / "metrics.json", time.monotonic()
    assert programs.run("eval.py", f"--workdir={whole}").returncode == 0
    took, complete = time.monotonic() - started, figures.read_bytes()
    for share in (0.3, 0.5, 0.7, 0.9):
        figures.unlink(missing_ok=True)
        with programs.started("eval.py", f"--workdir={whole}") as process:
            time.sleep(share * took)
            process.send_signal(signal.SIGTERM)
            sent = time.monotonic()
            error = process.communicate(timeout=240)[1]
        assert time.monotonic() - sent < BOUND
        assert process.returncode == -signal.SIGTERM or share > 0.5  # a shell says 143
        assert error == ""
        assert not figures.exists() or figures.read_bytes() == complete
