"""Runs in a bucket: killed, with a server that is away for a while or for good, and two at once."""

import json
import os
import signal
import time

import pytest

from sdd_jax.paths import given_path
from sdd_jax.runs import Checkpoints

LENGTH = ("--config.duration=800 steps", "--config.checkpoint_every=100 steps")


@pytest.fixture
def arguments(server, programs, tiny, monkeypatch):
    """Arguments of a run of some seconds, of programs that find the server."""
    monkeypatch.setattr(programs, "environment", programs.environment | server.environment)
    return *tiny, *LENGTH


@pytest.fixture(scope="module")
def whole(programs, tiny, tmp_path_factory):
    """The same run on a disk."""
    path = tmp_path_factory.mktemp("whole") / "run"
    programs.finished(path, *tiny, *LENGTH)
    return path


def errors(process):
    """What a program wrote to the standard error, without TensorStore's line about credentials."""
    lines = process.stderr if isinstance(process.stderr, str) else process.stderr.read()
    return "".join(line + "\n" for line in lines.splitlines() if "google_auth_provider" not in line)


def steps(url):
    return Checkpoints(given_path(url, field="f"), read_only=True).steps()


def await_step(process, url, step):
    deadline = time.monotonic() + 200
    while max(steps(url), default=0) < step:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ends_as(workdir, expected):
    """The log and the last checkpoint's checksums are those of another run."""
    logs = [(path / "metrics.jsonl").read_text() for path in (workdir, expected)]
    ours, theirs = ([json.loads(line) for line in log.splitlines()] for log in logs)
    for line in ours + theirs:
        line.pop("images_per_second", None)
    assert ours == theirs
    record = "checkpoints/800/record/metadata"
    assert (workdir / record).read_bytes() == (expected / record).read_bytes()


def test_a_killed_run_resumes_at_once_and_ends_like_one_on_a_disk(
    programs, arguments, bucket, whole
):
    for kill, step in enumerate((100, 300, 500)):
        with programs.started("train.py", f"--workdir={bucket[0]}", *arguments) as process:
            await_step(process, bucket[0], step)
            time.sleep(0.07 * kill)  # in a save, or not
            process.kill()
            process.wait()
        assert (bucket[1] / "lock").exists()
    done = programs.finished(bucket[0], *arguments)
    assert "waiting to see whether it lives" not in done.stderr
    assert "resuming after step" in done.stdout
    ends_as(bucket[1], whole)
    assert not (bucket[1] / "lock").exists()


def test_a_stopped_run_gives_its_lease_back(programs, arguments, bucket):
    with programs.started("train.py", f"--workdir={bucket[0]}", *arguments) as process:
        await_step(process, bucket[0], 100)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert errors(process).startswith("stopped after step ")
    assert not (bucket[1] / "lock").exists()
    lines = (bucket[1] / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == steps(bucket[0])[-1]


def test_a_second_run_in_the_bucket_is_refused_and_the_first_goes_on(
    programs, arguments, bucket, refused
):
    endless = (*arguments, "--config.duration=200000 steps")
    with programs.started("train.py", f"--workdir={bucket[0]}", *endless) as process:
        await_step(process, bucket[0], 100)
        second = programs.train(bucket[0], *endless)
        last = errors(second).splitlines(keepends=True)[-1]
        owner = f"is held by process {process.pid} on {os.uname().nodename}"
        refused(2, second.returncode, last, "--workdir: must not be in use", owner)
        await_step(process, bucket[0], steps(bucket[0])[-1] + 100)


def test_a_run_goes_on_when_the_server_was_away_for_ten_seconds(
    programs, arguments, bucket, server, whole
):
    with programs.started("train.py", f"--workdir={bucket[0]}", *arguments) as process:
        await_step(process, bucket[0], 100)
        server.stop()
        time.sleep(10)
        server.start()
        assert process.wait(200) == 0, process.stderr.read()
    ends_as(bucket[1], whole)


def test_a_server_that_is_gone_ends_the_run_with_one_line(
    programs, arguments, bucket, server, refused
):
    with programs.started("train.py", f"--workdir={bucket[0]}", *arguments) as process:
        await_step(process, bucket[0], 100)
        server.stop()
        try:
            status = process.wait(200)
        finally:
            server.start()
        last = errors(process).splitlines(keepends=True)[-1]
        refused(1, status, last, "Cannot connect to host")
        assert "Traceback" not in errors(process)
    last = steps(bucket[0])[-1]
    assert f"resuming after step {last}" in programs.finished(bucket[0], *arguments).stdout


def test_a_damaged_object_is_set_aside_and_the_run_ends_like_one_on_a_disk(
    programs, arguments, bucket, whole
):
    with programs.started("train.py", f"--workdir={bucket[0]}", *arguments) as process:
        await_step(process, bucket[0], 300)
        process.kill()
        process.wait()
    last = steps(bucket[0])[-1]
    state = bucket[1] / "checkpoints" / str(last) / "state"
    for file in state.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(bytes(len(file.read_bytes())))
    done = programs.finished(bucket[0], *arguments)
    assert f"checkpoints/{last} is damaged" in done.stderr
    ends_as(bucket[1], whole)
    assert (bucket[1] / "damaged" / f"{last}-0").is_dir()
