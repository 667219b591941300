"""Workdirs: records, links, folders that move, and code that a record names."""

import json
import os
import shutil

import pytest

from sdd_jax import config as configs
from sdd_jax.errors import InputError, WriteError
from sdd_jax.runs import (
    SameRun,
    differing,
    load_imports,
    open_workdir,
    read_config,
    read_record,
    write_config,
    write_text,
)
from sdd_jax.runs.files import locked


@pytest.fixture
def outside(tmp_path):
    """A file outside the workdir; the test fails if its content changes."""
    path = tmp_path / "outside"
    path.write_text("mine")
    yield path
    assert path.read_text() == "mine"


def test_a_file_replaces_a_link_and_leaves_its_target(tmp_path, outside):
    for target in (outside, tmp_path / "absent"):
        path = tmp_path / "metrics.json"
        path.symlink_to(target)
        write_text(path, "ours")
        assert not path.is_symlink()
        assert path.read_text() == "ours"
        path.unlink()
    assert not (tmp_path / "absent").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["outside"]  # no temporary file


def test_the_new_content_is_written_under_a_name_that_cannot_be_foreseen(
    tmp_path, outside, monkeypatch
):
    names = []
    monkeypatch.setattr(os, "replace", lambda a, b: names.append(os.fspath(a)))
    write_text(tmp_path / "metrics.json", "ours")
    write_text(tmp_path / "metrics.json", "ours")
    assert len(set(names)) == 2


def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch):
    write_text(tmp_path / "file", "old")

    def failing(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(WriteError, match="file cannot be written: No space left"):
        write_text(tmp_path / "file", "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file": "old"}


def test_the_mode_of_a_new_file_is_that_of_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "ours")
    finally:
        os.umask(previous)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_files_of_a_killed_write_are_removed_and_others_kept(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: None)  # killed before it
        write_text(tmp_path / "metrics.json", "half")
    (tmp_path / ".mine.partial").write_text("")
    assert len(list(tmp_path.iterdir())) == 2
    with open_workdir(str(tmp_path)):
        assert {p.name for p in tmp_path.iterdir()} == {".mine.partial", "lock"}


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(WriteError, match="lock cannot be written"),
        locked(tmp_path / "lock", wait=False),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("change", ["moved", "removed", "replaced"])
def test_a_run_whose_folder_is_no_longer_there_is_noticed(tmp_path, change):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    same = SameRun(folder)
    same.check()
    folder.rename(tmp_path / "moved")
    if change == "removed":
        shutil.rmtree(tmp_path / "moved")
    if change == "replaced":
        folder.mkdir()
    with pytest.raises(WriteError, match="run was moved or removed while the run trained in it"):
        same.check()


@pytest.mark.parametrize("path", ["s3://b/r", "file:///tmp/run", "gs:/b/r"])
def test_another_remote_workdir_is_refused_and_no_folder_is_made(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(
            InputError, match=f"--workdir: must be on a local .*disk, or gs://.*, got '{path}'"
        ),
        open_workdir(path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_windows_drive_is_not_taken_for_a_scheme(tmp_path):
    from sdd_jax.paths import is_remote

    assert not is_remote("C:/runs/digits")
    assert not is_remote("runs/digits:/x")
    assert is_remote("https://host/run")


# ------------------------------------------------------------------------------------- records


FACTS = {"data": {"classes": 10, "train": {"examples": 5}}, "jax_settings": {"x64": False}}


def recorded(folder, *, facts=FACTS, **changes):
    config = configs.complete(configs.default())
    config.update(changes)
    write_config(folder, config, facts)
    return config


def test_a_record_holds_the_facts_and_the_same_run_agrees(tmp_path):
    config = recorded(tmp_path)
    assert read_record(tmp_path)["data"] == FACTS["data"]
    configs.record(tmp_path, config, FACTS)


def test_other_facts_are_refused_by_name(tmp_path):
    config = recorded(tmp_path)
    now = {"data": {"classes": 11, "train": {"examples": 5}}, "jax_settings": {"x64": True}}
    with pytest.raises(InputError) as error:
        configs.record(tmp_path, config, now)
    assert "data.classes: 11 now, 10 in the workdir" in str(error.value)
    assert "jax_settings.x64: True now, False in the workdir" in str(error.value)
    assert "train" not in str(error.value)


@pytest.mark.parametrize("section", [5, None, [], {"classes": 10}])
def test_a_damaged_section_of_facts_is_refused(tmp_path, section):
    config = recorded(tmp_path, facts=FACTS | {"data": section})
    with pytest.raises(InputError, match="another data set or setting of JAX .data"):
        configs.record(tmp_path, config, FACTS)


def test_a_record_of_an_earlier_version_has_no_facts_to_compare(tmp_path):
    config = recorded(tmp_path, facts={})
    configs.record(tmp_path, config, FACTS)


def test_checkpoints_without_a_record_are_refused(tmp_path):
    config = recorded(tmp_path)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="holds checkpoints, but no config.json .*; put it back"):
        configs.record(tmp_path, config, FACTS)
    assert not (tmp_path / "config.json").exists()


def test_differences_are_listed_by_field():
    a, b = {"x": {"y": (1, 2), "z": 3}}, {"x": {"y": [1, 2], "w": 3}}
    assert differing(a, b) == [
        "x.w: None now, 3 in the workdir",
        "x.z: 3 now, None in the workdir",
    ]
    assert differing(a, b, ignored=lambda field: field in ("x.w", "x.z")) == []


# ------------------------------------------------------------------------------ code in a record


def test_files_that_a_record_imports_are_executed_on_request_only(tmp_path, harmful):
    run = tmp_path / "run"
    run.mkdir()
    recorded(run, imports=(str(harmful),))
    with pytest.raises(
        InputError, match=r"--teacher: .*run imports .*harmful.py, .*--trust_imports"
    ):
        read_config(run, field="--teacher")
    assert not (tmp_path / "executed").exists()
    load_imports(run)
    assert (tmp_path / "executed").exists()
    assert list(read_config(run).imports) == [str(run / "imports" / "harmful.py")]  # loaded by now


def test_imports_of_a_teacher_are_executed_with_those_of_its_student(tmp_path, harmful):
    for name, changes in {
        "teacher": {"imports": (str(harmful),), "teacher": str(tmp_path / "student")},  # a circle
        "student": {"teacher": str(tmp_path / "teacher")},
    }.items():
        (tmp_path / name).mkdir()
        recorded(tmp_path / name, **changes)
    load_imports(tmp_path / "student")
    assert (tmp_path / "executed").exists()


def test_resuming_executes_no_file_that_the_command_does_not_name(tmp_path, harmful):
    recorded(tmp_path, imports=(str(harmful),))
    config = configs.complete(configs.default())
    with pytest.raises(InputError, match="config.imports: .. now, .*harmful.py"):
        configs.record(tmp_path, config, FACTS)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("imports", [5, "harmful.py", [1], {"a": 1}])
def test_imports_of_another_kind_are_not_executed(tmp_path, imports):
    write_config(tmp_path, configs.complete(configs.default()), {})
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    record["config"]["imports"] = imports
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="imports"):
        configs.complete_record(read_config(tmp_path))
