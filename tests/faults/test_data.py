"""Data files removed or truncated while a run reads them."""

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
    ("damage", "processes"), [(remove, False), (cut, False), (cut, True)],
    ids=["removed", "cut", "cut, read by processes"],
)  # fmt: skip
def test_image_files_damaged_during_training(
    programs, tiny, photographs, inspect, refused, tmp_path, copy_data, damage, processes
):
    path = tmp_path / "run"
    source = copy_data(photographs)
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
        inspect(path).await_checkpoint(process, 20)
        damage(records)
        # Files already open or read may suffice; otherwise the error names the missing image.
        goal = inspect(path).last_logged + 40
        while process.poll() is None and inspect(path).last_logged < goal:
            time.sleep(0.01)
        if process.poll() is not None:
            error = process.stderr.read()
            refused(2, process.returncode, error, "tiny_birds, train: image ", "cannot be decoded")
    steps = inspect(path).steps
    assert steps
    done = programs.train(path, *arguments)  # without its data it refuses to start
    refused(2, done.returncode, done.stderr, "config.dataset.name", "tiny_birds")
    assert inspect(path).steps == steps


@pytest.fixture
def copy_data(tmp_path):
    import pathlib
    import shutil

    return lambda folder: pathlib.Path(shutil.copytree(folder, tmp_path / "data"))


def test_a_run_needs_its_npz_file_only_at_startup(
    programs, tiny, inspect, refused, ends_like, tmp_path
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
    content = file.read_bytes()
    with programs.started("train.py", f"--workdir={path}", *arguments) as process:
        inspect(path).await_line(process, 1)
        file.unlink()
        assert process.wait(240) == 0, process.stderr.read()
    ends_like(path, tmp_path / "whole")
    before = inspect(path).digests
    done = programs.train(path, *arguments)
    refused(2, done.returncode, done.stderr, "config.dataset.name: there is no file", file)
    assert inspect(path).digests == before
    file.write_bytes(content)
    programs.finished(path, *arguments)
