"""Full disks and file size limits; once space is available, the same command resumes."""

import functools
import resource
import shutil
import subprocess

import pytest

# preexec_fn forks this process, in which JAX has threads; the child calls setrlimit and exec only.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


def limit(size):
    """``preexec_fn`` that limits the file size in bytes. (Python ignores SIGXFSZ.)"""
    return functools.partial(
        resource.setrlimit, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)
    )


@pytest.fixture
def killed(programs, tiny, inspect, tmp_path):
    """``killed(*arguments)`` returns the workdir of a run killed after its second checkpoint."""

    def killed(*arguments):
        path = tmp_path / "run"
        with programs.started("train.py", f"--workdir={path}", *tiny, *arguments) as process:
            inspect(path).await_checkpoint(process, 20)
        return path

    return killed


SPARSE = ("--config.model={'name': 'mlp', 'width': 200, 'depth': 1}", "--config.log_every=30 steps")


@pytest.mark.parametrize("size", [2_000, 40_000])
def test_oversized_checkpoint(programs, tiny, inspect, ends_like, refused, killed, tmp_path, size):
    """The limits are below the first file and below the arrays; the log is smaller than both."""
    programs.finished(tmp_path / "whole", *tiny, *SPARSE)
    path = killed(*SPARSE)
    complete = {k: v for k, v in inspect(path).digests.items() if "tmp" not in k}
    step = max(inspect(path).steps) + 10
    for _ in range(2):  # the second attempt fails in the same way
        done = programs.train(path, *tiny, *SPARSE, preexec_fn=limit(size))
        failed = path / "checkpoints" / str(step)
        refused(1, done.returncode, done.stderr, f"{failed} cannot be written: File too large")
        assert {name: inspect(path).digests[name] for name in complete} == complete
    programs.finished(path, *tiny, *SPARSE)
    ends_like(path, tmp_path / "whole")


def test_no_space_for_the_log(programs, tiny, uninterrupted, inspect, ends_like, refused, tmp_path):
    """In a new run, the log or the events reach the limit before any checkpoint does."""
    path = tmp_path / "run"
    done = programs.train(path, *tiny, preexec_fn=limit(16_000))
    refused(1, done.returncode, done.stderr, path, "cannot be written: File too large")
    assert "metrics.jsonl" in done.stderr or "tensorboard/events" in done.stderr
    assert inspect(path).steps
    programs.finished(path, *tiny)
    ends_like(path, uninterrupted)


SCRIPT = """
mount -t tmpfs -o size=$ROOM none "$DISK"
set +e
"$@" > "$OUT/first.out" 2> "$OUT/first.err"; echo $? > "$OUT/first.rc"
mount -o remount,size=100m "$DISK"
ls "$DISK/run/checkpoints" > "$OUT/between"
"$@" > "$OUT/second.out" 2> "$OUT/second.err"; echo $? > "$OUT/second.rc"
cp -r "$DISK/run" "$OUT/run"
"""


@pytest.mark.parametrize("room", [60, 250])
def test_a_full_disk(programs, tiny, uninterrupted, ends_like, refused, tmp_path, room):
    """Trains on a disk of ``room`` KiB, in its own mount namespace."""
    if subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small disk takes root and unshare")
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    environment = programs.environment | {"ROOM": f"{room}k", "DISK": str(disk), "OUT": str(out)}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # it would use the space of a checkpoint
    command = programs.command("train.py", f"--workdir={disk / 'run'}", *tiny)
    script = ["unshare", "--mount", "sh", "-ec", SCRIPT, "sh", *command]
    subprocess.run(script, env=environment, check=True, timeout=240)
    first = (out / "first.err").read_text()
    refused(1, int((out / "first.rc").read_text()), first, disk / "run", "No space left on device")
    assert (out / "second.rc").read_text() == "0\n", (out / "second.err").read_text()
    if room == 250:  # large enough for a checkpoint
        step = max(int(n) for n in (out / "between").read_text().split() if n.isdigit())
        assert f"resuming after step {step}" in (out / "second.out").read_text()
    ends_like(out / "run", uninterrupted)


def test_full_stdout_is_one_error_line(programs, tiny, uninterrupted, refused, ends_like, tmp_path):
    with open("/dev/full", "w") as full:
        done = programs.train(tmp_path / "run", *tiny, stdout=full)
        refused(1, done.returncode, done.stderr, "standard output cannot be written: No space left")
        finished = programs.train(uninterrupted, *tiny, stdout=full)
        refused(1, finished.returncode, finished.stderr, "standard output cannot be written")
        evaluated = programs.run("eval.py", f"--workdir={uninterrupted}", stdout=full)
        refused(1, evaluated.returncode, evaluated.stderr, "standard output cannot be written")
    programs.finished(tmp_path / "run", *tiny)
    ends_like(tmp_path / "run", uninterrupted)


def test_no_space_for_an_evaluation_keeps_the_previous_one(
    programs, uninterrupted, refused, tmp_path
):
    shutil.copytree(uninterrupted, tmp_path / "run")
    arguments = ("eval.py", f"--workdir={tmp_path / 'run'}", "--checks=accuracy")
    assert programs.run(*arguments).returncode == 0
    names = ("checks.json", "metrics.json")
    before = [(tmp_path / "run/eval" / name).read_bytes() for name in names]
    done = programs.run(*arguments, preexec_fn=limit(64))
    refused(1, done.returncode, done.stderr, "eval/checks.json cannot be written: File too large")
    assert [(tmp_path / "run/eval" / name).read_bytes() for name in names] == before
