"""Leases: one owner at a time, whose end is noticed without clocks."""

import json
import os
import threading
import time

import pytest

from sdd_jax.errors import InputError, WriteError
from sdd_jax.paths import given_path
from sdd_jax.runs import SameRun, leases, open_workdir, write_text
from sdd_jax.runs.leases import leased


@pytest.fixture
def path(bucket, monkeypatch):
    monkeypatch.setattr(leases, "RENEWED", 0.05)
    monkeypatch.setattr(leases, "EXPIRED", 0.6)
    monkeypatch.setattr(leases, "WATCHED", 0.02)
    return given_path(bucket[0], field="f") / "lock"


def left(path, **changes):
    """A lease that nobody renews."""
    lease = {"owner": "0", "host": "other", "process": 7, "machine": "other", "renewed": "then"}
    path.write_bytes(json.dumps(lease | changes).encode())


def test_a_lease_is_renewed_and_ends_with_its_owner(path):
    with leased(path, wait=False):
        first = json.loads(path.read_bytes())
        time.sleep(0.3)
        second = json.loads(path.read_bytes())
        assert first["owner"] == second["owner"] == leases.owner(path)
        assert first["renewed"] < second["renewed"]
        assert (first["host"], first["process"]) == (os.uname().nodename, os.getpid())
    assert leases.owner(path) is None
    assert not path.exists()


def test_a_living_owner_is_named_and_keeps_the_lease(path):
    with leased(path, wait=False):
        owner = leases.owner(path)
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on "):
            leased(path, wait=False).__enter__()
        assert leases.owner(path) == owner


def test_who_waits_comes_after_the_owner(path):
    order = []

    def second():
        with leased(path, wait=True):
            order.append("second")

    with leased(path, wait=False):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.9)  # longer than a lease lasts without renewal
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("wait", [False, True])
def test_an_owner_of_another_machine_is_gone_if_it_does_not_renew(path, wait):
    left(path)
    start = time.monotonic()
    with leased(path, wait=wait):
        assert time.monotonic() - start >= 0.6
        assert leases.owner(path) not in ("0", None)


def test_an_owner_that_was_killed_on_this_machine_is_gone_at_once(path, monkeypatch):
    monkeypatch.setattr(leases, "EXPIRED", 1e9)
    killed = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(killed, 0)
    left(path, machine=leases.machine(), process=killed)
    with leased(path, wait=False):
        assert leases.owner(path) != "0"


@pytest.mark.parametrize("content", [b"", b"{}", b"damaged", b"[1]"])
def test_a_damaged_lease_is_taken_over(path, content):
    path.write_bytes(content)
    with leased(path, wait=False):
        assert leases.owner(path)


def test_a_run_in_a_bucket_is_held_by_one_process(path, bucket):
    with (
        open_workdir(bucket[0]),
        pytest.raises(InputError, match="--workdir: must not be in use, another process trains"),
    ):
        open_workdir(bucket[0]).__enter__()


def test_a_run_finds_that_its_lease_was_taken_over(path, bucket):
    with open_workdir(bucket[0]) as workdir:
        write_text(workdir / "config.json", "{}")
        run = SameRun(workdir)
        run.check()
        left(path, owner="1")
        time.sleep(0.2)
        with pytest.raises(WriteError, match="was taken over by another process"):
            run.check()
    assert leases.owner(path) == "1"  # the other's stays
