"""The folder of compiled programs: whose it must be, and what it saves."""

import logging
import os
import subprocess
import sys
import warnings

import jax
import pytest

from sdd_jax.compilation import FOLDER, keep_compiled


@pytest.fixture
def cache_dir(monkeypatch):
    """What `keep_compiled` tells JAX, which other tests shall not notice."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    told = {"jax_compilation_cache_dir": None}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    return lambda: told["jax_compilation_cache_dir"]


def test_the_folder_lies_beside_the_run_and_is_for_the_user_alone(cache_dir, tmp_path):
    keep_compiled(str(tmp_path / "runs" / "a"))
    folder = tmp_path / "runs" / FOLDER
    assert cache_dir() == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_to_which_others_write_is_not_used(cache_dir, tmp_path, caplog, mode):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER).chmod(mode)
    with caplog.at_level(logging.WARNING):
        keep_compiled(str(tmp_path / "a"))
    assert cache_dir() is None
    assert f"{FOLDER} is not used: others can write to it" in caplog.text


def test_a_folder_of_somebody_else_is_not_used(cache_dir, tmp_path, monkeypatch):
    (tmp_path / FOLDER).mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / FOLDER).stat().st_uid + 1)
    keep_compiled(str(tmp_path / "a"))
    assert cache_dir() is None


def test_a_link_to_another_folder_is_not_followed(cache_dir, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / FOLDER).symlink_to(tmp_path / "elsewhere")
    keep_compiled(str(tmp_path / "a"))
    assert cache_dir() is None


def test_where_nothing_can_be_made_there_is_no_cache(cache_dir, tmp_path):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file" / "a", "a\0/b/c", "\ud800/b/c"):
        keep_compiled(str(workdir))
        assert cache_dir() is None


@pytest.mark.slow
def test_the_second_start_finds_what_the_first_compiled(root, tmp_path):
    given = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}

    def train(name):
        arguments = (f"--workdir={tmp_path / name}", "--config.duration=2 steps")
        command = [sys.executable, str(root / "train.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=given)
        assert done.returncode == 0, done.stderr
        compiled = {path: path.stat().st_mtime_ns for path in (tmp_path / FOLDER).glob("*")}
        return done.stdout.rpartition(" is finished: ")[2], done.stderr, compiled

    first, second = train("first"), train("second")
    assert first[2]
    assert second == first
    assert first[1] == ""
    for path in first[2]:
        path.write_bytes(path.read_bytes()[:100])
    cut_off, after = train("cut_off"), train("after")
    assert cut_off == (first[0], "", {})  # compiled again, and what could not be read is gone
    assert after[:2] == first[:2]
    assert after[2].keys() == first[2].keys()
