"""Workdirs that are not writable or are in use by another process."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from sdd_jax.errors import InputError, WriteError
from sdd_jax.runs import workdir as workdirs
from sdd_jax.train import train_and_evaluate


def test_a_workdir_below_a_file_is_refused(programs, tiny, refused, tmp_path):
    (tmp_path / "file").write_text("")
    path = str(tmp_path / "file" / "run")
    done = programs.train(path, *tiny)
    refused(2, done.returncode, done.stderr, f"--workdir: must be writable, got {path!r}")


@pytest.mark.parametrize("path", ["/proc/run", "/dev/null", "/dev/null/run"])
def test_a_workdir_that_cannot_be_created_is_refused(path):
    with pytest.raises(InputError, match="--workdir: must be writable, got "):
        workdirs.open_workdir(path).__enter__()


def test_a_read_only_disk_is_refused(programs, tiny, uninterrupted, refused, tmp_path):
    """Root needs a read-only mount; for other users, folders without write permission suffice."""
    shutil.copytree(uninterrupted, tmp_path / "disk" / "run")
    shutil.rmtree(tmp_path / "disk" / "run" / "checkpoints" / "60")
    command = programs.command("train.py", f"--workdir={tmp_path / 'disk' / 'run'}", *tiny)
    if os.geteuid() == 0:
        mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"'
        enter = ["unshare", "--mount", "sh", "-ec"]
        if subprocess.run([*enter, mount, tmp_path / "disk"], capture_output=True).returncode:
            pytest.skip("root may write everywhere, and cannot mount here")
        command = [*enter, f'{mount} && exec "$@"', tmp_path / "disk", *command]
    else:
        for folder in (tmp_path / "disk" / "run").glob("**/"):
            folder.chmod(0o555)
    files = [p for p in (tmp_path / "disk").rglob("*") if p.is_file()]
    before = {p: p.read_bytes() for p in files}
    done = subprocess.run(
        command, env=programs.environment, capture_output=True, text=True, timeout=240
    )
    refused(2, done.returncode, done.stderr, "--workdir: must be writable, got")
    assert {p: p.read_bytes() for p in (tmp_path / "disk").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "metrics.jsonl/x", "lock/x"])
def test_a_foreign_file_in_the_workdir_is_reported_and_kept(tiny_config, tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    part = tmp_path / "run" / name.partition("/")[0]
    with pytest.raises(WriteError, match=f"{part} cannot be written: "):
        train_and_evaluate(tiny_config, str(tmp_path / "run"))
    assert path.read_text() == "mine"


def test_a_second_process_is_refused_and_the_first_is_unaffected(
    programs, tiny, inspect, uninterrupted, ends_like, refused, tmp_path
):
    path = tmp_path / "run"
    with programs.started("train.py", f"--workdir={path}", *tiny) as first:
        inspect(path).await_line(first, 5)
        first.send_signal(signal.SIGSTOP)  # still running when the second starts
        second = programs.train(path, *tiny)
        refused(2, second.returncode, second.stderr, "--workdir: must not be in use", path)
        first.send_signal(signal.SIGCONT)
        assert first.wait(240) == 0, first.stderr.read()
    ends_like(path, uninterrupted)


def test_a_killed_run_leaves_no_lock(tmp_path):
    code = (
        "import os, signal; from sdd_jax.runs import open_workdir\n"
        f"with open_workdir({str(tmp_path)!r}):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=240, check=False)
    assert (tmp_path / "lock").exists()
    with workdirs.open_workdir(str(tmp_path)) as folder:
        assert folder == tmp_path


def test_evaluation_runs_beside_training(programs, tiny, inspect, tmp_path):
    path = tmp_path / "run"
    endless = ("--config.duration=100000 steps", "--config.eval_every=100000 steps")
    with programs.started("train.py", f"--workdir={path}", *tiny, *endless) as training:
        inspect(path).await_checkpoint(training, 10)
        done = programs.run("eval.py", f"--workdir={path}", "--checks=accuracy")
        assert training.poll() is None
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads((path / "eval" / "metrics.json").read_text())["step"] >= 10


def test_only_the_first_host_locks_and_the_lock_is_released_after_the_run(tmp_path, monkeypatch):
    with workdirs.open_workdir(str(tmp_path)):
        with (
            pytest.raises(InputError, match="must not be in use, another process trains in"),
            workdirs.open_workdir(str(tmp_path)),
        ):
            pass
        with monkeypatch.context() as patch:
            patch.setattr(workdirs.jax, "process_index", lambda: 1)
            with workdirs.open_workdir(str(tmp_path)):
                pass
    with workdirs.open_workdir(str(tmp_path)):
        pass


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with workdirs.open_workdir(str(tmp_path)):
        pass
    assert "cannot be locked (Function not implemented)" in caplog.text


@pytest.mark.parametrize("change", ["moved", "removed", "replaced"])
def test_a_workdir_that_disappears_during_training_stops_the_run(
    programs, tiny, inspect, refused, uninterrupted, ends_like, tmp_path, change
):
    path, moved = tmp_path / "run", tmp_path / "moved"
    slow = (*tiny, "--config.eval_every=1 steps")
    with programs.started("train.py", f"--workdir={path}", *slow) as training:
        inspect(path).await_checkpoint(training, 10)
        training.send_signal(signal.SIGSTOP)
        path.rename(moved)
        if change == "removed":
            shutil.rmtree(moved)
        if change == "replaced":
            path.mkdir()
        training.send_signal(signal.SIGCONT)
        status = training.wait(240)
        message = training.stderr.read()
    refused(1, status, message, path, "cannot be written" if "written" in message else "was moved")
    assert not path.exists() or change == "replaced"
    assert not list(path.glob("checkpoints/[0-9]*"))
    if change == "moved":
        programs.finished(moved, *tiny)
        assert inspect(moved).steps == inspect(uninterrupted).steps
        assert inspect(moved).record(60) == inspect(uninterrupted).record(60)


@pytest.mark.parametrize(
    "changed",
    [
        {"JAX_DEFAULT_PRNG_IMPL": "rbg"},
        {"JAX_ENABLE_X64": "1"},
        {"JAX_THREEFRY_PARTITIONABLE": "0"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_resume_under_other_settings_of_jax_is_refused(
    programs, tiny, uninterrupted, refused, changed, tmp_path
):
    shutil.copytree(uninterrupted, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "60")
    command = programs.command("train.py", f"--workdir={tmp_path / 'run'}", *tiny)
    done = subprocess.run(
        command, env=programs.environment | changed, capture_output=True, text=True, timeout=240
    )
    field = next(iter(changed)).lower()
    refused(2, done.returncode, done.stderr, f"jax_settings.{field}: ", "in the workdir")


def test_a_lost_record_is_not_replaced_by_that_of_another_run(
    programs, tiny, uninterrupted, refused, inspect, tmp_path
):
    shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    before = inspect(tmp_path / "run").digests
    done = programs.train(tmp_path / "run", *tiny, "--config.seed=1")
    refused(2, done.returncode, done.stderr, "holds checkpoints, but no config.json", "put it back")
    assert inspect(tmp_path / "run").digests == before
