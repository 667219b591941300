"""The package as it is installed: light, complete, and with its recipe cards.

``.ci/run wheel`` builds it, installs it into an empty environment, trains and evaluates there.
"""

import configparser
import importlib.metadata
import os
import pathlib
import subprocess
import sys

import pytest

from sdd_jax import extras

LIBRARY = """
import doctest, importlib, importlib.metadata, pkgutil, sys

light = {"sdd_jax", "jax", "jaxlib", "optax", "numpy", "ml_dtypes", "opt_einsum", "scipy", "absl-py"}
modules = importlib.metadata.packages_distributions()
blocked = {module for module, names in modules.items() if not light & {*names}}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

assert {"flax", "ml_collections", "annotated_types"} <= blocked
sys.meta_path.insert(0, Block())
import sdd_jax, sdd_jax.losses
modules = ["sdd_jax.dropout", "sdd_jax.mc_dropout"]
modules += [m.name for m in pkgutil.iter_modules(sdd_jax.losses.__path__, "sdd_jax.losses.")]
results = [doctest.testmod(importlib.import_module(m), optionflags=doctest.ELLIPSIS) for m in modules]
print(sum(r.attempted for r in results), sum(r.failed for r in results))
"""


@pytest.fixture
def setup_cfg(root):
    parser = configparser.ConfigParser()
    parser.read(root / "setup.cfg")
    return parser


def test_every_folder_of_the_package_is_installed(root, setup_cfg):
    folders = {path.parent.relative_to(root) for path in root.glob("sdd_jax/**/__init__.py")}
    expected = {".".join(folder.parts) for folder in folders} | {"sdd_jax.configs"}
    assert set(setup_cfg["options"]["packages"].split()) == expected


def test_the_library_needs_three_packages_and_the_tests_need_what_trains(setup_cfg):
    required = setup_cfg["options"]["install_requires"].split()
    assert [name.partition(">")[0] for name in required] == ["jax", "optax", "numpy"]
    assert "sdd_jax[train]" in setup_cfg["options.extras_require"]["test"].split()


@pytest.mark.slow
def test_the_losses_import_nothing_else(root):
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY],
        capture_output=True, text=True, timeout=300, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    attempted, failed = map(int, done.stdout.split())
    assert attempted > 30
    assert failed == 0


# ------------------------------------------------------------------------- without an extra


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Function that pretends that the package is installed, with extras that need ``requires``."""

    def install(*requires, direct_url=None):
        folder = tmp_path / "site" / "sdd_jax-9.9.dist-info"
        folder.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", "Name: sdd_jax", "Version: 9.9"]
        (folder / "METADATA").write_text(
            "\n".join([*lines, *map("Requires-Dist: {}".format, requires)])
        )
        if direct_url:
            (folder / "direct_url.json").write_text(direct_url)
        monkeypatch.syspath_prepend(folder.parent)
        return folder.parent

    return install


def test_only_missing_packages_of_the_extra_itself_are_missing(installed):
    marker = 'python_version < "3"'
    installed(
        "numpy",
        'jax>=0.10; extra == "train"',
        'absent-one<2,>=1; extra == "train"',
        'absent_two[cpu]; extra == "train"',
        'absent_three; extra == "other"',
        f'absent_four; {marker} and extra == "train"',
    )
    assert extras.missing("train") == ["absent-one", "absent_two"]


def test_nothing_is_known_to_be_missing_where_the_package_is_not_installed(monkeypatch):
    def distribution(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    assert extras.missing("train") == []


def test_in_a_checkout_the_command_installs_the_checkout(root, monkeypatch, tmp_path):
    monkeypatch.chdir(root)
    assert extras.pip_command("train") == "pip install -e '.[train]'"
    monkeypatch.chdir(tmp_path)
    assert extras.pip_command("train") == f"pip install -e '{root}[train]'"


@pytest.mark.parametrize(
    ("direct_url", "command"),
    [
        (None, "pip install 'sdd_jax[train]'"),
        (
            '{"url": "file:///tmp/sdd_jax.whl", "archive_info": {}}',
            "pip install 'sdd_jax[train] @ file:///tmp/sdd_jax.whl'",
        ),
        (
            '{"url": "https://a.org/b.git", "vcs_info": {"vcs": "git", "commit_id": "0"}}',
            "pip install 'sdd_jax[train] @ git+https://a.org/b.git'",
        ),
    ],
)
def test_elsewhere_the_command_names_where_the_package_came_from(
    installed, monkeypatch, tmp_path, direct_url, command
):
    monkeypatch.setattr(extras, "CHECKOUT", tmp_path)
    installed(direct_url=direct_url)
    assert extras.pip_command("train") == command


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "eval"])
def test_without_the_extra_the_programs_name_the_command_that_installs_it(
    root, installed, tmp_path, command
):
    site = installed('absent-one>=1; extra == "train"')
    done = subprocess.run(
        [sys.executable, "-m", "sdd_jax", command],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{root}"},
    )  # fmt: skip
    assert done.returncode == 1
    expected = f"python -m sdd_jax {command} needs pip install -e '{root}[train]'"
    assert done.stderr == f"error: {expected}; not installed: absent-one\n"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_without_jax_the_scripts_name_the_command_that_installs_it(root, tmp_path, script):
    bare = tmp_path / "bare" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare.parent.parent], check=True)
    done = subprocess.run([bare, root / script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    expected = f"error: {script} needs pip install -e '.[train]'; No module named 'jax'\n"
    assert done.stderr == expected


def test_the_wheel_has_no_cards_of_its_own_in_the_checkout(root):
    assert not pathlib.Path(root / "sdd_jax" / "configs").exists()
