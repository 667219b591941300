"""What is read as data executes no code: arrays, checkpoints, records, names in a report.

A config names Python files as well; those of another run's record are executed on request only.
"""

import ast
import html.parser
import json
import os
import pathlib
import pickle
import shutil

import numpy as np
import pytest

import sdd_jax
from sdd_jax import config as configs
from sdd_jax import data
from sdd_jax.data.sources import tfds
from sdd_jax.errors import InputError
from sdd_jax.runs import Checkpoints, read_config

# TensorStore's pending reads outlive the event loop of a read that failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# Modules and functions that may execute code from their input.
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
}
CALLS = {"eval", "exec", "compile", "__import__", "fromfile", "fromregex", "genfromtxt"}


class Payload:
    """Creates a folder when unpickled."""

    def __init__(self, path):
        self._path = str(path)

    def __reduce__(self):
        return os.mkdir, (self._path,)


@pytest.fixture
def payload(tmp_path):
    """Payload to pickle; the test fails if anything unpickles it."""
    harmful = Payload(tmp_path / "executed")
    yield harmful
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(harmful))
    assert (tmp_path / "executed").is_dir()  # the payload works


def objects(payload, number=20):
    array = np.empty(number, object)
    array[:] = payload
    return array


def options(**changes):
    config = configs.default().dataset
    config.update(changes)
    return config


def test_an_npz_file_of_objects_is_refused(payload, tmp_path):
    names = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = {name: objects(payload) for name in names}
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(InputError, match="npz file: train_images holds pickled objects"):
        data.load(**options(name=f"npz:{tmp_path / 'data.npz'}"))


def test_a_pickle_in_place_of_an_npz_file_is_refused(payload, tmp_path):
    (tmp_path / "data.npz").write_bytes(pickle.dumps(payload))
    with pytest.raises(InputError, match="not a readable npz file: "):
        data.load(**options(name=f"npz:{tmp_path / 'data.npz'}"))


def test_pickled_objects_in_the_image_cache_are_replaced_from_the_data_set(
    payload, photographs, tmp_path, caplog
):
    args = options(
        name="tiny_birds", data_dir=photographs, cache_dir=str(tmp_path / "cache"), image_size=16,
        mean=(0.5,) * 3, std=(0.2,) * 3,
    )  # fmt: skip
    expected = data.load(**args)
    files = list((tmp_path / "cache").rglob("*.npy"))
    assert {p.stem for p in files} == set(tfds.LABELS)
    for file in files:
        np.save(file, objects(payload, 5), allow_pickle=True)
    result = data.load(**args)
    assert "is damaged" in caplog.text
    np.testing.assert_array_equal(result.splits["train"].labels, expected.splits["train"].labels)


def test_a_checkpoint_with_a_pickle_counts_as_damaged(payload, tmp_path):
    state = {"params": {"w": np.ones(3000, np.float32)}}
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state)
    checkpoints.close()
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "kept")
    for file in (tmp_path / "kept" / "2").rglob("*"):
        if file.is_file():
            shutil.rmtree(tmp_path / "checkpoints")
            shutil.copytree(tmp_path / "kept", tmp_path / "checkpoints")
            damaged = tmp_path / "checkpoints" / file.relative_to(tmp_path / "kept")
            damaged.write_bytes(pickle.dumps(payload))
            restored = Checkpoints(tmp_path).restore(state)
            np.testing.assert_array_equal(restored["params"]["w"], state["params"]["w"])


def test_a_pickle_in_place_of_the_config_is_refused(payload, tmp_path):
    (tmp_path / "config.json").write_bytes(pickle.dumps(payload))
    with pytest.raises(InputError, match="config.json cannot be read"):
        read_config(tmp_path)


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            yield getattr(function, "attr", getattr(function, "id", "")), node


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def unsafe(source):
    """Imports and calls in Python source that may execute code from their input."""
    tree = ast.parse(source)
    uses = [f"import {name}" for name in imports(tree) if name in MODULES]
    for name, call in calls(tree):
        builtin = isinstance(call.func, ast.Name)
        if name in CALLS and (builtin or name not in ("eval", "compile")):
            uses.append(name)
        keywords = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
        is_numpy = ast.unparse(call.func).startswith(("np.", "numpy."))
        if is_numpy and name == "load" and keywords.get("allow_pickle") is not False:
            uses.append(f"{ast.unparse(call)}: allow_pickle")
    return uses


def test_no_module_reads_pickles_or_executes_its_input():
    assert unsafe("import pickle") == ["import pickle"]
    assert unsafe("x = np.load(f)\neval(s)\nmodel.eval()") == ["np.load(f): allow_pickle", "eval"]
    assert unsafe("np.load(f, allow_pickle=False)") == []
    modules = list(pathlib.Path(sdd_jax.__file__).parent.rglob("*.py"))
    assert len(modules) > 60
    uses = {path.name: unsafe(path.read_text()) for path in modules}
    assert {name: use for name, use in uses.items() if use} == {}


class Elements(html.parser.HTMLParser):
    """Element kinds, event handler attributes and text of an HTML page."""

    def __init__(self, page):
        super().__init__()
        self.kinds, self.handlers, self.text = set(), [], ""
        self.feed(page)

    def handle_starttag(self, kind, attributes):
        self.kinds.add(kind)
        self.handlers += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, text):
        self.text += text


def test_a_report_escapes_the_names_it_shows(programs, tiny, tmp_path):
    names = ("<script>alert(1)<", '"><img src=x onerror=alert(2)> $^{$ {{7*7}}')
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (160, 8, 8, 1), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(160) % 10
    file = tmp_path / "<svg onload=alert(3)> $x_{$.npz"
    np.savez(file, **arrays)
    programs.finished(tmp_path / names[0], *tiny, f"--config.dataset.name=npz:{file}")
    shutil.copytree(tmp_path / names[0], tmp_path / names[1])
    done = programs.run(
        "eval.py",
        f"--workdir={tmp_path / names[0]}",
        f"--compare={tmp_path / names[1]}",
        "--checks=accuracy,calibration,ood",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    page = Elements((tmp_path / names[0] / "eval" / "report.html").read_text())
    assert page.kinds & {"script", "svg", "iframe", "object", "link"} == set()
    assert page.handlers == []
    for name in (*names, str(file)):
        assert name in page.text
    metrics = json.loads((tmp_path / names[0] / "eval" / "metrics.json").read_text())
    assert metrics["step"] == 60


def test_python_files_of_another_run_are_executed_on_request_only(
    programs, tiny, uninterrupted, refused, tmp_path
):
    trace, file = tmp_path / "executed", tmp_path / "theirs.py"
    file.write_text(f"import pathlib; pathlib.Path({str(trace)!r}).touch()")
    theirs = shutil.copytree(uninterrupted, tmp_path / "theirs")
    record = json.loads((theirs / "config.json").read_text())
    record["config"]["imports"] = [str(file)]
    (theirs / "config.json").write_text(json.dumps(record))
    student = (f"--workdir={tmp_path / 'student'}", f"--config.teacher={theirs}", *tiny)
    student += ("--config.objective={'name': 'distill'}", "--config.sd_dropout.weight=0")
    commands = {
        "--workdir": ("eval.py", f"--workdir={theirs}", "--checks=accuracy"),
        "--compare": ("eval.py", f"--workdir={uninterrupted}", f"--compare={theirs}"),
        "config.teacher": ("train.py", *student),
    }
    for field, command in commands.items():
        done = programs.run(*command)
        refused(
            2, done.returncode, done.stderr, f"{field}: {theirs} imports {file}", "--trust_imports"
        )
        assert not trace.exists()
    done = programs.run(*commands["--workdir"], "--trust_imports")
    assert done.returncode == 0, done.stderr
    assert trace.exists()
    trace.unlink()
    done = programs.run(*commands["config.teacher"], "--trust_imports")
    refused(2, done.returncode, done.stderr, "'distill' needs a teacher with dropout")
    assert trace.exists()
    trace.unlink()
    named_here = f"--config.imports={file}"
    done = programs.run(*commands["config.teacher"], named_here)
    refused(2, done.returncode, done.stderr, "'distill' needs a teacher with dropout")
