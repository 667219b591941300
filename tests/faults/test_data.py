"""Data that go away while a run reads them."""

import time

import numpy as np
import pytest

STREAMED = (
    "--config.dataset.name=tiny_birds",
    "--config.dataset.image_size=16",
    "--config.dataset.mean=(0.5, 0.5, 0.5)",
    "--config.dataset.std=(0.25, 0.25, 0.25)",
    "--config.batch_size=8",
    "--config.optimizer.learning_rate=0.0001",
    "--config.duration=4000 steps",
    "--config.eval_every=4000 steps",
    "--config.checkpoint_every=20 steps",
)


def remove(files):
    for file in files:
        file.unlink()


def cut(files):
    for file in files:
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size // 2)


@pytest.mark.parametrize(
    ("harm", "processes"), [(remove, False), (cut, False), (cut, True)],
    ids=["removed", "cut", "cut, read by processes"],
)  # fmt: skip
def test_image_files_that_go_away(
    programs, tiny, photographs, look, refused, tmp_path, copied, harm, processes
):
    path = tmp_path / "run"
    source = copied(photographs)
    engine = {"name": "streamed", "workers": 2, "processes": processes}
    arguments = (
        *tiny,
        *STREAMED,
        f"--config.engine={engine}",
        f"--config.dataset.data_dir={source}",
        f"--config.dataset.cache_dir={tmp_path / 'cache'}",
    )
    records = list(source.rglob("*.array_record*"))
    assert len(records) == 2
    with programs.started("train.py", f"--workdir={path}", *arguments) as process:
        look(path).await_checkpoint(process, 20)
        harm(records)
        # What is open or read already may well do; otherwise the run says what it misses.
        goal = look(path).last_logged + 40
        while process.poll() is None and look(path).last_logged < goal:
            time.sleep(0.01)
        if process.poll() is not None:
            error = process.stderr.read()
            refused(2, process.returncode, error, "tiny_birds, train: image ", "cannot be decoded")
    steps = look(path).steps
    assert steps
    done = programs.train(path, *arguments)  # without its data it does not start
    refused(2, done.returncode, done.stderr, "config.dataset.name", "tiny_birds")
    assert look(path).steps == steps


@pytest.fixture
def copied(tmp_path):
    import pathlib
    import shutil

    return lambda folder: pathlib.Path(shutil.copytree(folder, tmp_path / "data"))


def test_an_npz_file_that_goes_away_does_not_matter_until_the_next_start(
    programs, tiny, look, refused, ends_like, tmp_path
):
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(200) % 10
    file, path = tmp_path / "data.npz", tmp_path / "run"
    np.savez(file, **arrays)
    arguments = (*tiny, f"--config.dataset.name=npz:{file}", "--config.duration=100 steps")
    programs.finished(tmp_path / "whole", *arguments)
    kept = file.read_bytes()
    with programs.started("train.py", f"--workdir={path}", *arguments) as process:
        look(path).await_line(process, 1)
        file.unlink()
        assert process.wait(240) == 0, process.stderr.read()
    ends_like(path, tmp_path / "whole")
    before = look(path).digests
    done = programs.train(path, *arguments)
    refused(2, done.returncode, done.stderr, "config.dataset.name: there is no file", file)
    assert look(path).digests == before
    file.write_bytes(kept)
    programs.finished(path, *arguments)
