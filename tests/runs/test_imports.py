"""The copies that a run keeps of the Python files that it imports."""

import hashlib
import importlib
import json
import shutil

import pytest

from sdd_jax import config as configs
from sdd_jax import plugins
from sdd_jax.errors import InputError
from sdd_jax.runs import load_imports, read_config, read_record, write_config


@pytest.fixture
def plugin(tmp_path):
    """Function that writes a file which appends its own path to ``tmp_path/executed``."""

    def write(name, note=""):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        trace = tmp_path / "executed"
        path.write_text(
            f"# {note}\nwith open({str(trace)!r}, 'a') as file:\n    file.write(__file__ + '\\n')\n"
        )
        return path

    return write


def executed(tmp_path):
    trace = tmp_path / "executed"
    return trace.read_text().splitlines() if trace.exists() else []


def new_run(tmp_path, *files, name="run"):
    folder = tmp_path / name
    folder.mkdir()
    config = configs.default()
    config.imports = tuple(map(str, files))  # of another process: nothing is executed here
    write_config(folder, config, {})
    return folder


def resume(folder, *files):
    config = configs.default()
    config.imports = tuple(map(str, files))
    configs.record(folder, configs.complete(config), {})


def test_files_are_copied_with_their_sums_and_the_moved_run_executes_its_copies(tmp_path, plugin):
    files = [plugin("a/mine.py", "first"), plugin("b/mine.py", "second")]
    run = new_run(tmp_path, *files, "json")
    section = json.loads((run / "config.json").read_text())["imports"]
    assert section == {
        str(files[0]): {"copy": "imports/mine.py", "sha256": sha256(files[0])},
        str(files[1]): {"copy": "imports/1/mine.py", "sha256": sha256(files[1])},
    }
    moved = shutil.move(run, tmp_path / "moved")
    for file in files:
        file.unlink()
    copies = [str(moved / "imports" / "mine.py"), str(moved / "imports" / "1" / "mine.py")]
    with pytest.raises(InputError) as refused:
        read_config(moved)
    for copy in copies:
        assert f"{copy}, SHA-256 {sha256(copy)}" in str(refused.value)
    assert executed(tmp_path) == []
    load_imports(moved)
    assert executed(tmp_path) == copies
    assert list(read_config(moved).imports) == [*copies, "json"]


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


@pytest.mark.parametrize("damage", ["edited", "missing"])
def test_a_copy_that_is_another_file_is_refused(tmp_path, plugin, damage):
    run = new_run(tmp_path, plugin("mine.py", damage))
    copy = run / "imports" / "mine.py"
    expected = sha256(copy)
    copy.unlink()
    if damage == "edited":
        copy.write_text("1 / 0")
    for read in (read_config, read_record, load_imports):
        with pytest.raises(InputError, match=f"imports/mine.py must be .* SHA-256 {expected}, got"):
            read(run)
    assert executed(tmp_path) == []


@pytest.mark.parametrize(
    "section",
    [
        5,
        {"X": 5},
        {"X": {"copy": "imports/mine.py"}},
        {"X": {"copy": "../mine.py", "sha256": "0"}},
        {"X": {"copy": "imports/../../mine.py", "sha256": "0"}},
        {"X": {"copy": "/mine.py", "sha256": "0"}},
    ],
)
def test_a_damaged_section_is_refused(tmp_path, plugin, section):
    file = plugin("mine.py")
    run = new_run(tmp_path, file)
    path = run / "config.json"
    record = json.loads(path.read_text())
    text = json.dumps(section).replace('"X"', json.dumps(str(file)))
    path.write_text(json.dumps(record | {"imports": json.loads(text)}))
    with pytest.raises(InputError, match="config.json cannot be read"):
        load_imports(run)
    assert executed(tmp_path) == []


def test_byte_code_beside_a_copy_is_not_executed(tmp_path, plugin):
    import py_compile

    run = new_run(tmp_path, plugin("mine.py", "byte code"))
    copy, other = run / "imports" / "mine.py", tmp_path / "other.py"
    other.write_text("1 / 0")
    cache = importlib.util.cache_from_source(str(copy))
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(other), cache, invalidation_mode=unchecked)
    load_imports(run)
    assert executed(tmp_path) == [str(copy)]


def test_an_original_and_its_copies_are_executed_once(tmp_path, plugin):
    file = plugin("mine.py", "once")
    plugins.load([str(file)])
    runs = [new_run(tmp_path, file, name=name) for name in ("a", "b")]
    for run in runs:
        assert read_config(run)
        load_imports(run)
    assert executed(tmp_path) == [str(file)]


def test_the_copy_of_a_module_that_a_program_imported_is_not_executed(
    tmp_path, plugin, monkeypatch
):
    file = plugin("module_of_a_program.py")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("module_of_a_program")
    run = new_run(tmp_path, file)
    load_imports(run)
    assert executed(tmp_path) == [str(file)]


def test_a_run_resumes_with_the_same_file_wherever_it_is(tmp_path, plugin):
    file = plugin("mine.py", "resumed")
    run = new_run(tmp_path, file, "json")
    resume(run, file, "json")
    file.rename(tmp_path / "elsewhere.py")
    resume(run, tmp_path / "elsewhere.py", "json")
    resume(run, run / "imports" / "mine.py", "json")
    with pytest.raises(InputError, match="config.imports: .*now"):
        resume(run, run / "imports" / "mine.py")


def test_a_run_is_not_resumed_with_a_file_that_has_changed(tmp_path, plugin):
    file = plugin("mine.py", "before")
    run = new_run(tmp_path, file)
    plugin("mine.py", "after")
    with pytest.raises(InputError) as refused:
        resume(run, file)
    assert str(refused.value) == (
        f"config.imports: {file} has changed since the run in {run} began; choose another workdir, or "
        f"put the file back from {run}/imports/mine.py"
    )


def test_a_file_that_is_gone_is_replaced_by_the_copy_if_trusted(tmp_path, plugin):
    file = plugin("mine.py", "gone")
    run, config = new_run(tmp_path, file, "json"), configs.default()
    config.imports = (str(file), "json")
    assert configs.with_kept_imports(config, run, trusted=False) is config
    file.unlink()
    with pytest.raises(
        InputError,
        match="there is no file .*/mine.py; .*run has .*imports/mine.py, .*--trust_imports",
    ):
        configs.with_kept_imports(config, run, trusted=False)
    replaced = configs.with_kept_imports(config, run, trusted=True)
    assert list(replaced.imports) == [f"{run}/imports/mine.py", "json"]
    assert executed(tmp_path) == []
    resume(run, *replaced.imports)
    assert executed(tmp_path) == [f"{run}/imports/mine.py"]
    new = tmp_path / "new"
    assert configs.with_kept_imports(config, new, trusted=False) is config


def test_a_run_of_an_earlier_version_imports_the_original(tmp_path, plugin):
    file = plugin("mine.py", "earlier version")
    run = new_run(tmp_path, file)
    path = run / "config.json"
    record = json.loads(path.read_text())
    del record["imports"]
    path.write_text(json.dumps(record))
    shutil.rmtree(run / "imports")
    assert list(read_record(run)["config"].imports) == [str(file)]
    load_imports(run)
    assert executed(tmp_path) == [str(file)]
    resume(run, file)


def test_a_linked_folder_is_not_written_through(tmp_path, plugin):
    file, run = plugin("mine.py", "link"), tmp_path / "run"
    (tmp_path / "theirs").mkdir()
    run.mkdir()
    (run / "imports").symlink_to(tmp_path / "theirs")
    config = configs.default()
    config.imports = (str(file),)
    with pytest.raises(InputError, match="--workdir: .*run/imports is a link"):
        write_config(run, config, {})
    assert list((tmp_path / "theirs").iterdir()) == []
