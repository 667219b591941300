"""Two processes that disagree, or of which one ends or never starts: all stop with one line."""

import contextlib
import functools
import shutil
import socket
import subprocess

import pytest

LIMIT = 240  # seconds


@pytest.fixture
def pair(programs, tiny):
    """Trains in two processes, see :func:`_pair`."""
    return functools.partial(_pair, programs, tiny)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cluster(process, *options, port=None):
    """Options of one process of two."""
    address = f"--coordinator_address=127.0.0.1:{port or free_port()}"
    return (address, "--num_processes=2", f"--process_id={process}", *options)


def _pair(programs, tiny, *workdirs, options=((), ())):
    """``[(status, output, error)]`` of two processes of a run."""
    port = free_port()
    processes = [
        subprocess.Popen(
            programs.command(
                "train.py", f"--workdir={workdir}", *tiny, *cluster(i, *own, port=port)
            ),
            env=programs.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i, (workdir, own) in enumerate(zip(workdirs, options, strict=True))
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *out) for process, out in zip(processes, outputs, strict=True)]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("optimizer.learning_rate=0.2", "optimizer.learning_rate: 0.05 on process 0, 0.2"),
        ("eval_every=30 steps", "eval_every: '20 steps' on process 0, '30 steps'"),
    ],
)  # fmt: skip
def test_processes_of_different_configs_stop_before_the_first_step(pair, tmp_path, option, message):
    workdir = tmp_path / "run"
    for status, _, error in pair(workdir, workdir, options=((), (f"--config.{option}",))):
        assert status == 2
        assert error.splitlines() == [
            f"error: all processes must train the same run; config.{message} on process 1"
        ]
    assert not (workdir / "config.json").exists()


def test_an_error_of_one_process_ends_the_other(pair, tmp_path):
    options = ((), ("--config.model.width=-3",))
    (_, _, first), (_, _, second) = results = pair(tmp_path, tmp_path, options=options)
    assert [status for status, _, _ in results] == [2, 2]
    reason = "config.model.width: must be at least 1, got -3"
    assert (first.splitlines(), second.splitlines()) == (
        [f"error: process 1: {reason}"],
        [f"error: {reason}"],
    )


def test_a_workdir_that_is_not_shared_is_refused(pair, tmp_path):
    workdirs = tmp_path / "a", tmp_path / "b"
    results = pair(*workdirs)
    reason = f"--workdir: must be one folder that all hosts of the run share, got '{workdirs[1]}'"
    assert [(status, error.splitlines()) for status, _, error in results] == [
        (2, [f"error: process 1: {reason}"]),
        (2, [f"error: {reason}"]),
    ]
    assert [path.name for path in workdirs[0].iterdir()] == ["lock"]


def test_both_processes_take_the_checkpoint_before_a_damaged_one(pair, tmp_path, ends_like):
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    assert [status for status, _, _ in pair(whole, whole)] == [0, 0]
    shutil.copytree(whole, damaged)
    files = [path for path in (damaged / "checkpoints" / "60").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content)
    results = pair(damaged, damaged)
    assert [status for status, _, _ in results] == [0, 0], results
    assert "resuming after step 50" in results[0][1]
    assert [path.name for path in (damaged / "damaged").iterdir()] == ["60-0"]
    ends_like(damaged, whole)


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_whose_partner_never_starts_says_so(programs, tiny, tmp_path, process):
    options = cluster(process, "--cluster_timeout=5")
    done = programs.train(tmp_path / "run", *tiny, *options)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: the processes of the job have not found each other within 5 s; start the same command "
        "on every host, with an address of process 0 that all of them reach"
    ]


# Ten deaths in a row: of the worker, and of process 0, which coordinates the job.
@pytest.mark.parametrize("dead", [0, 1] * 5)
def test_the_survivor_of_a_killed_process_says_so_and_the_job_resumes(
    programs, tiny, tmp_path, inspect, uninterrupted, ends_like, dead
):
    workdir, port = tmp_path / "run", free_port()
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                programs.started("train.py", f"--workdir={workdir}", *tiny, *cluster(i, port=port))
            )
            for i in range(2)
        ]
        inspect(workdir).await_line(processes[0], 25)
        processes[dead].kill()
        survivor = processes[1 - dead]
        _, error = survivor.communicate(timeout=LIMIT)
        assert survivor.returncode == 1
        assert error.count("\n") == 1, error
        assert error.startswith("error: another process of the job has ended, or cannot be reached")
    programs.finished(workdir, *tiny)  # in one process
    assert inspect(workdir).steps == inspect(uninterrupted).steps
    for ours, theirs in zip(inspect(workdir).lines, inspect(uninterrupted).lines, strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-3)
