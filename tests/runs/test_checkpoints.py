"""Checkpoints: retention, restoration, damage, and the format of version 0.1."""

import itertools
import os
import shutil
import threading
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sdd_jax import models
from sdd_jax.errors import InputError
from sdd_jax.paths import given_path
from sdd_jax.runs import Checkpoints
from sdd_jax.training.optimizers import optimizers
from sdd_jax.training.state import create

# TensorStore's pending reads outlive the event loop of a read that failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def state():
    model = models.build({"name": "mlp", "width": 8}, num_classes=3)
    optimizer = optimizers.build({"name": "sgd"}, schedule=lambda rate: rate)
    return jax.device_get(create(model, optimizer, seed=0, image_shape=(4, 4, 1)))


def at(state, step):
    return state.replace(
        step=np.int32(step), params=jax.tree.map(lambda x: x + np.float32(step), state.params)
    )


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def write(folder, state, accuracies, keep=2):
    checkpoints = Checkpoints(folder, keep=keep)
    for step, accuracy in accuracies.items():
        checkpoints.save(step, at(state, step), validation_accuracy=accuracy)
    checkpoints.close()


def test_the_latest_and_the_best_are_kept(tmp_path, state):
    write(tmp_path, state, {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6, 5: 0.8})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert equal(checkpoints.restore(state), at(state, 5))
    assert equal(checkpoints.restore(state, which="best"), at(state, 2))
    assert equal(checkpoints.restore(state, which="4"), at(state, 4))
    assert Checkpoints(tmp_path, keep=2).best_step() == 2  # read by a later process
    with pytest.raises(InputError, match="--checkpoint: must be .* one of 2, 4, 5, got '3'"):
        checkpoints.restore(state, which="3")


def test_without_a_validation_split_only_the_latest_are_kept(tmp_path, state):
    write(tmp_path, state, dict.fromkeys((1, 2, 3)))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    with pytest.raises(InputError, match="best .after training with a validation split"):
        Checkpoints(tmp_path, read_only=True).restore(state, which="best")


def test_restoring_without_a_checkpoint_returns_none(tmp_path, state):
    assert Checkpoints(tmp_path).restore(state) is None


def damage(folder, step):
    files = [p for p in (folder / "checkpoints" / str(step)).rglob("*") if p.is_file()]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_damaged_checkpoint_is_set_aside_and_the_previous_restored(tmp_path, state, caplog):
    write(tmp_path, state, {1: 0.1, 2: 0.2, 3: 0.3})
    damage(tmp_path, 3)
    checkpoints = Checkpoints(tmp_path)
    assert equal(checkpoints.restore(state), at(state, 2))
    assert "3 is damaged" in caplog.text
    assert (tmp_path / "damaged" / "3-0").is_dir()
    checkpoints.save(3, at(state, 3), validation_accuracy=0.3)  # the step can be saved again
    checkpoints.close()
    assert equal(Checkpoints(tmp_path, read_only=True).restore(state), at(state, 3))


def rewrite(folder, step, state=None, **changes):
    """Replaces parts of a checkpoint, keeping it readable by Orbax."""
    path = folder / "checkpoints"
    with ocp.CheckpointManager(path, item_names=("state", "record")) as manager:
        record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
        record = dict(record["record"]) | changes
        if state is None:
            raw = ocp.args.Composite(state=ocp.args.StandardRestore())
            state = manager.restore(step, args=raw)["state"]
        manager.delete(step)
        items = {"state": ocp.args.StandardSave(state), "record": ocp.args.JsonSave(record)}
        manager.save(step, args=ocp.args.Composite(**items))


def test_arrays_that_differ_from_their_checksums_count_as_damaged(tmp_path, state):
    write(tmp_path, state, {1: 0.1, 2: 0.2})
    rewrite(tmp_path, 2, at(state, 7))
    assert equal(Checkpoints(tmp_path).restore(state), at(state, 1))


def test_a_checkpoint_of_another_network_is_not_restored(tmp_path, state):
    write(tmp_path, state, {1: 0.1})
    wider = state.replace(params=jax.tree.map(lambda x: np.zeros((*x.shape, 2)), state.params))
    message = (
        r"checkpoints/1 is of another network: .*bias is float32\[8\] there and float64\[8, 2\]"
    )
    for checkpoints in (Checkpoints(tmp_path), Checkpoints(tmp_path, read_only=True)):
        with pytest.raises(InputError, match=message):
            checkpoints.restore(wider)
    assert Checkpoints(tmp_path).steps() == [1]  # intact, so it is not moved


def test_a_checkpoint_of_version_0_1_is_restored(tmp_path, state):
    """Without an auxiliary network, the optimizer state of 0.1 had no ``params`` level."""
    write(tmp_path, state, {3: 0.3})
    old = state.replace(
        opt_state=jax.tree.map(
            lambda trace: trace["params"],
            state.opt_state,
            is_leaf=lambda x: isinstance(x, dict) and "params" in x,
        )
    )
    fields = {name: getattr(old, name) for name in ("step", "params", "batch_stats", "opt_state")}
    fields |= {"auxiliary": {}, "memory": {}}
    leaves = jax.tree_util.tree_leaves_with_path(fields)
    assert len(leaves) == len(jax.tree.leaves(state))
    checksums = {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(x).tobytes())
        for path, x in leaves
    }
    rewrite(tmp_path, 3, fields, checksums=checksums)
    assert equal(Checkpoints(tmp_path, read_only=True).restore(state), state)


def test_restored_variables_use_the_moving_average_if_there_is_one(tmp_path, state):
    like = {"params": state.params, "batch_stats": state.batch_stats}
    write(tmp_path, state, {1: None})
    step, variables = Checkpoints(tmp_path, read_only=True).restore_variables(like)
    assert step == 1
    assert equal(variables["params"], at(state, 1).params)
    write(tmp_path, state.replace(ema=at(state, 5).params), {2: None})
    _, variables = Checkpoints(tmp_path, read_only=True).restore_variables(like)
    assert equal(variables["params"], at(state, 5).params)


def test_only_damaged_checkpoints_stop_the_run(tmp_path, state):
    write(tmp_path, state, {1: 0.1, 2: 0.2})
    damage(tmp_path, 1)
    damage(tmp_path, 2)
    for _ in range(2):  # the same command again finds them again
        with pytest.raises(
            InputError, match="no checkpoint can be read, of steps .1, 2.; put back"
        ):
            Checkpoints(tmp_path).restore(state)


def test_a_run_whose_checkpoints_were_all_set_aside_stops(tmp_path, state):
    write(tmp_path, state, {1: 0.1, 2: 0.2})
    (tmp_path / "checkpoints").rename(tmp_path / "damaged")
    for checkpoints in (Checkpoints(tmp_path), Checkpoints(tmp_path, read_only=True)):
        with pytest.raises(
            InputError, match="no checkpoint but those in .*damaged; put back a copy"
        ):
            checkpoints.restore(state)


@pytest.mark.parametrize("target", ["itself", "/proc/self/mem"])  # "too many links", EIO
@pytest.mark.parametrize("name", ["record/metadata", "state/manifest.ocdbt"])
def test_a_checkpoint_that_the_system_cannot_read_is_not_called_damaged(
    tmp_path, state, name, target
):
    write(tmp_path, state, {1: 0.9, 2: 0.2})
    file = tmp_path / "checkpoints" / "2" / name
    file.unlink()
    file.symlink_to(file if target == "itself" else target)
    for read_only in (False, True):
        with pytest.raises(
            InputError, match="checkpoints/2 cannot be read at the moment .*; it stays"
        ):
            Checkpoints(tmp_path, read_only=read_only).restore(state)
    assert Checkpoints(tmp_path).steps() == [1, 2]
    assert not (tmp_path / "damaged").exists()
    assert equal(Checkpoints(tmp_path).restore(state, which="1"), at(state, 1))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), MemoryError()])
def test_nothing_is_moved_when_reading_fails_for_another_reason_than_damage(
    tmp_path, state, monkeypatch, error
):
    write(tmp_path, state, {1: 0.1, 2: 0.2})

    def failing(checkpoints, step):
        raise error

    monkeypatch.setattr(Checkpoints, "_arrays", failing)
    with pytest.raises((InputError, MemoryError)):
        Checkpoints(tmp_path).restore(state)
    assert Checkpoints(tmp_path).steps() == [1, 2]
    assert not (tmp_path / "damaged").exists()


def test_the_best_checkpoint_is_kept_although_its_record_cannot_be_read_for_a_while(
    tmp_path, state
):
    write(tmp_path, state, {1: 0.9, 2: 0.2})
    record = tmp_path / "checkpoints" / "1" / "record" / "metadata"
    content = record.read_bytes()
    record.unlink()
    record.symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match="checkpoints/1 cannot be read at the moment"):
        Checkpoints(tmp_path, keep=2).save(3, at(state, 3))
    record.unlink()
    record.write_bytes(content)
    write(tmp_path, state, {3: 0.3, 4: 0.4})
    assert Checkpoints(tmp_path).steps() == [1, 3, 4]


def test_evaluation_does_not_move_damaged_checkpoints(tmp_path, state):
    write(tmp_path, state, {1: 0.1, 2: 0.2})
    damage(tmp_path, 2)
    assert equal(Checkpoints(tmp_path, read_only=True).restore(state), at(state, 1))
    assert (tmp_path / "checkpoints" / "2").is_dir()


def test_steps_can_be_read_while_checkpoints_are_renamed(tmp_path, state):
    """As a save does: each new checkpoint gets its name by a rename, and an old one goes."""
    write(tmp_path, state, {1: 0.1, 2: 0.2})
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    stop = threading.Event()

    def rename():
        while not stop.is_set():
            os.rename(folder / "3.orbax-checkpoint-tmp", folder / "3")
            os.rename(folder / "3", folder / "3.orbax-checkpoint-tmp")

    thread = threading.Thread(target=rename)
    thread.start()
    try:
        reader = Checkpoints(tmp_path, read_only=True)
        for _ in range(400):
            assert reader.steps() in ([1, 2], [1, 2, 3])
            assert reader.best_step() in (2, 3)
    finally:
        stop.set()
        thread.join()


def test_a_network_is_loaded_beside_a_training_that_saves_every_step(tmp_path, state):
    like = {"params": state.params, "batch_stats": state.batch_stats}
    write(tmp_path, state, {1: None})
    stop = threading.Event()

    def train():
        writer = Checkpoints(tmp_path, keep=2)
        for step in itertools.count(2):
            writer.save(step, at(state, step))
            if stop.is_set():
                break

    thread = threading.Thread(target=train)
    thread.start()
    try:
        last = 0
        for _ in range(60):
            step, variables = Checkpoints(tmp_path, read_only=True).restore_variables(like)
            assert step >= last
            assert equal(variables["params"], at(state, step).params)
            last = step
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("which", ["³", "٣", "-1", "1.0", "", "first"])
def test_a_checkpoint_that_is_no_number_is_refused(tmp_path, state, which):
    write(tmp_path, state, {1: None})
    with pytest.raises(InputError, match="--checkpoint: must be latest, best .* got "):
        Checkpoints(tmp_path, read_only=True).restore(state, which=which)


def test_evaluation_reads_the_newest_checkpoint_when_training_removed_the_selected_one(
    tmp_path, state
):
    write(tmp_path, state, {1: None, 2: None})
    reader = Checkpoints(tmp_path, read_only=True)
    write(tmp_path, state, {3: None, 4: None})  # this removes 1 and 2
    assert equal(reader.restore(state), at(state, 4))


# --------------------------------------------------------------------------- in a bucket


@pytest.fixture
def in_bucket(bucket, state):
    """A run in a bucket with the best and the latest of three steps, and its folder on the server."""
    workdir = given_path(bucket[0], field="f")
    write(workdir, state, {1: 0.5, 2: 0.9, 3: 0.7}, keep=1)
    return workdir, bucket[1] / "checkpoints"


def test_in_a_bucket_the_latest_and_the_best_are_kept(in_bucket, state):
    checkpoints = Checkpoints(in_bucket[0], read_only=True)
    assert checkpoints.steps() == [2, 3]
    assert equal(checkpoints.restore(state), at(state, 3))
    assert equal(checkpoints.restore(state, which="best"), at(state, 2))


def test_in_a_bucket_an_unfinished_checkpoint_is_none_and_its_step_can_be_saved(in_bucket, state):
    (in_bucket[1] / "3" / "commit_success.txt").unlink()  # Orbax writes it last
    checkpoints = Checkpoints(in_bucket[0], keep=1)
    assert checkpoints.steps() == [2]
    assert equal(checkpoints.restore(state), at(state, 2))
    checkpoints.save(3, at(state, 30))
    assert equal(checkpoints.restore(state), at(state, 30))
    checkpoints.close()


def test_in_a_bucket_an_unfinished_checkpoint_is_removed_by_the_next_run(in_bucket, state):
    (in_bucket[1] / "3" / "commit_success.txt").unlink()
    checkpoints = Checkpoints(in_bucket[0], keep=2)
    checkpoints.save(4, at(state, 4))
    checkpoints.close()
    assert sorted(p.name for p in (in_bucket[0] / "checkpoints").iterdir()) == ["2", "4"]


def test_in_a_bucket_a_damaged_checkpoint_is_set_aside(in_bucket, state, caplog):
    for file in (in_bucket[1] / "3" / "state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:-100] + bytes(100))
    checkpoints = Checkpoints(in_bucket[0], keep=1)
    assert equal(checkpoints.restore(state), at(state, 2))
    assert "3 is damaged" in caplog.text
    assert checkpoints.steps() == [2]
    assert [p.name for p in (in_bucket[0] / "damaged").iterdir()] == ["3-0"]
    checkpoints.save(3, at(state, 3))
    assert equal(checkpoints.restore(state), at(state, 3))
    checkpoints.close()


def test_in_a_bucket_damaged_checkpoints_alone_are_refused(in_bucket, state):
    shutil.rmtree(in_bucket[1] / "2")
    (in_bucket[1] / "3" / "record" / "metadata").write_text("{")
    with pytest.raises(InputError, match="no checkpoint can be read, of steps"):
        Checkpoints(in_bucket[0], keep=1).restore(state)
