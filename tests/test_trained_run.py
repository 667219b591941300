"""Trained runs from Python: without their data, exported and read back, and as a start."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import sdd_jax
from sdd_jax import config as configs
from sdd_jax import data
from sdd_jax.errors import InputError
from sdd_jax.evaluation import metrics
from sdd_jax.experiment import load_experiment
from sdd_jax.mc_dropout import Prediction
from sdd_jax.models import models
from sdd_jax.objectives import objectives
from sdd_jax.runs import read_record


def train(folder, **changes):
    """Trains a small network on digits, with checkpoints at steps 24 and 48."""
    config = configs.default()
    config.dataset.validation = 0.1
    config.model = models.options("mlp", width=24, depth=1)
    config.sd_dropout.weight = 0.1
    config.batch_size = 144
    config.duration = "6 epochs"
    config.eval_every = config.checkpoint_every = "3 epochs"
    config.update_from_flattened_dict(changes)
    sdd_jax.train_and_evaluate(config, folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def run(folder):
    return sdd_jax.load(folder)


@pytest.fixture(scope="module")
def test_split():
    return data.load().splits["test"]


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def no_data(monkeypatch):
    """Fails when a data set is loaded."""

    def load(*args, **kwargs):
        raise InputError("no data set here", field="name")

    monkeypatch.setattr(data, "load", load)


def rewrite(folder, change):
    """Changes the record of a run."""
    path = folder / "config.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


# ------------------------------------------------------------------------------------- load


def test_a_run_is_loaded_without_its_data(folder, no_data):
    run = sdd_jax.load(folder)
    assert (run.step, run.num_classes, run.image_shape) == (48, 10, (8, 8, 1))
    assert run.config.sd_dropout.temperature == 3.0
    assert run.mean.shape == run.std.shape == (1,)
    assert len(repr(run)) < 300


def test_predictions_are_those_of_the_networks_own_normalised_images(run, test_split):
    images = test_split.images
    normalised = (jnp.asarray(images, jnp.float32) / 255 - run.mean.item()) / run.std.item()
    logits = run.model.apply(run.variables, normalised)
    np.testing.assert_allclose(run.logits(images), logits, rtol=1e-4, atol=1e-4)
    probs = run.predict(images)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, jax.nn.softmax(logits), rtol=1e-3, atol=1e-5)
    features = run.features(images)
    dense = run.variables["params"]["classifier"]
    np.testing.assert_allclose(
        features @ dense["kernel"] + dense["bias"], logits, rtol=1e-3, atol=1e-3
    )


def test_predictions_are_as_accurate_as_the_evaluation_says(run, folder, test_split, capsys):
    result = sdd_jax.evaluate_workdir(folder, output=folder.parent / "elsewhere")
    accuracy = np.mean(run.predict(test_split.images).argmax(-1) == test_split.labels)
    assert accuracy == pytest.approx(result["eval/accuracy"])
    assert "eval/calibration/temperature" in result  # the checks of eval.py without flags
    assert "ECE" in capsys.readouterr().out


@pytest.mark.parametrize("checkpoint", [24, "24", "best"])
def test_another_checkpoint(folder, run, test_split, checkpoint):
    other = sdd_jax.load(folder, checkpoint=checkpoint)
    assert other.step == (48 if checkpoint == "best" else 24)
    same = np.array_equal(other.logits(test_split.images), run.logits(test_split.images))
    assert same == (other.step == 48)


@pytest.mark.parametrize("number", [0, 1, 3, 17])
def test_the_number_of_images_does_not_change_their_predictions(run, test_split, number):
    images = test_split.images[:number]
    expected = run.predict(test_split.images)[:number]
    np.testing.assert_allclose(run.predict(images), expected, rtol=1e-5, atol=1e-7)
    assert run.features(images).shape == (number, 24)
    assert run.predict(images[..., 0]).shape == (number, 10)  # grey images without an axis
    assert run.predict(jnp.asarray(images)).shape == (number, 10)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), r"float32 \[2, 8, 8, 1\]"),
        (np.zeros((2, 9, 8, 1), np.uint8), r"uint8 \[2, 9, 8, 1\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"uint8 \[2, 8, 8, 3\]"),
        (np.zeros((8, 8), np.uint8), r"uint8 \[8, 8\]"),
        ([[[0] * 8] * 8], r"int64 \[1, 8, 8\]"),
    ],
)
@pytest.mark.parametrize("method", ["predict", "logits", "features", "mc_dropout"])
def test_other_images_are_one_line(run, method, images, got):
    message = rf"images must be uint8 \[N, 8, 8, 1\], got {got}; sdd_jax.data.resized changes"
    with pytest.raises(ValueError, match=message):
        getattr(run, method)(images)


def test_resized_images_are_those_of_the_network(run):
    images = np.zeros((2, 20, 10, 3), np.uint8)
    assert run.predict(data.resized(images, run.image_shape)).shape == (2, 10)


# ------------------------------------------------------------------------------- temperature


def test_a_temperature_divides_the_logits(run, test_split):
    images = test_split.images[:5]
    expected = jax.nn.softmax(run.logits(images) / 2)
    for temperature in (2, 2.0, np.float32(2)):
        probs = run.predict(images, temperature=temperature)
        np.testing.assert_allclose(probs, expected, rtol=1e-5, atol=1e-7)


def test_the_fitted_temperature_is_that_of_the_calibration_check(copy, test_split):
    images, labels = test_split.images, test_split.labels
    with pytest.raises(ValueError, match="temperature: none is fitted for step 48; train with a"):
        sdd_jax.load(copy).predict(images, temperature="fitted")
    result = sdd_jax.evaluate_workdir(copy, "calibration")
    run = sdd_jax.load(copy)
    assert run.temperature == result["eval/calibration/temperature"]
    scaled = metrics.compute(np.log(run.predict(images, temperature="fitted")), labels, "nll")
    assert scaled["nll"] == pytest.approx(result["eval/calibration/scaled/nll"], rel=1e-4)
    assert sdd_jax.load(copy, checkpoint=24).temperature is None  # of another step
    rewrite_checks(copy, metrics.LOWEST_TEMPERATURE)
    assert sdd_jax.load(copy).temperature is None


def rewrite_checks(folder, temperature):
    path = folder / "eval" / "checks.json"
    checks = json.loads(path.read_text())
    checks["calibration"]["metrics"]["calibration/temperature"] = temperature
    path.write_text(json.dumps(checks))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "warm", None])
def test_an_unusable_temperature_is_one_line(run, test_split, temperature):
    with pytest.raises(ValueError, match="temperature must be 'fitted' or above 0, got "):
        run.predict(test_split.images, temperature=temperature)


# ------------------------------------------------------------------------------- mc_dropout


@pytest.mark.parametrize("own", [False, True], ids=["SD-Dropout", "own dropout"])
def test_masks_are_those_of_the_check(folder, tmp_path, test_split, own):
    if own:
        folder = train(tmp_path / "run", **{"model.dropout_rate": 0.2, "sd_dropout.weight": 0.0})
    result = sdd_jax.evaluate_workdir(
        folder, ["mc_dropout"], overrides={"eval.mc_samples": 3}, output=tmp_path / "eval"
    )
    run = sdd_jax.load(folder)
    prediction = run.mc_dropout(test_split.images, num_samples=3, seed=run.config.seed)
    assert isinstance(prediction, Prediction)
    values = metrics.compute(np.log(prediction.probs), test_split.labels, "accuracy", "nll")
    for name, value in values.items():
        assert value == pytest.approx(result[f"eval/mc_dropout/3/{name}"], rel=1e-4)
    information = result["eval/mc_dropout/3/mutual_information"]
    assert prediction.mutual_information.mean() == pytest.approx(information, rel=1e-3)


def test_the_result_is_that_of_mc_dropout(run, test_split):
    images = test_split.images[:7]
    prediction = run.mc_dropout(images, num_samples=4)
    again, other = (run.mc_dropout(images, num_samples=4, seed=seed) for seed in (0, 1))
    for name, value, expected in zip(prediction._fields, prediction, again, strict=True):
        assert value.dtype == np.float32
        assert value.shape == ((7, 10) if name == "probs" else (7,))
        np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(
        prediction.entropy - prediction.expected_entropy, prediction.mutual_information, atol=1e-5
    )
    assert not np.array_equal(prediction.probs, other.probs)
    assert not np.array_equal(run.mc_dropout(images, num_samples=4, rate=0.1).probs, other.probs)


def test_a_run_without_dropout_needs_a_rate(tmp_path, test_split):
    run = sdd_jax.load(train(tmp_path / "run", **{"sd_dropout.weight": 0.0}))
    images = test_split.images[:3]
    with pytest.raises(ValueError, match="rate must be above 0: the run was trained without"):
        run.mc_dropout(images)
    assert run.mc_dropout(images, num_samples=2, rate=0.5).probs.shape == (3, 10)
    for options in ({"num_samples": 0}, {"rate": 1.0}, {"rate": -0.1}):
        with pytest.raises(
            ValueError, match=r"num_samples must be at least 1 and rate in \[0, 1\)"
        ):
            run.mc_dropout(images, **options)


# -------------------------------------------------------------------- runs of earlier versions


def version_0_2(record):
    del record["network"]


def version_0_1(record):
    del record["network"], record["data"]


@pytest.mark.parametrize("earlier", [version_0_2, version_0_1])
def test_a_run_of_an_earlier_version_is_loaded_with_its_data(copy, run, earlier):
    rewrite(copy, earlier)
    old = sdd_jax.load(copy)
    assert (old.num_classes, old.image_shape) == (run.num_classes, run.image_shape)
    np.testing.assert_array_equal([old.mean, old.std], [run.mean, run.std])


@pytest.mark.parametrize(
    ("earlier", "lacking"),
    [(version_0_2, ("mean", "std")), (version_0_1, ("num_classes", "image_shape", "mean", "std"))],
)
def test_without_its_data_the_error_says_what_to_give(copy, run, no_data, earlier, lacking):
    rewrite(copy, earlier)
    with pytest.raises(InputError) as error:
        sdd_jax.load(copy)
    assert f"lacks {', '.join(lacking)}, and its data set is not there (" in str(error.value)
    assert str(error.value).endswith(f"give {', '.join(f'{name}=...' for name in lacking)}")
    old = sdd_jax.load(copy, **{name: getattr(run, name) for name in lacking})
    np.testing.assert_array_equal([old.mean, old.std], [run.mean, run.std])
    assert old.image_shape == run.image_shape


def test_changed_data_do_not_replace_what_a_record_lacks(copy):
    rewrite(copy, version_0_2)
    rewrite(copy, lambda record: record["data"]["train"].update(images=1))
    with pytest.raises(InputError, match=r"data\.train\.images: .*; give mean=..., std=...$"):
        sdd_jax.load(copy)


def test_a_config_with_mean_and_std_needs_no_data(copy, no_data):
    rewrite(copy, version_0_2)
    rewrite(copy, lambda record: record["config"]["dataset"].update(mean=[0.5], std=[0.25]))
    assert sdd_jax.load(copy).mean == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["network"].update(mean="x"), "network.mean: must be a list of finite numbers"),
        (lambda r: r["network"].update(std=[0.0]), "network.std: must be a list of numbers, each"),
        (lambda r: r["network"].update(std=[1.0] * 3), "network.std: must be 1 numbers"),
        (lambda r: r["network"].update(image_shape=[8, 8]), "network.image_shape: must be"),
        (lambda r: r.update(network=7), "config.json cannot be read: TypeError"),
        (lambda r: r["network"].update(num_classes=11), "is of another network"),
    ],
)
def test_a_damaged_record_is_one_line(copy, change, message):
    rewrite(copy, change)
    with pytest.raises(InputError, match=message):
        sdd_jax.load(copy)


def test_a_run_whose_record_lacks_the_new_fields_resumes(copy):
    config = read_record(copy)["config"]
    before = sdd_jax.train_and_evaluate(config, copy)
    rewrite(copy, version_0_2)
    rewrite(copy, lambda record: record["config"]["model"].pop("init"))
    assert sdd_jax.train_and_evaluate(config, copy) == before


def test_no_run_is_one_line(tmp_path):
    with pytest.raises(InputError, match="^path: must hold a run, there is no .*config.json"):
        sdd_jax.load(tmp_path / "nothing")


def test_a_run_with_imports_is_executed_only_if_trusted(copy, harmful):
    rewrite(copy, lambda record: record["config"].update(imports=[str(harmful)]))
    with pytest.raises(InputError, match=r"^path: .*imports .*harmful.py"):
        sdd_jax.load(copy)
    assert not (harmful.parent / "executed").exists()
    assert sdd_jax.load(copy, trust_imports=True).step == 48
    assert (harmful.parent / "executed").exists()


# --------------------------------------------------------------------------- save_pretrained


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "a" / "b"
    run.save_pretrained(folder)
    return folder


def test_an_export_predicts_the_same_bit_for_bit(run, exported, test_split, no_data):
    assert sorted(os.listdir(exported)) == ["config.json", "model.safetensors"]
    again = sdd_jax.load(exported)
    images = test_split.images
    np.testing.assert_array_equal(again.predict(images), run.predict(images))
    masks, expected = (r.mc_dropout(images[:20], num_samples=3) for r in (again, run))
    np.testing.assert_array_equal(masks.probs, expected.probs)
    jax.tree.map(np.testing.assert_array_equal, again.variables, run.variables)
    assert again.config == run.config
    assert again.step == 48
    record = json.loads((exported / "config.json").read_text())
    assert record["versions"]["sdd_jax"]
    arrays = safetensors.numpy.load_file(exported / "model.safetensors")
    assert "params/classifier/kernel" in arrays


def test_an_export_keeps_batch_statistics_and_the_temperature(run, tmp_path):
    model = models.build({"name": "resnet18", "width": 2}, num_classes=10, axis_name=None)
    variables = jax.device_get(model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    variables["params"]["classifier"]["kernel"] = np.asfortranarray(
        variables["params"]["classifier"]["kernel"]
    )
    config = run.config.copy_and_resolve_references()
    config.model = models.options("resnet18", width=2)
    attributes = {"config": config, "model": model, "variables": variables, "temperature": 1.5}
    fields = ("step", "num_classes", "image_shape", "mean", "std")
    other = sdd_jax.TrainedRun(**attributes, **{name: getattr(run, name) for name in fields})
    other.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)  # replaces
    again = sdd_jax.load(tmp_path)
    assert again.temperature == 1.5
    jax.tree.map(np.testing.assert_array_equal, again.variables, variables)


def test_the_folder_of_a_run_is_not_overwritten(run, copy):
    before = (copy / "config.json").read_bytes()
    with pytest.raises(InputError, match="^folder: must be another folder than that of a run"):
        run.save_pretrained(copy)
    assert (copy / "config.json").read_bytes() == before


def flip(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", lambda c: c[:-1], "^path: .*no intact safetensors file"),
        ("model.safetensors", flip, "^path: .*model.safetensors is damaged, or not the one"),
        ("config.json", lambda c: c[:100], "^path: .*config.json cannot be read"),
        ("config.json", lambda c: c.replace(b'"step"', b'"stop"'), "config.json cannot be read"),
        ("config.json", lambda c: c.replace(b'"width": 24', b'"width": 25'), "in this network"),
    ],
)
def test_a_damaged_export_is_one_line(exported, tmp_path, name, damage, message):
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(InputError, match=message):
        sdd_jax.load(folder)


def test_a_run_beside_an_export_is_loaded_from_its_checkpoints(copy, exported):
    shutil.copy(exported / "model.safetensors", copy)
    assert sdd_jax.load(copy, checkpoint=24).step == 24


def test_an_export_has_one_checkpoint(exported):
    assert sdd_jax.load(exported, checkpoint=48).step == 48
    with pytest.raises(InputError, match="^checkpoint: must be 48, or latest, got 24"):
        sdd_jax.load(exported, checkpoint=24)


# ------------------------------------------------------------------------------- model.init


@pytest.fixture
def starting(tiny_config, exported):
    """A config of the network that was exported, which starts from the export."""
    tiny_config.model = models.options("mlp", width=24, depth=1, init=str(exported))
    return tiny_config


def test_a_run_starts_from_an_exported_network(starting, run, exported):
    for path in (exported, exported / "model.safetensors"):
        starting.model.init = str(path)
        state = load_experiment(starting).create_state()
        jax.tree.map(np.testing.assert_array_equal, state.params, run.variables["params"])


def test_the_average_of_the_parameters_starts_there_too(starting, run):
    starting.optimizer.ema = 0.9
    state = load_experiment(starting).create_state()
    jax.tree.map(np.testing.assert_array_equal, state.ema, run.variables["params"])


def test_a_head_for_other_classes_starts_fresh(starting, run):
    starting.dataset.num_classes = 12
    state = load_experiment(starting).create_state()
    assert state.params["classifier"]["kernel"].shape == (24, 12)
    backbone = run.variables["params"]["backbone"]
    jax.tree.map(np.testing.assert_array_equal, state.params["backbone"], backbone)


def test_init_is_recorded_and_another_file_does_not_resume(starting, exported, run, tmp_path):
    weights = shutil.copytree(exported, tmp_path / "weights")
    starting.model.init, starting.duration = str(weights), "1 epochs"
    starting.optimizer.learning_rate = 1e-4
    result = sdd_jax.train_and_evaluate(starting, tmp_path / "run")
    assert result["eval/accuracy"] > 0.8  # of the exported network; a fresh one has 0.2
    assert read_record(tmp_path / "run")["config"].model.init == str(weights)
    assert sdd_jax.train_and_evaluate(starting, tmp_path / "run") == result
    arrays = safetensors.numpy.load_file(weights / "model.safetensors")
    (weights / "model.safetensors").write_bytes(
        safetensors.numpy.save({name: x + 1 for name, x in arrays.items()})
    )
    with pytest.raises(InputError, match=r"init\.sha256: "):
        sdd_jax.train_and_evaluate(starting, tmp_path / "run")
    shutil.rmtree(weights)
    assert sdd_jax.load(tmp_path / "run").step == 8  # needs the file no more


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "/nowhere.safetensors"}, "must be a safetensors file, got /nowhere.safetensors"),
        ({"init": "s3://bucket/x"}, "must be on a local or mounted disk"),
        ({"init": 3}, "must be a string, got 3"),
        ({"width": 16}, r"params/backbone/Dense_0/bias is float32\[24\] in .*\[16\] in this"),
    ],
)
def test_an_unusable_init_is_one_line_of_its_field(starting, options, message):
    starting.model = dict(starting.model) | options
    with pytest.raises(InputError, match=f"^config.model.init: {message}"):
        load_experiment(starting)


def test_init_beside_a_teacher_that_sets_the_start_is_refused(starting, tmp_path):
    teacher = train(tmp_path / "teacher", **{"model.dropout_rate": 0.1, "sd_dropout.weight": 0.0})
    starting.dataset.validation = 0.1
    starting.teacher = str(teacher)
    starting.objective = objectives.options("distill")
    starting.batch_size = 144
    with pytest.raises(InputError, match="^config.model.init: must be empty where the objective"):
        load_experiment(starting)
    starting.objective = objectives.options("distill", init="scratch")
    load_experiment(starting)


def test_every_network_has_the_options_and_none_may_define_them():
    options = [models.options(name) for name in models.names()]
    assert {(own["init"], own["spread"]) for own in options} == {("", "none")}

    def with_init(*, num_classes, init: str = "zeros"):
        return None

    def with_spread(*, num_classes, spread: float = 1.0):
        return None

    for name, mine in (("init", with_init), ("spread", with_spread)):
        with pytest.raises(ValueError, match=f"'{name}' is that of every network"):
            models.register(f"test_with_its_own_{name}")(mine)
        assert f"test_with_its_own_{name}" not in models.names()


# -------------------------------------------------------------------------- names of the package


def python(code, **options):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def test_names_of_the_program_are_those_of_the_package():
    assert {"load", "TrainedRun", "train_and_evaluate", "evaluate_workdir"} <= set(sdd_jax.__all__)
    assert set(sdd_jax.__all__) <= set(dir(sdd_jax))
    assert all(getattr(sdd_jax, name).__doc__ for name in sdd_jax.__all__)
    with pytest.raises(AttributeError, match="module 'sdd_jax' has no attribute 'loads'"):
        _ = sdd_jax.loads


def test_modules_keep_their_names():
    code = "import sdd_jax; sdd_jax.load; import sdd_jax.train as t, sdd_jax.evaluate as e; print(t, e)"
    assert python(code).stdout.count("<module") == 2


def test_without_the_extra_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['flax'] = None\n"
        "import sdd_jax\n"
        "try:\n"
        "    sdd_jax.load\n"
        "except ImportError as error:\n"
        "    print(error)"
    )
    assert re.fullmatch(
        r"sdd_jax.load needs flax; pip install .*\[train\].*\n", python(code).stdout
    )


@pytest.mark.slow
def test_a_program_evaluates_and_predicts_without_flags(folder, tmp_path):
    code = (
        "import sys, numpy as np, sdd_jax\n"
        f"result = sdd_jax.evaluate_workdir({str(folder)!r}, checks=['accuracy'], output='out')\n"
        f"run = sdd_jax.load({str(folder)!r})\n"
        "print(run.predict(np.zeros((2, 8, 8), np.uint8)).shape, result['step'])\n"
    )
    done = python(code, cwd=tmp_path)
    assert done.stdout.endswith("(2, 10) 48\n")
    assert done.stderr == ""


def test_an_export_keeps_the_files_that_the_run_imports(run, tmp_path):
    (tmp_path / "mine.py").write_text("# of an exported run")
    config = run.config.copy_and_resolve_references()
    config.imports = (str(tmp_path / "mine.py"),)
    dataclasses.replace(run, config=config).save_pretrained(tmp_path / "export")
    (tmp_path / "mine.py").unlink()
    with pytest.raises(InputError, match="export/imports/mine.py, SHA-256 .*--trust_imports"):
        sdd_jax.load(tmp_path / "export")
    loaded = sdd_jax.load(tmp_path / "export", trust_imports=True)
    assert list(loaded.config.imports) == [str(tmp_path / "export" / "imports" / "mine.py")]
