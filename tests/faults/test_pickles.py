"""Nothing that is read can bring code along, and nothing that is shown either."""

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

# What runs code that it reads, or may.
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
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self._path = str(path)

    def __reduce__(self):
        return os.mkdir, (self._path,)


@pytest.fixture
def payload(tmp_path):
    """Something to pickle; afterwards nobody may have unpickled it."""
    harmful = Payload(tmp_path / "executed")
    yield harmful
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(harmful))
    assert (tmp_path / "executed").is_dir()  # it would have worked


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
    with pytest.raises(InputError, match="not a readable npz file: Object arrays cannot be loaded"):
        data.load(**options(name=f"npz:{tmp_path / 'data.npz'}"))


def test_a_pickle_in_the_place_of_an_npz_file_is_refused(payload, tmp_path):
    (tmp_path / "data.npz").write_bytes(pickle.dumps(payload))
    with pytest.raises(InputError, match="not a readable npz file: .*pickled"):
        data.load(**options(name=f"npz:{tmp_path / 'data.npz'}"))


def test_objects_in_the_cache_of_decoded_images_are_read_again_from_the_data_set(
    payload, photographs, tmp_path, caplog
):
    given = options(
        name="tiny_birds", data_dir=photographs, cache_dir=str(tmp_path / "cache"), image_size=16,
        mean=(0.5,) * 3, std=(0.2,) * 3,
    )  # fmt: skip
    whole = data.load(**given)
    files = list((tmp_path / "cache").rglob("*.npy"))
    assert {p.stem for p in files} == set(tfds.LABELS)
    for file in files:
        np.save(file, objects(payload, 5), allow_pickle=True)
    again = data.load(**given)
    assert "is damaged" in caplog.text
    np.testing.assert_array_equal(again.splits["train"].labels, whole.splits["train"].labels)


def test_a_checkpoint_of_pickles_is_damaged(payload, tmp_path):
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
            found = Checkpoints(tmp_path).restore(state)
            np.testing.assert_array_equal(found["params"]["w"], state["params"]["w"])


def test_the_config_of_a_run_is_data(payload, tmp_path):
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


def faults(source):
    """What of a source may run code that it reads."""
    tree = ast.parse(source)
    found = [f"import {name}" for name in imports(tree) if name in MODULES]
    for name, call in calls(tree):
        builtin = isinstance(call.func, ast.Name)
        if name in CALLS and (builtin or name not in ("eval", "compile")):
            found.append(name)
        given = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
        of_numpy = ast.unparse(call.func).startswith(("np.", "numpy."))
        if of_numpy and name == "load" and given.get("allow_pickle") is not False:
            found.append(f"{ast.unparse(call)}: allow_pickle")
    return found


def test_no_module_reads_pickles_or_runs_what_it_reads():
    assert faults("import pickle") == ["import pickle"]
    assert faults("x = np.load(f)\neval(s)\nmodel.eval()") == ["np.load(f): allow_pickle", "eval"]
    assert faults("np.load(f, allow_pickle=False)") == []
    modules = list(pathlib.Path(sdd_jax.__file__).parent.rglob("*.py"))
    assert len(modules) > 60
    found = {path.name: faults(path.read_text()) for path in modules}
    assert {name: what for name, what in found.items() if what} == {}


class Elements(html.parser.HTMLParser):
    """The kinds of elements of a page, their attributes that run code, and its text."""

    def __init__(self, page):
        super().__init__()
        self.kinds, self.handlers, self.text = set(), [], ""
        self.feed(page)

    def handle_starttag(self, kind, attributes):
        self.kinds.add(kind)
        self.handlers += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, text):
        self.text += text


def test_a_report_shows_names_and_runs_none_of_them(programs, tiny, tmp_path):
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
    for shown in (*names, str(file)):
        assert shown in page.text
    figures = json.loads((tmp_path / names[0] / "eval" / "metrics.json").read_text())
    assert figures["step"] == 60
