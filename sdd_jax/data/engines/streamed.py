"""An engine that prepares batches on the host in the background, for data beyond device memory."""

import multiprocessing
import os
import signal
import sys
import threading
import zlib
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from annotated_types import Interval

from sdd_jax.data.dataset import Split
from sdd_jax.data.engines.base import RawBatch, engines
from sdd_jax.data.lazy_images import LazyImages
from sdd_jax.data.samplers import BatchOrder
from sdd_jax.devices import to_devices

CROP = zlib.crc32(b"crop")  # random stream of the training views


@engines.register("streamed")
class StreamedEngine:
    """Reads, decodes and crops batches with grain in the background, and copies them to the devices.

    Each process prepares the shares of its own devices. The batches are those of the resident engine.
    The crop of a view depends on the seed, the step, the view and the index in the global batch, so
    neither the number of workers nor a resume changes it.

    Args:
      split: training examples, in memory or decoded on demand.
      batch_size: global batch size.
      sampler: name of a sampler in :mod:`sdd_jax.data.samplers`.
      seed: seed of the data order and the crops.
      workers: number of batches prepared at the same time, each by one worker.
      processes: use worker processes in place of threads. Threads start at once, and Pillow releases the
        interpreter lock; processes pay off where one interpreter cannot keep many cores busy.
      prefetch: number of batches waiting on the devices.
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
    ):
        self._workers, self._processes, self._prefetch = workers, processes, prefetch
        self._images, self._seed = split.images, seed
        self._order = BatchOrder(
            labels=split.labels, batch_size=batch_size, sampler=sampler, seed=seed
        )
        self.steps_per_epoch = self._order.steps_per_epoch
        self.resident = {"labels": split.labels}
        self._batches: Any = None
        self._next: int | None = None

    def inputs(self, start: int, stop: int) -> dict[str, Any]:
        """Inputs of the steps ``[start, stop)`` on the devices, ``[local devices, steps, B, ...]``.

        A call that starts where the last one stopped takes prefetched batches; any other restarts the
        workers.

        Raises:
          InputError: an image cannot be decoded.
        """
        if start != self._next:
            self.close()
            self._batches = iter(self._dataset(start))
        self._next = None  # after an error, the next call restarts
        steps = [next(self._batches) for _ in range(start, stop)]
        self._next = stop
        return jax.tree.map(lambda *x: x[0] if len(x) == 1 else jnp.concatenate(x, axis=1), *steps)

    def gather(self, resident: dict[str, jax.Array], inputs: dict[str, Any]) -> RawBatch:
        """Takes the views as they are; the labels are those of view 0."""
        index = inputs["index"][:, 0]
        return RawBatch(inputs["views"], resident["labels"][index], index, inputs["position"])

    def close(self) -> None:
        """Ends the threads and processes."""
        if self._batches is not None:
            self._batches.close()
        self._batches = self._next = None

    def _dataset(self, start: int) -> Any:
        import grain
        from grain.experimental import ThreadPrefetchIterDataset

        batches = grain.MapDataset.source(Batches(self._images, self._order, self._seed, start))
        if self._processes:
            if not flags.FLAGS.is_parsed():  # grain reads a flag of its own
                flags.FLAGS.mark_as_parsed()
            options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            batches = batches.to_iter_dataset(options).mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers), _follow_parent
            )
            # Copied: JAX may keep a reference to shared memory, which must not outlive the workers.
            batches = batches.map(lambda batch: jax.tree.map(np.array, batch))
        else:
            options = grain.ReadOptions(self._workers, prefetch_buffer_size=self._workers)
            batches = batches.to_iter_dataset(options)
        on_devices = batches.map(to_devices)
        return ThreadPrefetchIterDataset(on_devices, prefetch_buffer_size=self._prefetch)


class Batches:
    """This process's share of the batches from step ``start`` on, as a sequence for grain.

    Args:
      images: images of the training examples.
      order: order of the training examples.
      seed: seed of the crops.
      start: step of batch 0.
    """

    def __init__(self, images: np.ndarray | LazyImages, order: BatchOrder, seed: int, start: int):
        self._images, self._order, self._seed, self._start = images, order, seed, start

    def __len__(self) -> int:
        return sys.maxsize  # unbounded; the consumer stops

    def __getitem__(self, index: int) -> dict[str, Any]:
        step = self._start + index
        examples, position = self._order.index(step), self._order.position
        views = (self._view(step, v, examples[..., v], position) for v in range(examples.shape[-1]))
        batch = {"views": tuple(views), "index": examples, "position": position}
        return jax.tree.map(lambda x: x[:, None], batch)

    def _view(self, step: int, view: int, examples: np.ndarray, position: np.ndarray) -> np.ndarray:
        if isinstance(self._images, np.ndarray):
            return self._images[examples]
        crops = np.empty((*examples.shape, *self._images.shape[1:]), np.uint8)
        for i in np.ndindex(examples.shape):
            rng = np.random.default_rng((CROP, self._seed, step, view, int(position[i])))
            crops[i] = self._images.random_view(int(examples[i]), rng)
        return crops


def _follow_parent(worker: int, workers: int) -> None:
    """Initialises a worker process: it exits with its parent, which handles SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
