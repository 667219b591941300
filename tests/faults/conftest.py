"""Programs that are killed, starved and fed with rubbish: how to start one, and what to say of its end.

With ``SDD_JAX_FAULTS_RESULTS=FILE`` the suite writes what it counts to FILE. It collects the parts in
FILE.parts beside it: remove that to start anew.
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

HERE = pathlib.Path(__file__).parent
PACKAGES = (
    "jax", "jaxlib", "flax", "orbax-checkpoint", "tensorstore", "ml_collections", "hypothesis", "numpy"
)  # fmt: skip
LIMIT = 240  # seconds that no program here needs
TINY = (  # a run of a few seconds after it has started
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
            item.add_marker(pytest.mark.slow)


class Programs:
    """``train.py`` and ``eval.py`` of this checkout, on one CPU device."""

    def __init__(self, root: pathlib.Path):
        self._root = root
        self.environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}

    def command(self, script, *arguments):
        return [sys.executable, str(self._root / script), *map(str, arguments)]

    def run(self, script, *arguments, **options):
        """Runs to the end."""
        defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.run(
            self.command(script, *arguments),
            env=self.environment, timeout=LIMIT, **(defaults | options),
        )  # fmt: skip

    def train(self, workdir, *arguments, **options):
        return self.run("train.py", f"--workdir={workdir}", *arguments, **options)

    @contextlib.contextmanager
    def started(self, script, *arguments, output=subprocess.DEVNULL, **options):
        """A program that runs; it is killed at the latest when the test is done with it."""
        defaults = {"stdout": output, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(
            self.command(script, *arguments), env=self.environment, **(defaults | options)
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def finished(self, workdir, *arguments, **options):
        """Trains to the end, and says nothing but that on the way."""
        done = self.train(workdir, *arguments, **options)
        assert done.returncode == 0, done.stderr
        assert "is finished: step" in done.stdout
        return done


@pytest.fixture(scope="session")
def programs(root):
    return Programs(root)


@pytest.fixture(scope="session")
def tiny():
    """Arguments of ``train.py``."""
    return TINY


@pytest.fixture(scope="session")
def uninterrupted(programs, tmp_path_factory):
    """The folder of a run of ``tiny`` from which nobody has taken anything."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    programs.finished(workdir, *TINY)
    return workdir


class Workdir:
    """What is in the folder of a run."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    @property
    def lines(self):
        """``metrics.jsonl`` but for its speeds; of a run that is at work the last may be half there."""
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
        """Of the checkpoints that are complete."""
        found = (p.name for p in (self.path / "checkpoints").glob("*"))
        return sorted(int(name) for name in found if name.isdigit())

    @property
    def unfinished(self):
        """Checkpoints that are being written, or whose writing was cut off."""
        return {(p.name, _inode(p)) for p in (self.path / "checkpoints").glob("*tmp*")}

    @property
    def digests(self):
        """Every byte of every checkpoint."""
        files = (self.path / "checkpoints").rglob("*")
        return {str(p.relative_to(self.path)): p.read_bytes() for p in files if p.is_file()}

    def record(self, step):
        """The checksums of the arrays of a checkpoint, and its validation accuracy."""
        path = self.path / "checkpoints" / str(step) / "record" / "metadata"
        return json.loads(path.read_text())

    def await_line(self, process, step):
        """Until the log has come to a step."""
        self.await_(process, lambda: self.last_logged >= step, f"step {step}")

    def await_writing(self, process):
        """Until a checkpoint is being written."""
        self.await_(process, lambda: self.unfinished, "a checkpoint")

    def await_checkpoint(self, process, step):
        self.await_(process, lambda: max(self.steps, default=0) >= step, f"checkpoint {step}")

    def await_(self, process, condition, what):
        """Until the condition holds, of a process that is still at work."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert process.poll() is None, f"ended before {what}: {process.stderr.read()}"
            assert time.monotonic() < deadline, f"did not come to {what}"
            time.sleep(0.002)


def _inode(path):
    try:
        return path.stat().st_ino
    except FileNotFoundError:  # it is complete by now, and has its name
        return None


@pytest.fixture(scope="session")
def look():
    """``look(path)``: what is in the folder of a run."""
    return Workdir


@pytest.fixture(scope="session")
def ends_like():
    """Says that a run has ended bit for bit, and line for line, as another one."""

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
    """Says that a program has ended with one line of these words, and nothing else."""

    def refused(status, returncode, stderr, *words):
        assert returncode == status, stderr
        assert stderr.startswith("error: "), stderr
        assert stderr.count("\n") == 1, stderr
        assert [word for word in words if str(word) not in stderr] == [], stderr

    return refused


@pytest.fixture(scope="session")
def count():
    """``count(what, name, figures)`` adds to the result file, if one is asked for."""

    def count(what, name, figures):
        if path := os.environ.get("SDD_JAX_FAULTS_RESULTS"):
            _merge(pathlib.Path(path), {what: {name: figures}})

    return count


@pytest.fixture(autouse=True)
def timed(request, count):
    started = time.time()
    yield
    count("seconds", request.node.nodeid, time.time() - started)


def _merge(path: pathlib.Path, added):
    """Adds sections to the file; two processes of the suite may do so at once."""
    with path.with_name(path.name + ".parts").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        parts = json.loads(file.read() or "{}")
        for section, entries in added.items():
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
