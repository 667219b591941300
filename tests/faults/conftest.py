"""Fixtures that run the programs as subprocesses and check how they end.

With ``SDD_JAX_FAULTS_RESULTS=FILE`` the suite writes its statistics to FILE. Partial results accumulate
in FILE.parts; delete that file to start over.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import pytest

from sdd_jax.runs.workdir import source_commit

HERE = pathlib.Path(__file__).parent
PACKAGES = (
    "jax", "jaxlib", "flax", "orbax-checkpoint", "tensorstore", "ml_collections", "hypothesis", "numpy"
)  # fmt: skip
LIMIT = 240  # timeout in seconds, above the duration of any program here
TINY = (  # a run of a few seconds, after startup
    "--config.model={'name': 'mlp', 'width': 16, 'depth': 1}",
    "--config.augment.pad=1",
    "--config.optimizer.learning_rate=0.05",
    "--config.batch_size=128",
    "--config.duration=60 steps",
    "--config.log_every=1 steps",
    "--config.eval_every=20 steps",
    "--config.checkpoint_every=10 steps",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)


class Programs:
    """Runs ``train.py`` and ``eval.py`` of this checkout on one CPU device."""

    def __init__(self, root: pathlib.Path):
        self._root = root
        self.environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}

    def command(self, script, *arguments):
        return [sys.executable, str(self._root / script), *map(str, arguments)]

    def run(self, script, *arguments, **options):
        """Runs a program until it exits."""
        defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.run(
            self.command(script, *arguments),
            env=self.environment, timeout=LIMIT, **(defaults | options),
        )  # fmt: skip

    def train(self, workdir, *arguments, **options):
        return self.run("train.py", f"--workdir={workdir}", *arguments, **options)

    @contextlib.contextmanager
    def started(self, script, *arguments, output=subprocess.DEVNULL, **options):
        """Context manager of a running program; kills it on exit."""
        defaults = {"stdout": output, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(
            self.command(script, *arguments), env=self.environment, **(defaults | options)
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def finished(self, workdir, *arguments, **options):
        """Trains to the end and checks that the run finished."""
        done = self.train(workdir, *arguments, **options)
        assert done.returncode == 0, done.stderr
        assert "is finished: step" in done.stdout
        return done


@pytest.fixture(scope="session")
def programs(root):
    return Programs(root)


@pytest.fixture(scope="session")
def tiny():
    """Arguments of ``train.py`` for a run of 60 steps."""
    return TINY


@pytest.fixture(scope="session")
def uninterrupted(programs, tmp_path_factory):
    """Workdir of an uninterrupted run of ``tiny``, shared by the tests."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    programs.finished(workdir, *TINY)
    return workdir


class Workdir:
    """Contents of a workdir."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    @property
    def lines(self):
        """Lines of ``metrics.jsonl`` without speeds; skips a line that is still being written."""
        path = self.path / "metrics.jsonl"
        lines = []
        for text in path.read_text().splitlines() if path.is_file() else []:
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                line.pop("images_per_second", None)
                lines.append(line)
        return lines

    @property
    def last_logged(self):
        return max((line["step"] for line in self.lines), default=0)

    @property
    def steps(self):
        """Steps of the complete checkpoints."""
        names = (p.name for p in (self.path / "checkpoints").glob("*"))
        return sorted(int(name) for name in names if name.isdigit())

    @property
    def unfinished(self):
        """Incomplete checkpoints: still being written, or interrupted."""
        return {(p.name, _inode(p)) for p in (self.path / "checkpoints").glob("*tmp*")}

    @property
    def digests(self):
        """Contents of every checkpoint file, by relative path."""
        files = (self.path / "checkpoints").rglob("*")
        return {str(p.relative_to(self.path)): p.read_bytes() for p in files if p.is_file()}

    def record(self, step):
        """Array checksums and validation accuracy of a checkpoint."""
        path = self.path / "checkpoints" / str(step) / "record" / "metadata"
        return json.loads(path.read_text())

    def await_line(self, process, step):
        """Waits until the log reaches a step."""
        self.await_(process, lambda: self.last_logged >= step, f"step {step}")

    def await_writing(self, process):
        """Waits until a checkpoint is being written."""
        self.await_(process, lambda: self.unfinished, "a checkpoint")

    def await_checkpoint(self, process, step):
        self.await_(process, lambda: max(self.steps, default=0) >= step, f"checkpoint {step}")

    def await_(self, process, condition, event):
        """Waits until the condition holds while the process is running."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert process.poll() is None, f"ended before {event}: {process.stderr.read()}"
            assert time.monotonic() < deadline, f"timed out waiting for {event}"
            time.sleep(0.002)


def _inode(path):
    try:
        return path.stat().st_ino
    except FileNotFoundError:  # completed and renamed meanwhile
        return None


@pytest.fixture(scope="session")
def inspect():
    """``inspect(path)`` returns the contents of a workdir."""
    return Workdir


@pytest.fixture(scope="session")
def ends_like():
    """Asserts that a run has the checkpoints, bit for bit, and the log of another run."""

    def ends_like(path, expected):
        ours, theirs = Workdir(path), Workdir(expected)
        assert ours.steps == theirs.steps
        for step in ours.steps:
            assert ours.record(step) == theirs.record(step), f"checkpoint {step}"
        assert ours.lines == theirs.lines
        assert not ours.unfinished

    return ends_like


@pytest.fixture(scope="session")
def refused():
    """Asserts an exit status and a one-line error message that contains the given words."""

    def refused(status, returncode, stderr, *words):
        assert returncode == status, stderr
        assert stderr.startswith("error: "), stderr
        assert stderr.count("\n") == 1, stderr
        assert [word for word in words if str(word) not in stderr] == [], stderr

    return refused


@pytest.fixture(scope="session")
def report():
    """``report(section, name, values)`` adds to the result file, if one is requested."""

    def report(section, name, values):
        if path := os.environ.get("SDD_JAX_FAULTS_RESULTS"):
            _merge(pathlib.Path(path), {section: {name: values}})

    return report


@pytest.fixture(autouse=True)
def record_duration(request, report):
    started = time.time()
    yield
    report("seconds", request.node.nodeid, time.time() - started)


def _merge(path: pathlib.Path, sections):
    """Adds sections to the file; locked, since two pytest workers may write at once."""
    with path.with_name(path.name + ".parts").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        parts = json.loads(file.read() or "{}")
        for section, entries in sections.items():
            parts.setdefault(section, {}).update(entries)
        file.truncate(0)
        file.write(json.dumps(parts))
        file.flush()
        path.write_text(json.dumps(_summary(parts), indent=2) + "\n")


def _summary(parts):
    seconds = parts.get("seconds", {})
    result = {
        "what": "The fault suite: runs on the digits that are killed, starved or given damaged files",
        "command": "pytest -m faults",
        "machine": "2 CPU cores, shared with other work",
        "commit": source_commit(),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "tests": len(seconds),
        "seconds_of_all_tests_one_after_another": round(sum(seconds.values())),
    }
    if runs := parts.get("kills", {}):
        total = {key: sum(run[key] for run in runs.values()) for key in ("kills", "while_writing")}
        result["kills"] = {
            "kills": total["kills"],
            "that_cut_off_the_writing_of_a_checkpoint": total["while_writing"],
            "checkpoint_interval_steps": max(run["interval"] for run in runs.values()),
            "most_steps_lost": max(run["most_steps_lost"] for run in runs.values()),
            "runs": len(runs),
            "runs_bit_identical": sum(run["identical"] for run in runs.values()),
            "by_run": runs,
        }
    if damages := parts.get("damage", {}):
        result["damage"] = {
            "what": "each file of a checkpoint with each damage, read in each way",
            **damages,
        }
    return result | {key: parts[key] for key in ("random_configs",) if key in parts}
