"""Devices and hosts: the mapped axis, the layout of state and batches, XLA's settings.

One axis, ``AXIS``, spans all devices of all hosts. State is replicated. A batch is sharded in order and
in equal shares; each host supplies the shares of its own devices.
"""

import contextlib
import contextvars
import logging
import os
import pathlib
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental.multihost_utils import host_local_array_to_global_array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdd_jax.errors import InputError, require
from sdd_jax.paths import cache_folder, is_remote

AXIS = "batch"
CACHE_FOLDER = ".jax_cache"
Parallel = Literal["pmap", "shard_map"]

_logger = logging.getLogger(__name__)
_target: contextvars.ContextVar[tuple[Any, ...] | None] = contextvars.ContextVar(
    "target", default=None
)


@contextlib.contextmanager
def compiling_for(devices: Sequence[Any]) -> Iterator[None]:
    """Inside, programs are built for ``devices``, which need not be attached, in place of the job's."""
    token = _target.set(tuple(devices))
    try:
        yield
    finally:
        _target.reset(token)


def platform() -> str:
    """The platform that programs are built for: "cpu", "gpu" or "tpu"."""
    target = _target.get()
    return jax.default_backend() if target is None else target[0].platform


def mapped(
    function: Callable,
    *,
    in_axes: Sequence[Literal[0] | None],
    parallel: Parallel = "pmap",
    donate_argnums: int | Sequence[int] = (),
) -> Any:
    """Compiles a function of one device's share for the devices that programs are built for.

    Args:
      function: its results must be the same on every device: it reduces over ``AXIS`` by collectives.
      in_axes: one for each argument. 0: arrays ``[local devices, ...]``, a slice for each device; None:
        replicated arrays.
      parallel: the transformation: "pmap", or "shard_map" over the mesh of all devices, under jit.
      donate_argnums: arguments whose memory the results may take.

    Returns:
      A function with a method ``lower``; its results are replicated.
    """
    if parallel == "pmap":
        return jax.pmap(
            function,
            axis_name=AXIS,
            in_axes=tuple(in_axes),
            out_axes=None,
            devices=_target.get(),
            donate_argnums=donate_argnums,
        )
    mesh = all_devices()
    specs = tuple(PartitionSpec() if axis is None else PartitionSpec(AXIS) for axis in in_axes)

    def on_device(*arguments):
        shares = (
            argument if axis is None else jax.tree.map(lambda x: x[0], argument)
            for argument, axis in zip(arguments, in_axes, strict=True)
        )
        return function(*shares)

    # check_vma would sum the gradients of replicated parameters over the devices, which the function
    # does itself, as it has to under pmap.
    on_mesh = jax.jit(
        jax.shard_map(
            on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
        ),
        donate_argnums=donate_argnums,
    )

    def call(*arguments):
        pairs = zip(arguments, specs, strict=True)
        return on_mesh(*(host_local_array_to_global_array(x, mesh, spec) for x, spec in pairs))

    call.lower = on_mesh.lower  # pyrefly: ignore[missing-attribute]
    return call


def all_devices() -> Mesh:
    """The devices that programs are built for, along ``AXIS``."""
    return Mesh(np.array(_target.get() or jax.devices()), (AXIS,))


def replicate(tree: Any) -> Any:
    """Puts host arrays, or arrays replicated over this host's devices, on every device of the job.

    The result may share memory with its argument, which is gone once the result is donated.
    """
    return host_local_array_to_global_array(tree, all_devices(), PartitionSpec())


def shard(examples: np.ndarray) -> jax.Array:
    """Copies this host's examples ``[local devices * b, ...]`` to its devices, of all ``[B, ...]``."""
    sharding = NamedSharding(all_devices(), PartitionSpec(AXIS))
    return jax.make_array_from_process_local_data(sharding, examples)


def to_devices(shares: Any) -> Any:
    """Copies host arrays ``[local devices, ...]`` to the devices, one slice each."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(shares, NamedSharding(mesh, PartitionSpec(AXIS)))


def local_indices(batch_size: int) -> np.ndarray:
    """Global-batch indices supplied by this host: int32 ``[local devices, B per device]``, a range.

    Args:
      batch_size: global batch size, a multiple of the number of devices.
    """
    by_device = np.arange(batch_size, dtype=np.int32).reshape(jax.device_count(), -1)
    first = jax.process_index() * jax.local_device_count()
    return by_device[first : first + jax.local_device_count()]


def join_cluster(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    timeout: int = 300,
) -> None:
    """Joins the processes of several hosts; call it before :func:`start_backend`.

    Args:
      coordinator_address: HOST:PORT of process 0; None if the cluster's environment tells it.
      num_processes: number of processes, likewise.
      process_id: index of this process, from 0, likewise.
      timeout: seconds to wait for the others; then the runtime aborts this process.

    Raises:
      InputError: an argument is out of range, or missing and there is no cluster that tells it.
    """
    address, count, process = "--coordinator_address", "--num_processes", "--process_id"
    has_port = coordinator_address is None or re.fullmatch(r".+:\d+", coordinator_address)
    require(bool(has_port), address, coordinator_address, "HOST:PORT")
    require(num_processes is None or num_processes > 0, count, num_processes, "at least 1")
    in_range = process_id is None or 0 <= process_id < (num_processes or process_id + 1)
    require(in_range, process, process_id, f"in [0, {num_processes or 'the number of processes'})")
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=min(timeout, 100),
        )
    except ValueError as error:
        raise InputError(
            f"this is no cluster that JAX knows (Slurm, Open MPI, Kubernetes, TPU pods), so it needs "
            f"{address}=HOST:PORT, {count} and {process}: {error}",
            field="--distributed",
        ) from error


def leave_cluster() -> None:
    """Tells the other processes that this one ends; does not wait long for those that go on."""
    leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    leaving.start()
    leaving.join(10)


def start_backend() -> None:
    """Starts JAX's backend, which finds the devices.

    Raises:
      InputError: ``JAX_PLATFORMS`` names a platform that this machine, or this JAX, does not have.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an assertion, where no plugin is installed
        platforms = getattr(jax.config, "jax_platforms")  # noqa: B009
        raise InputError(
            f"JAX cannot start {platforms or 'a device'!r} on this machine; leave JAX_PLATFORMS empty "
            f"to use what there is, or set it to cpu. {error}",
            field="JAX_PLATFORMS",
        ) from error


def let_cpu_collectives_wait() -> None:
    """Lets CPU devices wait longer for each other in a collective; call it before JAX starts.

    By default XLA aborts the process when one of several CPU devices waits 40 s for the others, which
    happens on a busy machine; here it is 15 minutes. Flags that the user has set in ``XLA_FLAGS`` are
    kept.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    seconds = {
        "xla_cpu_collective_call_warn_stuck_timeout_seconds": 600,
        "xla_cpu_collective_call_terminate_timeout_seconds": 900,
        "xla_cpu_collective_timeout_seconds": 900,
    }
    added = [f"--{name}={value}" for name, value in seconds.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *added]).strip()


def enable_compilation_cache(workdir: str) -> None:
    """Enables JAX's persistent compilation cache in the folder ``.jax_cache`` beside the workdir.

    That of a run in a bucket is in the user's folder of caches, see :func:`sdd_jax.paths.cache_folder`.

    JAX executes what it reads from there, so the folder must belong to this user and be writable by
    nobody else; a new one is created that way. Otherwise a warning is logged and there is no cache. If
    the user has set ``JAX_COMPILATION_CACHE_DIR``, that folder is used as it is.

    A kill or a full disk can truncate an entry, which then fails at every later start, since JAX never
    replaces it. When JAX warns that an entry cannot be read or written, the folder is deleted.

    Args:
      workdir: folder of the run.
    """
    # getattr, because JAX defines the attributes of its config at run time.
    cache_dir = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009
    if cache_dir is not None or not hasattr(os, "geteuid"):
        return
    beside = pathlib.Path(os.path.expanduser(workdir)).absolute().parent
    folder = (cache_folder() if is_remote(workdir) else beside) / CACHE_FOLDER
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except (OSError, ValueError):  # open_workdir reports an unusable folder
        return
    if not _is_private(status):
        _logger.warning(
            "%s is not used: others can write to it, and compiled programs are executed unchecked",
            folder,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    logging.captureWarnings(True)
    warnings_logger = logging.getLogger("py.warnings")
    warnings_logger.setLevel(logging.WARNING)  # not the root's level, which absl may raise
    warnings_logger.addFilter(_DeleteDamagedCache(folder))


def _is_private(status: os.stat_result) -> bool:
    """True for a folder (not a link) that belongs to this user and that nobody else can write to."""
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not others_write


class _DeleteDamagedCache(logging.Filter):
    """Deletes the cache, and drops the record, when JAX warns about one of its entries."""

    def __init__(self, folder: pathlib.Path):
        super().__init__()
        self._folder = folder

    def filter(self, record: logging.LogRecord) -> bool:
        damaged = "persistent compilation cache entry" in record.getMessage()
        if damaged:
            shutil.rmtree(self._folder, ignore_errors=True)
        return not damaged
