"""The package as it is installed: light, complete, and with its recipe cards.

``.ci/run wheel`` builds it and installs it into an empty environment, where it runs the examples of the
losses without an extra, then trains and evaluates.
"""

import configparser
import importlib.metadata
import os
import pathlib
import subprocess
import sys

import pytest

from sdd_jax import extras


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
