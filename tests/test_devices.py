"""The compilation cache, and XLA flags for CPU devices."""

import logging
import os
import subprocess
import sys

import jax
import pytest

from sdd_jax.devices import (
    CACHE_FOLDER,
    enable_compilation_cache,
    join_cluster,
    let_cpu_collectives_wait,
    start_backend,
)
from sdd_jax.errors import InputError


@pytest.fixture
def cache_dir(monkeypatch):
    """Function that returns the cache folder set in JAX's config, which is patched."""
    monkeypatch.setattr(logging, "captureWarnings", lambda _: None)
    settings = {"jax_compilation_cache_dir": None}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    return lambda: settings["jax_compilation_cache_dir"]


def test_the_cache_folder_is_private_and_next_to_the_workdir(cache_dir, tmp_path):
    enable_compilation_cache(str(tmp_path / "runs" / "a"))
    folder = tmp_path / "runs" / CACHE_FOLDER
    assert cache_dir() == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_writable_by_others_is_not_used(cache_dir, tmp_path, caplog, mode):
    (tmp_path / CACHE_FOLDER).mkdir()
    (tmp_path / CACHE_FOLDER).chmod(mode)
    with caplog.at_level(logging.WARNING):
        enable_compilation_cache(str(tmp_path / "a"))
    assert cache_dir() is None
    assert f"{CACHE_FOLDER} is not used: others can write to it" in caplog.text


def test_a_folder_of_another_user_is_not_used(cache_dir, tmp_path, monkeypatch):
    (tmp_path / CACHE_FOLDER).mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / CACHE_FOLDER).stat().st_uid + 1)
    enable_compilation_cache(str(tmp_path / "a"))
    assert cache_dir() is None


def test_a_link_is_not_followed(cache_dir, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / CACHE_FOLDER).symlink_to(tmp_path / "elsewhere")
    enable_compilation_cache(str(tmp_path / "a"))
    assert cache_dir() is None


def test_a_folder_that_cannot_be_created_disables_the_cache(cache_dir, tmp_path):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file" / "a", "a\0/b/c", "\ud800/b/c"):
        enable_compilation_cache(str(workdir))
        assert cache_dir() is None


@pytest.mark.slow
def test_a_second_run_uses_the_cache_and_a_damaged_cache_is_deleted(root, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}

    def train(name):
        arguments = (f"--workdir={tmp_path / name}", "--config.duration=2 steps")
        command = [sys.executable, str(root / "train.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        compiled = {path: path.stat().st_mtime_ns for path in (tmp_path / CACHE_FOLDER).glob("*")}
        return done.stdout.rpartition(" is finished: ")[2], done.stderr, compiled

    first, second = train("first"), train("second")
    assert first[2]
    assert second == first
    assert first[1] == ""
    for path in first[2]:
        path.write_bytes(path.read_bytes()[:100])
    truncated, after = train("cut_off"), train("after")
    assert truncated == (first[0], "", {})  # recompiled; the damaged cache is deleted
    assert after[:2] == first[:2]
    assert after[2].keys() == first[2].keys()


def test_cpu_collectives_wait_longer_and_user_flags_are_kept(monkeypatch):
    name = "xla_cpu_collective_call_terminate_timeout_seconds"
    for flags in ("", f"--xla_dump_to=x --{name}=7"):
        monkeypatch.setenv("XLA_FLAGS", flags)
        let_cpu_collectives_wait()
        result = os.environ["XLA_FLAGS"]
        assert result.startswith(flags)
        assert result.count(name) == 1
        let_cpu_collectives_wait()
        assert os.environ["XLA_FLAGS"] == result


# ---------------------------------------------------------------------- backends and clusters


@pytest.mark.parametrize(
    "error", [RuntimeError("Unable to initialize backend 'cuda': no device"), AssertionError()]
)
def test_a_backend_that_cannot_start_is_an_input_error(monkeypatch, error):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(InputError, match=f"^JAX_PLATFORMS: JAX cannot start .* {error}$"):
        start_backend()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host", 2, 0), "--coordinator_address: must be HOST:PORT, got 'host'"),
        (("host:port", 2, 0), "--coordinator_address: must be HOST:PORT, got 'host:port'"),
        (("host:1", 0, 0), "--num_processes: must be at least 1, got 0"),
        (("host:1", 2, 2), r"--process_id: must be in \[0, 2\), got 2"),
        (("host:1", None, -1), "--process_id: must be .* got -1"),
    ],
)
def test_arguments_of_a_cluster_are_checked_before_jax_sees_them(monkeypatch, arguments, message):
    monkeypatch.setattr(jax.distributed, "initialize", None)
    with pytest.raises(InputError, match=f"^{message}"):
        join_cluster(*arguments)


def test_a_missing_cluster_names_the_flags_that_replace_it(monkeypatch):
    def initialize(*arguments, **options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    flags = "--coordinator_address=HOST:PORT, --num_processes and --process_id"
    with pytest.raises(
        InputError, match=f"^--distributed: .*needs {flags}: coordinator_address sh"
    ):
        join_cluster(None, None, None)
