"""An engine that prepares batches on the host in the background, for data beyond device memory."""

import logging
import multiprocessing
import multiprocessing.resource_tracker
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from annotated_types import Interval

from sdd_jax.data.engines.base import RawBatch, engines
from sdd_jax.data.lazy_images import LazyImages, UndecodableImageError
from sdd_jax.data.samplers import BatchOrder
from sdd_jax.data.split import Split
from sdd_jax.devices import to_devices
from sdd_jax.errors import Failure, InputError, writing
from sdd_jax.tasks import Window

CROP = zlib.crc32(b"crop")  # random stream of the training views
SHARED_MEMORY = "/dev/shm"  # a file system in memory, on Linux
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_logger = logging.getLogger(__name__)


class WorkerError(Failure):
    """A worker process was killed or crashed."""


@engines.register("streamed")
class StreamedEngine:
    """Reads, decodes and crops batches with grain in the background, and copies them to the devices.

    Each process prepares the shares of its own devices. The batches are those of the resident engine.
    The crop of a view depends on the seed, the step, the view and the index in the global batch, so
    neither the number of workers nor a resume changes it.

    With ``on_error="skip"`` the next decodable example of the same class, in the cyclic order of the
    training set, takes the place of one that cannot be decoded: image, label and index. The replacement
    is a function of the training set alone, so a resume does not change it either, two views of one
    example still show one image, and a partner is still of the same class. Each skipped image is logged
    once. A file that cannot be read at all still ends the run, since the next attempt may succeed, and
    so does any such image of an evaluation, whose figures would be those of another set.

    Args:
      split: training examples, in memory or decoded on demand.
      batch_size: global batch size.
      sampler: name of a sampler in :mod:`sdd_jax.data.samplers`.
      seed: seed of the data order and the crops.
      workers: number of batches prepared at the same time, each by one worker.
      processes: use worker processes in place of threads. Threads start at once, and Pillow releases the
        interpreter lock; processes pay off where one interpreter cannot keep many cores busy.
      prefetch: number of batches waiting on the devices.
      on_error: whether a damaged image stops the run or is skipped.
    """

    steps_per_call = 1  # more steps would be copied together, and save little beside decoding

    def __init__(
        self,
        *,
        split: Split,
        batch_size: int,
        sampler: str,
        seed: int,
        workers: Annotated[int, Interval(ge=1, le=1024)] = 8,
        processes: bool = False,
        prefetch: Annotated[int, Interval(ge=1, le=1024)] = 2,
        on_error: Literal["stop", "skip"] = "stop",
    ):
        self._workers, self._processes, self._prefetch = workers, processes, prefetch
        self._split, self._seed, self._on_error = split, seed, on_error
        self._order = BatchOrder(
            labels=split.labels, batch_size=batch_size, sampler=sampler, seed=seed
        )
        self.steps_per_epoch = self._order.steps_per_epoch
        # Labels that move with the crops come with the batches.
        self.resident = {} if split.move else {"labels": split.labels}
        self._batches: Any = None
        self._next: int | None = None
        self._skipped: set[int] = set()  # indices in the training set
        self._folder: tempfile.TemporaryDirectory | None = None

    def inputs(self, start: int, stop: int) -> dict[str, Any]:
        """Inputs of the steps ``[start, stop)`` on the devices, ``[local devices, steps, B, ...]``.

        A call that starts where the last one stopped takes prefetched batches; any other restarts the
        workers.

        Raises:
          InputError: an image cannot be decoded; or, if those are skipped, no image of its class can.
          WorkerError: a worker process was killed or crashed.
          WriteError: a worker process cannot write its batch.
        """
        if start != self._next:
            self.close()
            self._start(start)
        self._next = None  # after an error, the next call restarts
        try:
            steps = [next(self._batches) for _ in range(start, stop)]
        except RuntimeError as error:
            if not (match := re.search(r"Worker process .* exit code (-?\d+)", str(error))):
                raise
            raise WorkerError(
                f"a worker process of the data engine ended with exit code {match[1]}, perhaps for want "
                "of memory; the same command resumes"
            ) from error
        self._next = stop
        return jax.tree.map(lambda *x: x[0] if len(x) == 1 else jnp.concatenate(x, axis=1), *steps)

    def gather(self, resident: dict[str, jax.Array], inputs: dict[str, Any]) -> RawBatch:
        """Takes the views as they are; the labels are those of view 0."""
        index = inputs["index"][:, 0]
        labels = inputs["labels"] if "labels" in inputs else resident["labels"][index]
        return RawBatch(inputs["views"], labels, index, inputs["position"])

    def skipped(self, start: int, stop: int) -> int:
        """Number of this host's examples in the steps ``[start, stop)`` that replace another.

        Call it after ``inputs`` of these steps.
        """
        skipped = list(self._skipped)
        if not skipped:
            return 0
        steps = (self._order.index(step) for step in range(start, stop))
        return sum(int(np.isin(index, skipped).any(axis=-1).sum()) for index in steps)

    def close(self) -> None:
        """Ends the threads and processes."""
        if self._batches is not None:
            self._batches.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._batches = self._next = self._folder = None

    def _start(self, step: int) -> None:
        """Starts the workers. Worker processes block SIGINT and SIGTERM, which the parent handles."""
        if self._processes:  # first, since the tracker's own start unblocks both signals
            multiprocessing.resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # threads and processes inherit it
        try:
            self._batches = iter(self._dataset(step))
            self._batches.start_prefetch()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _dataset(self, start: int) -> Any:
        import grain
        from grain.experimental import ThreadPrefetchIterDataset

        source = Batches(self._split, self._order, self._seed, start, self._on_error)
        batches = grain.MapDataset.source(source)
        if self._processes:
            if not flags.FLAGS.is_parsed():  # grain reads a flag of its own
                flags.FLAGS.mark_as_parsed()
            # Batches pass through files in memory, not through the shared memory of multiprocessing,
            # which grain leaks after an error and a worker leaks when it is killed. A folder can be
            # deleted however the workers ended.
            self._folder = tempfile.TemporaryDirectory(
                prefix=f"sdd_jax-{os.getpid()}-",
                dir=SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None,
                ignore_cleanup_errors=True,
            )
            options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            batches = batches.map(partial(_save, self._folder.name)).to_iter_dataset(options)
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers),
                partial(_follow_parent, self._folder.name),
            ).map(_load)
        else:
            options = grain.ReadOptions(self._workers, prefetch_buffer_size=self._workers)
            batches = batches.to_iter_dataset(options)
        on_devices = batches.map(self._note_skipped).map(to_devices)
        return ThreadPrefetchIterDataset(on_devices, prefetch_buffer_size=self._prefetch)

    def _note_skipped(self, batch_and_skipped: tuple[dict[str, Any], dict[int, str]]) -> Any:
        batch, skipped = batch_and_skipped
        for index in skipped.keys() - self._skipped:
            _logger.warning("%s; skipped", skipped[index])
        self._skipped |= skipped.keys()
        return batch


class Batches:
    """This process's share of the batches from step ``start`` on, as a sequence for grain.

    An element is a batch and ``{index: message}`` of the training examples that it lacks because they
    cannot be decoded.

    Args:
      split: training examples.
      order: order of the training examples.
      seed: seed of the crops.
      start: step of batch 0.
      on_error: as for :class:`StreamedEngine`.
    """

    def __init__(
        self, split: Split, order: BatchOrder, seed: int, start: int, on_error: str = "stop"
    ):
        self._split, self._order, self._seed, self._start = split, order, seed, start
        self._on_error = on_error

    def __len__(self) -> int:
        return sys.maxsize  # unbounded; the consumer stops

    def __getitem__(self, index: int) -> tuple[dict[str, Any], dict[int, str]]:
        step, skipped = self._start + index, {}
        examples, position = np.array(self._order.index(step)), self._order.position
        pairs = [
            self._view(step, v, examples[..., v], position, skipped)
            for v in range(examples.shape[-1])
        ]
        views = tuple(view for view, _ in pairs)
        batch = {"views": views, "index": examples, "position": position}
        if self._split.move is not None:
            batch["labels"] = self._moved(examples[..., 0], pairs[0][1])
        return jax.tree.map(lambda x: x[:, None], batch), skipped

    def _view(
        self,
        step: int,
        view: int,
        examples: np.ndarray,
        position: np.ndarray,
        skipped: dict[int, str],
    ) -> tuple[np.ndarray, dict[tuple[int, ...], Window]]:
        """One view of each example, and the parts that crops show; updates ``examples``, ``skipped``."""
        images = self._split.images
        if isinstance(images, np.ndarray):
            return images[examples], {}
        crops, windows = np.empty((*examples.shape, *images.shape[1:]), np.uint8), {}
        for i in np.ndindex(examples.shape):
            rng = np.random.default_rng((CROP, self._seed, step, view, int(position[i])))
            crops[i], windows[i], examples[i] = self._crop(images, int(examples[i]), rng, skipped)
        return crops, windows

    def _moved(self, examples: np.ndarray, windows: dict[tuple[int, ...], Window]) -> np.ndarray:
        """The labels of the crops of a view."""
        labels = np.stack([self._split.moved(int(examples[i]), w) for i, w in windows.items()])
        return labels.reshape(*examples.shape, *labels.shape[1:])

    def _crop(
        self, images: LazyImages, example: int, rng: np.random.Generator, skipped: dict[int, str]
    ) -> tuple[np.ndarray, Window, int]:
        """The crop of an example, or of the next of its class that can be decoded, and its index."""
        for candidate in self._candidates(example):
            try:
                return *images.random_view(candidate, rng), candidate
            except UndecodableImageError as error:
                if self._on_error == "stop":
                    raise InputError(
                        f"{error}; engine.on_error=skip replaces damaged images"
                    ) from error
                skipped[candidate] = str(error)
        labels = self._split.labels
        others = f"any other image of class {labels[example]}" if labels.ndim == 1 else "any other"
        raise InputError(f"{skipped[example]}; nor can {others}")

    def _candidates(self, example: int) -> Iterator[int]:
        """The example, then the others of its class, cyclically in the order of the training set.

        Of images with several labels, all are of one class.
        """
        yield example
        labels = self._split.labels
        same = labels == labels[example] if labels.ndim == 1 else np.full(len(labels), True)
        members = np.flatnonzero(same)
        first = np.searchsorted(members, example) + 1
        yield from map(int, np.roll(members, -first)[:-1])


def _save(folder: str, batch_and_skipped: tuple[Any, Any]) -> tuple[Any, Any]:
    """In a worker process: replaces the arrays of a batch by files in ``folder``."""

    def save(array: np.ndarray) -> str:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            np.save(file, array, allow_pickle=False)
        return file.name

    batch, skipped = batch_and_skipped
    with writing(f"a batch in {folder}"):
        return jax.tree.map(save, batch), skipped


def _load(files_and_skipped: tuple[Any, Any]) -> tuple[Any, Any]:
    """The reverse of :func:`_save`, in the parent; deletes the files."""

    def load(path: str) -> np.ndarray:
        array = np.load(path, allow_pickle=False)
        os.unlink(path)
        return array

    files, skipped = files_and_skipped
    return jax.tree.map(load, files), skipped


def _follow_parent(folder: str, worker: int, workers: int) -> None:
    """Initialises a worker process: it exits with its parent, and deletes its folder then."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch():
        parent.join()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
