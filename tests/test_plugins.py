"""Plugins: Python files that register entries and are recorded with the run."""

import importlib
import json
import sys

import pytest

from sdd_jax import plugins
from sdd_jax.errors import InputError
from sdd_jax.evaluate import evaluate_workdir
from sdd_jax.train import train_and_evaluate

SOURCE = """
import flax.linen as nn
import jax.numpy as jnp
from sdd_jax import losses
from sdd_jax.models import Classifier, models
from sdd_jax.objectives import Objective, Output, Term, objectives


@objectives.register("focal_in_test")
def focal(*, gamma: float = 2.0) -> Objective:
    def loss(forward, batch, keys):
        view = forward(batch.views[0])
        ce = losses.cross_entropy(view.logits, batch.labels)
        return Output(view, {"focal": Term((1 - jnp.exp(-ce)) ** gamma * ce)}, view.batch_stats)

    return Objective(loss)


class Backbone(nn.Module):
    width: int

    @nn.compact
    def __call__(self, images, *, train, dropout_keys):
        return nn.relu(nn.Dense(self.width)(images.reshape(len(images), -1)))


@models.register("net_in_test")
def net(*, num_classes, width=16):
    return Classifier(Backbone(width), num_classes)
"""


def test_a_plugin_trains_and_is_loaded_by_the_evaluation(tmp_path, tiny_config, monkeypatch):
    (tmp_path / "mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    tiny_config.imports = ("mine.py",)
    tiny_config.objective = {"name": "focal_in_test", "gamma": 1.0}
    tiny_config.model = {"name": "net_in_test", "width": 24}
    result = train_and_evaluate(tiny_config, "run")
    monkeypatch.chdir(tmp_path.parent)
    evaluated = evaluate_workdir(str(tmp_path / "run"))  # this process has loaded the file
    assert evaluated["eval/accuracy"] == result["eval/accuracy"] > 0.3
    record = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert record["imports"] == [str(tmp_path / "mine.py")]
    assert record["objective"] == {"name": "focal_in_test", "gamma": 1.0}
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"train/focal", "train/sd_dropout"} <= set(last)


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (None, "nowhere.py", "config.imports: must be Python files or modules, there is no file"),
        (
            None,
            "no_such_module_here",
            "config.imports: 'no_such_module_here' cannot be imported: ModuleNotFound",
        ),
        (None, "x" * 5000 + ".py", "config.imports: must be Python files or modules, there is no"),
        (None, "~nobody-of-this-name/x.py", "config.imports: must be .*there is no file"),
        ("1 / 0", "mine.py", "config.imports: 'mine.py' cannot be imported: ZeroDivisionError"),
    ],
)
def test_a_missing_or_failing_plugin_is_refused(
    source, name, message, tmp_path, tiny_config, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if source:
        (tmp_path / name).write_text(source)
    tiny_config.imports = (name,)
    with pytest.raises(InputError, match=message):
        train_and_evaluate(tiny_config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_file_that_a_program_has_imported_under_its_own_name_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "my_module_in_test.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    path = str(tmp_path / "my_module_in_test.py")
    assert plugins.not_loaded([path, "my_module_in_test", "json"]) == [path, "my_module_in_test"]
    importlib.import_module("my_module_in_test")
    assert plugins.not_loaded([path, "my_module_in_test", "json"]) == []
    plugins.load([path])
    assert f"sdd_jax_import:{path}" not in sys.modules  # it would register its entries twice


def test_a_file_that_has_changed_is_not_executed_again_and_said_once(tmp_path, caplog):
    path = tmp_path / "changing_in_test.py"
    path.write_text("x = 1")
    plugins.load([str(path)])
    path.write_text("1 / 0")
    plugins.load([str(path)])
    plugins.load([str(path)])
    assert plugins.source(str(path)) == b"x = 1"
    (message,) = [r.getMessage() for r in caplog.records]
    assert message == f"{path} has changed; this process goes on with what it executed"


def test_two_versions_of_a_file_that_register_one_name_are_one_line(tmp_path):
    for version in ("a", "b"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "mine.py").write_text(
            f"# {version}\nfrom sdd_jax.training.schedules import schedules\n"
            "@schedules.register('version_in_test')\ndef build(): pass\n"
        )
    plugins.load([str(tmp_path / "a" / "mine.py")])
    with pytest.raises(
        InputError, match="registered twice; this process has executed another version of it, .*/a/"
    ):
        plugins.load([str(tmp_path / "b" / "mine.py")])
