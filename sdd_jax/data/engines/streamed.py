"""Batches made on the host ahead of their steps: for data that do not fit in device memory."""

import multiprocessing
import os
import signal
import sys
import threading
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from sdd_jax.data.dataset import Split
from sdd_jax.data.engines.base import RawBatch, engines
from sdd_jax.data.order import Order
from sdd_jax.data.stored import StoredImages
from sdd_jax.errors import check
from sdd_jax.parallel import to_devices

CROP = zlib.crc32(b"crop")  # the stream of randomness


@engines.register("streamed")
class StreamedEngine:
    """Batches read, decoded and cropped by grain in the background, and copied to the devices.

    A process makes its own devices' shares alone. The batches are those of the resident engine, and the
    crop of a view depends on the seed, the step, the view and the place in the global batch: not on who
    makes it, nor on where a run resumed.

    Args:
      split: the training examples, in memory or stored.
      batch_size: of all devices together.
      sampler: a name in ``sdd_jax.data.samplers``.
      seed: of the data order and the crops.
      workers: how many make batches at the same time, each a whole one.
      processes: whether the workers are processes, not threads. Pillow lets threads run side by side,
        and they cost nothing to start; processes pay where one interpreter cannot keep many cores busy.
      prefetch: batches that wait on the devices.
    """

    steps_per_call = 1  # more would have to be copied together, and save little beside decoding

    def __init__(
        self,
        *,
        split: Split,
        batch_size: int,
        sampler: str,
        seed: int,
        workers: int = 8,
        processes: bool = False,
        prefetch: int = 2,
    ):
        check(workers >= 1, "config.engine.workers", workers, "at least 1")
        check(prefetch >= 1, "config.engine.prefetch", prefetch, "at least 1")
        self._workers, self._processes, self._prefetch = workers, processes, prefetch
        self._images, self._seed = split.images, seed
        self._order = Order(labels=split.labels, batch_size=batch_size, sampler=sampler, seed=seed)
        self.steps_per_epoch = self._order.steps_per_epoch
        self.resident = {"labels": split.labels}
        self._batches: Any = None
        self._next: int | None = None

    def inputs(self, start: int, stop: int) -> dict[str, Any]:
        """Steps ``[start, stop)`` on the devices, ``[local devices, steps, B, ...]``.

        Going on where the last call stopped takes what is ready; any other start begins anew.

        Raises:
          InputError: an image cannot be decoded.
        """
        if start != self._next:
            self.close()
            self._batches = iter(self._dataset(start))
        self._next = None  # until these steps are there
        steps = [next(self._batches) for _ in range(start, stop)]
        self._next = stop
        return jax.tree.map(lambda *x: x[0] if len(x) == 1 else jnp.concatenate(x, axis=1), *steps)

    def gather(self, resident: dict[str, jax.Array], inputs: dict[str, Any]) -> RawBatch:
        """The views are there; labels are those of view 0."""
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
            if not flags.FLAGS.is_parsed():  # grain reads a flag of its own, in any program
                flags.FLAGS.mark_as_parsed()
            options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            batches = batches.to_iter_dataset(options).mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers), _live_and_die_with_parent
            )
            # JAX holds on to what it is given, and shared memory must not outlive the workers.
            batches = batches.map(lambda batch: jax.tree.map(np.array, batch))
        else:
            options = grain.ReadOptions(self._workers, prefetch_buffer_size=self._workers)
            batches = batches.to_iter_dataset(options)
        on_devices = batches.map(to_devices)
        return ThreadPrefetchIterDataset(on_devices, prefetch_buffer_size=self._prefetch)


class Batches:
    """A process's share of the batches from step ``start`` on, by number.

    Args:
      images: of the training examples.
      order: of the training examples.
      seed: of the crops.
      start: the step of batch 0.
    """

    def __init__(self, images: np.ndarray | StoredImages, order: Order, seed: int, start: int):
        self._images, self._order, self._seed, self._start = images, order, seed, start

    def __len__(self) -> int:
        return sys.maxsize  # who asks for batches knows when to stop

    def __getitem__(self, number: int) -> dict[str, Any]:
        step = self._start + number
        index, position = self._order.index(step), self._order.position
        views = (self._view(step, v, index[..., v], position) for v in range(index.shape[-1]))
        batch = {"views": tuple(views), "index": index, "position": position}
        return jax.tree.map(lambda x: x[:, None], batch)

    def _view(self, step: int, view: int, index: np.ndarray, position: np.ndarray) -> np.ndarray:
        if isinstance(self._images, np.ndarray):
            return self._images[index]
        crops = np.empty((*index.shape, *self._images.shape[1:]), np.uint8)
        for place in np.ndindex(index.shape):
            rng = np.random.default_rng((CROP, self._seed, step, view, int(position[place])))
            crops[place] = self._images.random_view(index[place], rng)
        return crops


def _live_and_die_with_parent(worker: int, workers: int) -> None:
    """Leaves a signal to the whole job to the parent, which saves its state and ends the workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
