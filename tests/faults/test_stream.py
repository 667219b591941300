"""Images streamed by threads and by worker processes: damage, kills, signals, and what remains."""

import glob
import os
import pathlib
import shutil
import signal
import time

import pytest

from sdd_jax import data

IN_MEMORY = "/dev/shm"  # where worker processes put their batches
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture(params=[False, True], ids=["threads", "processes"])
def streamed(request, tiny, photographs, tmp_path):
    """Builds the arguments of a run of 60 steps that streams images."""

    def arguments(data_dir=photographs, **engine):
        engine = {"name": "streamed", "workers": 2, "processes": request.param} | engine
        return (
            *tiny,
            "--config.dataset.name=tiny_birds",
            f"--config.dataset.data_dir={data_dir}",
            f"--config.dataset.cache_dir={tmp_path / 'cache'}",
            "--config.dataset.image_size=16",
            f"--config.dataset.mean={MEAN}",
            f"--config.dataset.std={STD}",
            "--config.batch_size=8",
            "--config.optimizer.learning_rate=0.0001",
            f"--config.engine={engine}",
        )

    return arguments


@pytest.fixture
def damaged(photographs, tmp_path):
    """The photographs, whose labels are in the cache, with a bit of one training image flipped."""
    copy = pathlib.Path(shutil.copytree(photographs, tmp_path / "data"))
    folders = {"data_dir": str(copy), "cache_dir": str(tmp_path / "cache")}
    data.load(name="tiny_birds", image_size=16, mean=MEAN, std=STD, **folders)
    (file,) = copy.rglob("*train.array_record*")
    status, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk does it
    return copy


def batch_folder(process):
    """The folder through which the worker processes of a run pass on their batches."""
    return glob.glob(f"{IN_MEMORY}/sdd_jax-{process.pid}-*")


def children(process):
    """Process ids of the worker processes of a run."""
    threads = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
    ids = [int(child) for thread in threads for child in thread.read_text().split()]
    return [
        pid for pid in ids if b"spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_a_damaged_image_stops_the_run_in_one_line(programs, streamed, damaged, refused, tmp_path):
    done = programs.train(tmp_path / "run", *streamed(damaged))
    words = ("tiny_birds, train: image ", "RuntimeError: Corrupted", "engine.on_error=skip")
    refused(2, done.returncode, done.stderr, *words)


def test_a_run_that_skips_damaged_images_resumes_bit_for_bit(
    programs, streamed, damaged, inspect, ends_like, tmp_path
):
    arguments = streamed(damaged, on_error="skip")
    whole = programs.finished(tmp_path / "whole", *arguments)
    assert whole.stderr.count("cannot be decoded") == whole.stderr.count("\n") == 1
    assert whole.stderr.startswith("warning: ")
    assert whole.stderr.endswith("; skipped\n")
    assert sum(line.get("train/skipped", 0) for line in inspect(tmp_path / "whole").lines) > 0
    path = tmp_path / "run"
    with programs.started("train.py", f"--workdir={path}", *arguments) as process:
        inspect(path).await_checkpoint(process, 20)
    programs.finished(path, *arguments)
    ends_like(path, tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [0, 10])
def test_a_signal_to_the_whole_group_ends_in_one_line(
    programs, streamed, inspect, tmp_path, number, step
):
    path = tmp_path / "run"
    arguments = (f"--workdir={path}", *streamed(), "--config.duration=4000 steps")
    with programs.started("train.py", *arguments, start_new_session=True) as process:
        if step:
            inspect(path).await_line(process, step)
        else:  # while the workers start
            inspect(path).await_(process, (path / "metrics.jsonl").exists, "the loop")
            time.sleep(0.5)
        os.killpg(process.pid, number)
        assert process.wait(60) == 128 + number
        stderr = process.stderr.read()
    assert stderr.startswith("stopped after step ")
    assert stderr.count("\n") == 1, stderr
    assert not batch_folder(process)


@pytest.mark.parametrize("streamed", [True], indirect=True, ids=["processes"])
def test_a_killed_worker_process_ends_the_run_in_one_line(
    programs, streamed, inspect, refused, tmp_path
):
    path = tmp_path / "run"
    arguments = (f"--workdir={path}", *streamed(), "--config.duration=4000 steps")
    with programs.started("train.py", *arguments) as process:
        inspect(path).await_checkpoint(process, 20)
        os.kill(children(process)[0], signal.SIGKILL)
        status = process.wait(60)
        refused(1, status, process.stderr.read(), "a worker process", "exit code -9")
    assert not batch_folder(process)
    last = inspect(path).steps[-1]
    with programs.started("train.py", *arguments) as process:
        inspect(path).await_checkpoint(process, last + 10)


@pytest.mark.parametrize("streamed", [True], indirect=True, ids=["processes"])
def test_worker_processes_of_a_killed_run_end_and_delete_their_files(
    programs, streamed, inspect, tmp_path
):
    path = tmp_path / "run"
    arguments = (f"--workdir={path}", *streamed(), "--config.duration=4000 steps")
    with programs.started("train.py", *arguments) as process:
        inspect(path).await_line(process, 5)
        workers = children(process)
        assert len(workers) == 2
        assert batch_folder(process)
        process.kill()
        process.wait()

    def remaining():
        return [pid for pid in workers if os.path.exists(f"/proc/{pid}")] + batch_folder(process)

    deadline = time.monotonic() + 20
    while remaining() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not remaining()
