"""Training runs: complete, interrupted, resumed and refused."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from sdd_jax import experiment as experiments
from sdd_jax import train
from sdd_jax.errors import InputError
from sdd_jax.evaluate import evaluate_workdir
from sdd_jax.runs import Checkpoints, read_metrics


def final_state(config, workdir):
    like = jax.eval_shape(experiments.load_experiment(config).create_state)
    return Checkpoints(workdir, read_only=True).restore(like)


def lines(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    parsed = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in parsed]


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Config, workdir and result of an uninterrupted run."""
    from sdd_jax import config as base
    from sdd_jax.models import models

    config = base.default()
    config.augment.pad = 1
    config.model = models.options("mlp", width=16, depth=1, dropout_rate=0.1)
    config.optimizer.learning_rate = 0.05
    config.batch_size = 176
    config.duration = "4 epochs"
    config.log_every = "4 steps"
    config.dataset.validation = 0.015
    config.sd_dropout.weight = 0.1
    folder = tmp_path_factory.mktemp("run")
    return config, folder, train.train_and_evaluate(config, str(folder))


def test_the_workdir_holds_config_metrics_events_and_checkpoints(finished):
    config, folder, result = finished
    record = json.loads((folder / "config.json").read_text())
    assert record["config"]["model"]["width"] == 16
    assert record["config"]["model"]["dtype"] == "float32"  # including defaults of the options
    assert {"jax", "flax", "sdd_jax", "python"} <= set(record["versions"])
    steps = [line["step"] for line in lines(folder)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 32
    names = set().union(*lines(folder))
    assert {"epoch", "train/loss", "train/cross_entropy", "train/sd_dropout"} <= names
    assert {"train/sd_dropout/agreement", "train/entropy", "train/learning_rate"} <= names
    assert {"eval/accuracy", "eval/nll", "eval/ece", "eval/brier", "eval/top5_accuracy"} <= names
    assert "validation/accuracy" in names
    assert any(
        "images_per_second" in line for line in (folder / "metrics.jsonl").read_text().splitlines()
    )
    assert list((folder / "tensorboard").glob("events*"))
    assert (folder / "checkpoints" / "32").is_dir()
    assert lines(folder)[-1]["eval/accuracy"] == result["eval/accuracy"]


def test_eval_reproduces_the_metrics_of_the_last_step(finished):
    _, folder, result = finished
    repeated = evaluate_workdir(str(folder))
    assert repeated | {"step": 32} | result == repeated
    assert json.loads((folder / "eval" / "metrics.json").read_text()) == repeated


def test_a_finished_run_is_reported_and_not_trained_further(finished, monkeypatch, capsys):
    config, folder, result = finished
    monkeypatch.setattr(train, "compile_train_call", lambda *_: pytest.fail("compiled"))
    before = (folder / "metrics.jsonl").read_bytes()
    assert train.train_and_evaluate(config, str(folder)) == {
        **result, **{k: v for k, v in lines(folder)[-1].items() if k.startswith("eval/")}
    }  # fmt: skip
    assert "is finished: step 32" in capsys.readouterr().out
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_run_stopped_by_sigterm_resumes_to_the_same_parameters_and_log(
    finished, tmp_path, monkeypatch
):
    config, folder, result = finished
    compiled = train.compile_train_call

    def stop_at(step):
        def compile_and_stop(*arguments):
            call = compiled(*arguments)

            def stopping_call(state, *rest):
                if int(state.step) == step:
                    os.kill(os.getpid(), signal.SIGTERM)
                return call(state, *rest)

            return stopping_call

        return compile_and_stop

    for step in (2, 15, 31):  # mid-epoch, at the end of an epoch, and at the end of training
        monkeypatch.setattr(train, "compile_train_call", stop_at(step))
        with pytest.raises(train.Interrupted, match=f"after step {step + 1}, which is saved"):
            train.train_and_evaluate(config, str(tmp_path))
    monkeypatch.setattr(train, "compile_train_call", compiled)
    assert train.train_and_evaluate(config, str(tmp_path)) == result
    assert equal(final_state(config, tmp_path), final_state(config, folder))
    evaluations = [[x for x in lines(f) if "eval/accuracy" in x] for f in (tmp_path, folder)]
    for ours, theirs in zip(*evaluations, strict=True):
        assert {k: v for k, v in ours.items() if k.startswith("eval/")} == {
            k: v for k, v in theirs.items() if k.startswith("eval/")
        }


def test_lines_after_the_checkpoint_are_dropped_on_resume(finished, tmp_path, monkeypatch):
    config, _, _ = finished
    save = Checkpoints.save

    def save_until_16(self, step, *arguments, **options):
        if step > 16:  # as if the process had been killed
            raise KeyboardInterrupt
        save(self, step, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_until_16)
        with pytest.raises(KeyboardInterrupt):
            train.train_and_evaluate(config, str(tmp_path))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 25, "epo')  # cut off in the middle
    assert read_metrics(tmp_path)[-1]["step"] == 24
    train.train_and_evaluate(config, str(tmp_path))
    steps = [line["step"] for line in lines(tmp_path)]
    assert steps == sorted(set(steps))


def test_another_config_in_the_same_workdir_is_refused_and_the_fields_are_named(finished):
    config, folder, _ = finished
    other = config.copy_and_resolve_references()
    other.sd_dropout.rate = 0.3
    with pytest.raises(
        InputError, match=r"another config \(config.sd_dropout.rate: 0.3 now, 0.5 in the workdir\)"
    ):
        train.train_and_evaluate(other, str(folder))
    other = config.copy_and_resolve_references()
    other.log_every = "3 steps"  # has no effect on training
    train.train_and_evaluate(other, str(folder))


def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(
    tiny_config, tmp_path, monkeypatch
):
    step_fn = train.train_step

    def nan_step(state, raw, constants, **options):
        state, metrics = step_fn(state, raw, constants, **options)
        return state, metrics | {"loss": jax.numpy.where(state.step == 14, np.nan, metrics["loss"])}

    monkeypatch.setattr(train, "train_step", nan_step)
    with pytest.raises(
        train.NonFiniteLossError, match="nan at step 14; the checkpoint of step 8 is kept$"
    ):
        train.train_and_evaluate(tiny_config, str(tmp_path))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["8"]
    tiny_config.checkpoint_every = tiny_config.eval_every = "16 steps"
    with pytest.raises(train.NonFiniteLossError, match="nan at step 14; no checkpoint yet$"):
        train.train_and_evaluate(tiny_config, str(tmp_path / "none"))


@pytest.mark.parametrize("eval_every", ["8 steps", "1000 steps"])
def test_a_non_finite_state_is_neither_saved_nor_evaluated(
    tiny_config, tmp_path, monkeypatch, eval_every
):
    step_fn = train.train_step

    def infinite_step(state, raw, constants, **options):
        state, metrics = step_fn(state, raw, constants, **options)  # the loss is still finite
        factor = jax.numpy.where(state.step == 16, np.inf, 1.0)
        return state.replace(params=jax.tree.map(lambda x: x * factor, state.params)), metrics

    monkeypatch.setattr(train, "train_step", infinite_step)
    tiny_config.eval_every = eval_every
    with pytest.raises(
        train.NonFiniteLossError, match="after step 16; the checkpoint of step 8 is"
    ):
        train.train_and_evaluate(tiny_config, str(tmp_path))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["8"]
    last = read_metrics(tmp_path)[-1]
    assert last["step"] < 16 or not any(name.startswith("eval/") for name in last)


def test_calls_in_flight_are_bounded(tiny_config, tmp_path, monkeypatch):
    compiled, losses = train.compile_train_call, []

    def compile_checked(*args):
        call = compiled(*args)

        def checked_call(*args):
            assert all(loss.is_ready() for loss in losses[: -train.MAX_CALLS_IN_FLIGHT])
            state, metrics = call(*args)
            losses.append(metrics["loss"])
            return state, metrics

        return checked_call

    monkeypatch.setattr(train, "compile_train_call", compile_checked)
    tiny_config.model = {"name": "mlp", "width": 1024, "depth": 3}  # slower than its dispatch
    tiny_config.duration = tiny_config.log_every = tiny_config.eval_every = "40 steps"
    tiny_config.checkpoint_every = "40 steps"
    train.train_and_evaluate(tiny_config, str(tmp_path))
    assert len(losses) == 40


def test_call_boundaries_do_not_depend_on_the_resumed_step():
    class Plan:
        eval_every, checkpoint_every, total_steps, steps_per_call = 10, 15, 32, 4

    ends, step = [], 0
    while step < 32:
        step = train.call_end(Plan, step)
        ends.append(step)
    assert ends == [4, 8, 10, 14, 15, 19, 20, 24, 28, 30, 32]
    for start, end in zip([0, *ends], ends, strict=False):
        assert train.call_end(Plan, start) == end


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dataset.name", "nope", "config.dataset.name: must be digits, .*'nope'"),
        ("model.name", "nope", "config.model.name: must be one of .*mlp.*'nope'"),
        ("model.dtype", "float8", "config.model.dtype: must be one of float32, bfloat16"),
        ("model.width", 0, "config.model.width: must be at least 1, got 0"),
        ("model.dropout_rate", 1.0, r"config.model.dropout_rate: must be in \[0, 1\)"),
        ("objective.name", "nope", "config.objective.name: must be one of byot"),
        ("schedule.name", "nope", "config.schedule.name: must be one of cosine, step"),
        ("engine.name", "nope", "config.engine.name: must be one of resident"),
        ("sd_dropout.rate", 1.0, r"config.sd_dropout.rate: must be in \[0, 1\), got 1.0"),
        ("sd_dropout.random_rate", (0.5, 0.3), "config.sd_dropout.random_rate: must be empty or"),
        ("sd_dropout.temperature", 0.0, "config.sd_dropout.temperature: must be greater than 0"),
        ("sd_dropout.weight", -0.1, "config.sd_dropout.weight: must be 0 or more, got -0.1"),
        (
            "sd_dropout.num_samples",
            1,
            r"config.sd_dropout.num_samples: must be in \[2, 1000\], got 1",
        ),
        ("sd_dropout.gradient", "up", "config.sd_dropout.gradient: must be one of both, forward"),
        ("batch_size", 10, "config.batch_size: must be a multiple of the 4 devices, got 10"),
        (
            "batch_size",
            2000,
            "config.batch_size: must be at most 1437, the number of training images",
        ),
        ("batch_size", 0, "config.batch_size: must be at least 1, got 0"),
        ("duration", "3", "config.duration: must be 'N steps' or 'N epochs', got '3'"),
        ("eval_every", "0 steps", "config.eval_every: must be at least 1 step"),
        ("optimizer.learning_rate", 0.0, "config.optimizer.learning_rate: must be greater than 0"),
        ("optimizer.momentum", 1.0, r"config.optimizer.momentum: must be in \[0, 1\)"),
        ("optimizer.weight_decay", -1.0, "config.optimizer.weight_decay: must be 0 or more"),
        ("augment.pad", -1, "config.augment.pad: must be 0 or more, got -1"),
        (
            "augment.pad",
            8,
            "config.augment.pad: must be less than the height and .*8x8 pixels, got 8",
        ),
        ("steps_per_call", -1, r"config.steps_per_call: must be in \[0, 100000\]"),
        ("keep_checkpoints", 0, "config.keep_checkpoints: must be at least 1"),
        ("eval.batch_size", 0, "config.eval.batch_size: must be at least 1"),
        ("seed", -1, "config.seed: must be 0 or more"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled_or_written(
    tiny_config, tmp_path, field, value, message, monkeypatch
):
    monkeypatch.setattr(jax, "jit", lambda *_, **__: pytest.fail("compiled"))
    monkeypatch.setattr(jax, "pmap", lambda *_, **__: pytest.fail("compiled"))
    section, _, key = field.rpartition(".")
    (tiny_config[section] if section else tiny_config)[key] = value
    workdir = tmp_path / "run"
    with pytest.raises(InputError, match=message) as error:
        train.train_and_evaluate(tiny_config, str(workdir))
    assert "\n" not in str(error.value)
    assert not workdir.exists()


def test_exclusive_masks_with_an_unsuitable_rate_are_refused(tiny_config, tmp_path):
    tiny_config.sd_dropout.exclusive = True
    tiny_config.sd_dropout.rate = 0.4
    with pytest.raises(InputError, match="config.sd_dropout.exclusive: disjoint masks need"):
        train.train_and_evaluate(tiny_config, str(tmp_path))


def test_images_too_small_for_the_network_are_refused(tiny_config, tmp_path):
    from sdd_jax.models import models

    tiny_config.model = models.options("lenet")
    with pytest.raises(
        InputError, match="config.model: images must be 16x16 pixels or more for lenet, got 8x8"
    ):
        train.train_and_evaluate(tiny_config, str(tmp_path))


def test_a_workdir_that_cannot_be_written_is_refused(tiny_config, tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="--workdir: must be writable"):
        train.train_and_evaluate(tiny_config, str(file / "run"))


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000])
def test_an_invalid_folder_name_is_refused(tiny_config, tmp_path, name):
    with pytest.raises(InputError, match="--workdir: must be writable"):
        train.train_and_evaluate(tiny_config, str(tmp_path / name))


def test_evaluating_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="--workdir: must hold a run"):
        evaluate_workdir(str(tmp_path))


def test_an_unknown_check_is_refused(finished):
    with pytest.raises(
        InputError, match="--checks: must be one of accuracy, adversarial, .*got 'nope'"
    ):
        evaluate_workdir(str(finished[1]), ["nope"])


# ------------------------------------------------------------------- data that change meanwhile


def arrays(num_classes=3, seed=0, images=96):
    rng = np.random.default_rng(seed)
    splits = {"train": images, "test": 24}
    pixels = {
        f"{split}_images": rng.integers(0, 256, (n, 6, 6), np.uint8) for split, n in splits.items()
    }
    return pixels | {f"{split}_labels": np.arange(n) % num_classes for split, n in splits.items()}


def one_pixel(changed):
    changed["train_images"][5, 2, 2] ^= 1
    return changed


def one_label(changed):
    changed["test_labels"][0] = 1
    return changed


CHANGES = {
    "a class more": (arrays(num_classes=4), "data.classes: 4 now, 3 in the workdir"),
    "more images": (arrays(images=120), "data.train.examples: 120 now, 96 in the workdir"),
    "other pixels": (arrays(seed=1), "data.train.images: "),
    "one pixel": (one_pixel(arrays()), "data.train.images: "),
    "one label": (one_label(arrays()), "data.test.labels: "),
}


@pytest.fixture(scope="module")
def on_arrays(tmp_path_factory):
    """Config and folder of a run with PS-KD, which has a memory of all images, on a file of arrays."""
    from sdd_jax import config as configs
    from sdd_jax.models import models
    from sdd_jax.objectives import objectives

    folder = tmp_path_factory.mktemp("on_arrays")
    np.savez(folder / "data.npz", **arrays())
    config = configs.default()
    config.dataset.name = f"npz:{folder / 'data.npz'}"
    config.model = models.options("mlp", width=8, depth=1, dropout_rate=0.1)
    config.objective = objectives.options("ps_kd")
    config.batch_size, config.duration = 24, "8 steps"
    train.train_and_evaluate(config, str(folder / "run"))
    return config, folder


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_resume_on_other_data(on_arrays, tmp_path, change):
    config, folder = on_arrays
    content = (folder / "data.npz").read_bytes()
    run = shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "8")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    changed, message = CHANGES[change]
    try:
        np.savez(folder / "data.npz", **changed)
        with pytest.raises(InputError, match=f"another data set or setting of JAX .*{message}"):
            train.train_and_evaluate(config, str(run))
    finally:
        (folder / "data.npz").write_bytes(content)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "lock"} == {
        p: text for p, text in before.items() if p.name != "lock"
    }
    assert train.train_and_evaluate(config, str(run)) == train.train_and_evaluate(
        config, str(folder / "run")
    )


def test_unlabelled_inputs_are_recorded_as_well(on_arrays, tmp_path):
    config, folder = on_arrays
    config = config.copy_and_resolve_references()
    np.savez(tmp_path / "more.npz", **arrays(seed=2))
    config.inputs = f"unlabelled:npz:{tmp_path / 'more.npz'}"
    config.objective = {"name": "distill"}
    config.teacher = str(folder / "run")
    config.sd_dropout.weight = 0.0
    train.train_and_evaluate(config, str(tmp_path / "student"))
    np.savez(tmp_path / "more.npz", **arrays(seed=3))
    with pytest.raises(InputError, match="another data set .*inputs.images: "):
        train.train_and_evaluate(config, str(tmp_path / "student"))


def test_a_teacher_of_other_data_is_refused(on_arrays, tmp_path):
    config, folder = on_arrays
    teacher = shutil.copytree(folder / "run", tmp_path / "teacher")
    record = json.loads((teacher / "config.json").read_text())
    record["data"]["train"]["images"] += 1
    (teacher / "config.json").write_text(json.dumps(record))
    config = config.copy_and_resolve_references()
    config.objective = {"name": "distill"}
    config.teacher = str(teacher)
    with pytest.raises(
        InputError, match="config.teacher: must be trained on the same data .data.train"
    ):
        train.train_and_evaluate(config, str(tmp_path / "student"))


def test_a_teacher_that_imports_files_needs_trust(on_arrays, harmful, tmp_path):
    config, folder = on_arrays
    teacher = shutil.copytree(folder / "run", tmp_path / "teacher")
    record = json.loads((teacher / "config.json").read_text())
    record["config"]["imports"] = [str(harmful)]
    (teacher / "config.json").write_text(json.dumps(record))
    config = config.copy_and_resolve_references()
    config.objective = {"name": "distill"}
    config.teacher, config.sd_dropout.weight = str(teacher), 0.0
    with pytest.raises(InputError, match="config.teacher: .*harmful.py, .* --trust_imports"):
        train.train_and_evaluate(config, str(tmp_path / "student"))
    assert not (tmp_path / "executed").exists()
    train.train_and_evaluate(config, str(tmp_path / "student"), trust_imports=True)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("field", ["teacher", "dataset.data_dir", "dataset.name"])
def test_remote_paths_in_a_config_are_refused(tiny_config, tmp_path, field):
    path = "npz:s3://bucket/file.npz" if field == "dataset.name" else "s3://bucket/folder"
    tiny_config.update_from_flattened_dict({field: path})
    if field == "teacher":
        tiny_config.objective = {"name": "distill"}
    if field == "dataset.data_dir":
        tiny_config.dataset.name = "npz:file.npz"
    with pytest.raises(
        InputError, match=f"config.{field}: must be on a local or mounted disk, or gs://.*, got "
    ):
        train.train_and_evaluate(tiny_config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
