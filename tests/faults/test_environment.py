"""Closed standard streams, terminals without Unicode, strict promotion and exhausted memory."""

import json
import subprocess

import pytest

CLOSED = ["1>&-", "2>&-", "0<&- 1>&- 2>&-"]
ASCII = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},  # of file names as well
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "ascii:strict"},
]


@pytest.fixture
def shell(programs, tmp_path):
    """``shell(redirection, script, *arguments)`` runs a program in a shell; its streams are files."""

    def shell(redirection, script, *arguments, **variables):
        command = ["bash", "-c", f'set -o pipefail; "$@" {redirection}', "bash"]
        with (tmp_path / "stdout").open("w") as stdout, (tmp_path / "stderr").open("w") as stderr:
            done = subprocess.run(
                [*command, *programs.command(script, *arguments)],
                env=programs.environment | variables, stdout=stdout, stderr=stderr, timeout=240,
            )  # fmt: skip
        done.stdout, done.stderr = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
        return done

    return shell


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_streams_change_nothing(shell, tiny, uninterrupted, ends_like, tmp_path, closed):
    path = tmp_path / "run"
    trained = shell(closed, "train.py", f"--workdir={path}", *tiny)
    assert (trained.returncode, trained.stderr) == (0, "")
    assert ("is finished" in trained.stdout) == ("1>" not in closed)
    ends_like(path, uninterrupted)
    evaluated = shell(closed, "eval.py", f"--workdir={path}")
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    assert (path / "eval" / "report.html").is_file()


def test_a_warning_and_an_error_for_a_closed_stderr_are_dropped(shell, tiny, tmp_path):
    warned = ("--config.schedule.warmup=100 epochs", "--config.duration=10 steps")
    done = shell("2>&-", "train.py", f"--workdir={tmp_path / 'run'}", *tiny, *warned)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is finished: step 10" in done.stdout
    refused = shell("2>&-", "train.py", f"--workdir={tmp_path / 'run'}", "--config.seed=-1")
    assert refused.returncode == 2


def test_streamed_workers_inherit_streams_that_were_closed(shell, tiny, tmp_path):
    engine = "--config.engine={'name': 'streamed', 'workers': 1, 'processes': True}"
    short = "--config.duration=20 steps"
    done = shell(CLOSED[-1], "train.py", f"--workdir={tmp_path / 'run'}", *tiny, engine, short)
    assert done.returncode == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 20


@pytest.mark.parametrize("variables", ASCII)
def test_a_workdir_in_unicode_under_an_ascii_terminal(shell, tiny, tmp_path, variables):
    path = tmp_path / "Läufe-実験"
    for script, arguments in (("train.py", tiny), ("eval.py", ())):
        done = shell("", script, f"--workdir={path}", *arguments, **variables)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.isascii()
        assert "\\" in done.stdout.splitlines()[-1]
    assert json.loads((path / "eval" / "metrics.json").read_text())["step"] == 60
    (path / "metrics.jsonl").write_text("damaged")
    done = shell("", "train.py", f"--workdir={path}", *tiny, "--config.seed=1", **variables)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --workdir: ")
    assert done.stderr.isascii()
    assert done.stderr.count("\n") == 1


def test_strict_promotion_of_jax_is_accepted(shell, tiny, uninterrupted, ends_like, tmp_path):
    strict = {"JAX_NUMPY_DTYPE_PROMOTION": "strict"}
    path = tmp_path / "run"
    trained = shell("", "train.py", f"--workdir={path}", *tiny, **strict)
    assert (trained.returncode, trained.stderr) == (0, "")
    ends_like(path, uninterrupted)
    evaluated = shell("", "eval.py", f"--workdir={path}", "--checks=all", **strict)
    assert (evaluated.returncode, evaluated.stderr) == (0, "")


def test_a_reader_that_leaves_is_one_error_line(shell, refused, uninterrupted, tiny, tmp_path):
    path = tmp_path / "run"
    message = "standard output cannot be written: Broken pipe"
    trained = shell("| head -1", "train.py", f"--workdir={path}", *tiny)
    refused(1, trained.returncode, trained.stderr, message)
    assert trained.stdout.count("\n") == 1
    evaluated = shell("| true", "eval.py", f"--workdir={uninterrupted}")
    refused(1, evaluated.returncode, evaluated.stderr, message)


IMMENSE = """
import numpy as np
from sdd_jax.data.sources import sources

@sources.register("immense")
def immense():
    return {"train_images": np.zeros(2**60, np.uint8)}, 10
"""


def test_exhausted_host_memory_is_one_error_line(shell, refused, tmp_path):
    (tmp_path / "immense.py").write_text(IMMENSE)
    data = (f"--config.imports={tmp_path / 'immense.py'}", "--config.dataset.name=immense")
    done = shell("", "train.py", f"--workdir={tmp_path / 'run'}", *data)
    refused(1, done.returncode, done.stderr, "out of host memory", "1.00 EiB")
