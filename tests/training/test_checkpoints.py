"""Checkpoints: what is kept, what is restored, and what damage does."""

import jax
import numpy as np
import optax
import pytest

from sdd_jax import models
from sdd_jax.errors import InputError
from sdd_jax.training import state as train_state
from sdd_jax.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def state():
    model = models.build({"name": "mlp", "width": 8}, num_classes=3)
    made = train_state.create(model, optax.sgd(0.1, momentum=0.9), seed=0, image_shape=(4, 4, 1))
    return jax.device_get(made)


def at(state, step):
    return state.replace(
        step=np.int32(step), params=jax.tree.map(lambda x: x + np.float32(step), state.params)
    )


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def write(folder, state, accuracies):
    checkpoints = Checkpoints(folder, keep=2)
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
    assert Checkpoints(tmp_path, keep=2).best_step() == 2  # remembered by the next process
    with pytest.raises(InputError, match="--checkpoint: must be .* one of 2, 4, 5, got '3'"):
        checkpoints.restore(state, which="3")


def test_without_a_validation_split_only_the_latest_are_kept(tmp_path, state):
    write(tmp_path, state, dict.fromkeys((1, 2, 3)))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    with pytest.raises(InputError, match="best .after training with a validation split"):
        Checkpoints(tmp_path, read_only=True).restore(state, which="best")


def test_no_checkpoint_is_none(tmp_path, state):
    assert Checkpoints(tmp_path).restore(state) is None


def damage(folder, step):
    files = [p for p in (folder / "checkpoints" / str(step)).rglob("*") if p.is_file()]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_damaged_latest_checkpoint_falls_back_and_is_set_aside(tmp_path, state, caplog):
    write(tmp_path, state, {1: 0.1, 2: 0.2, 3: 0.3})
    damage(tmp_path, 3)
    checkpoints = Checkpoints(tmp_path)
    assert equal(checkpoints.restore(state), at(state, 2))
    assert "3 is damaged" in caplog.text
    assert (tmp_path / "damaged" / "3-0").is_dir()
    checkpoints.save(3, at(state, 3), validation_accuracy=0.3)  # its place is free again
    checkpoints.close()
    assert equal(Checkpoints(tmp_path, read_only=True).restore(state), at(state, 3))


def test_arrays_that_are_not_those_that_were_saved_count_as_damaged(tmp_path, state, monkeypatch):
    write(tmp_path, state, {1: 0.1})
    with monkeypatch.context() as patch:  # a checkpoint that reads well, with other numbers in it
        patch.setattr("sdd_jax.training.checkpoints._checksums", lambda _: {"some": 1})
        write(tmp_path, state, {2: 0.2})
    assert equal(Checkpoints(tmp_path).restore(state), at(state, 1))


def test_only_damaged_checkpoints_stop_the_run(tmp_path, state):
    write(tmp_path, state, {1: 0.1, 2: 0.2})
    damage(tmp_path, 1)
    damage(tmp_path, 2)
    with pytest.raises(InputError, match="no checkpoint can be read"):
        Checkpoints(tmp_path).restore(state)
    assert len(list((tmp_path / "damaged").iterdir())) == 2  # nothing is lost


def test_evaluation_leaves_damaged_checkpoints_where_they_are(tmp_path, state):
    write(tmp_path, state, {1: 0.1, 2: 0.2})
    damage(tmp_path, 2)
    assert equal(Checkpoints(tmp_path, read_only=True).restore(state), at(state, 1))
    assert (tmp_path / "checkpoints" / "2").is_dir()


def test_evaluation_takes_the_newest_when_training_has_removed_what_it_was_about_to_read(
    tmp_path, state
):
    write(tmp_path, state, {1: None, 2: None})
    reader = Checkpoints(tmp_path, read_only=True)
    write(tmp_path, state, {3: None, 4: None})  # and 1 and 2 are gone
    assert equal(reader.restore(state), at(state, 4))
