"""A run in a bucket: checkpoints, log and events are those of a run on a disk."""

import json
import pathlib

import jax
import numpy as np
import pytest

from sdd_jax import train
from sdd_jax.errors import InputError
from sdd_jax.evaluate import evaluate_workdir
from sdd_jax.paths import given_path
from sdd_jax.runs import Checkpoints, MetricsLog, files, open_workdir, read_metrics
from sdd_jax.runs.writers import writers
from sdd_jax.trained_run import load

# TensorStore's pending reads outlive the event loop of a read that failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def log_of(workdir, **options):
    return MetricsLog(workdir, start=0, total=100, steps_per_epoch=10, **options)


def test_the_log_is_written_by_interval_and_before_checkpoints(bucket, monkeypatch):
    workdir = given_path(bucket[0], field="f")
    log = log_of(workdir)
    for step in (1, 2, 3):
        log.write(step, {"train/loss": 1.0})
    assert read_metrics(workdir) == []  # the first write was that of the empty log
    log.flush()
    assert [line["step"] for line in read_metrics(workdir)] == [1, 2, 3]
    log.write(3, {"eval/nll": 2.0})
    monkeypatch.setattr(files, "INTERVAL", 0.0)
    log.write(4, {"train/loss": 1.0})
    assert [line["step"] for line in read_metrics(workdir)] == [1, 2, 3, 4]
    assert read_metrics(workdir)[2] == {"step": 3, "epoch": 0.3, "train/loss": 1.0, "eval/nll": 2.0}
    monkeypatch.setattr(files, "INTERVAL", 1e9)
    log.write(5, {"train/loss": 1.0})
    log.close()
    assert [line["step"] for line in read_metrics(workdir)] == [1, 2, 3, 4, 5]


def test_events_of_tensorboard_are_in_the_bucket(bucket, event_file):
    workdir = given_path(bucket[0], field="f")
    log = log_of(workdir, writers=[writers.get("tensorboard")], config={"seed": 1})
    log.write(1, {"train/loss": 0.25})
    log.flush()
    (file,) = (bucket[1] / "tensorboard").iterdir()
    values = [value for event in event_file(file) for value in event.summary.value]
    assert [value.simple_value for value in values if value.tag == "train/loss"] == [0.25]
    log.write(2, {"train/loss": 0.5})
    log.close()
    steps = [e.step for e in event_file(file) for v in e.summary.value if v.tag == "train/loss"]
    assert steps == [1, 2]


def test_a_bucket_that_does_not_exist_is_named():
    with pytest.raises(InputError, match=r"gs://no-such-bucket/run' \(no such bucket\)"):
        open_workdir("gs://no-such-bucket/run").__enter__()


def without_speed(lines):
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


@pytest.mark.slow
def test_a_run_equals_one_on_a_disk_and_is_evaluated_and_loaded(bucket, tiny_config, tmp_path):
    """Trained half, resumed, evaluated beside its twin, loaded, and taught from."""
    extra = tmp_path / "extra.py"
    extra.write_text("LOADED = True\n")
    tiny_config.imports = (str(extra),)
    tiny_config.log_to = ("tensorboard",)
    local, remote = str(tmp_path / "disk"), bucket[0]
    tiny_config.schedule = {"name": "step", "milestones": ("1 step",)}
    tiny_config.model.dropout_rate = 0.5
    for duration in ("2 epochs", "4 epochs"):
        tiny_config.duration = duration
        for workdir in (local, remote):
            train.train_and_evaluate(tiny_config, workdir)
    ours, theirs = (given_path(workdir, field="f") for workdir in (remote, local))
    assert without_speed(read_metrics(ours)) == without_speed(read_metrics(theirs))
    records = [json.loads((p / "config.json").read_bytes()) for p in (ours, theirs)]
    assert records[0] == records[1]
    assert (ours / "imports" / "extra.py").read_bytes() == extra.read_bytes()
    assert not (ours / "lock").exists()
    for step in Checkpoints(theirs, read_only=True).steps():
        record = pathlib.Path("checkpoints", str(step), "record", "metadata")
        assert (ours / record).read_bytes() == (theirs / record).read_bytes()  # checksums

    extra.unlink()  # from here on, the copy in the bucket stands for it
    found = evaluate_workdir(
        remote, ["accuracy", "calibration"], compare=[local], trust_imports=True
    )
    assert found == evaluate_workdir(local, ["accuracy", "calibration"], trust_imports=True)
    for name in ("report.html", "checks.json", "reliability.png"):
        assert (ours / "eval" / name).exists()
    ours_loaded, theirs_loaded = (load(x, trust_imports=True) for x in (remote, local))
    jax.tree.map(np.testing.assert_array_equal, ours_loaded.variables, theirs_loaded.variables)
    exported = f"{remote}-export"
    ours_loaded.save_pretrained(exported)
    again = load(exported, trust_imports=True)
    jax.tree.map(np.testing.assert_array_equal, again.variables, theirs_loaded.variables)

    student = tiny_config.copy_and_resolve_references()
    student.imports, student.log_to, student.duration = (), (), "1 epoch"
    student.objective = {"name": "distill"}
    student.sd_dropout.weight, student.teacher = 0.0, remote
    train.train_and_evaluate(student, f"{remote}-student", trust_imports=True)
