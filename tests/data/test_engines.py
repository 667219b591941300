"""Engines: the batches, and the threads and processes that prepare them."""

import multiprocessing
import os
import signal

import jax
import numpy as np
import pytest

from sdd_jax.data import Split
from sdd_jax.data.engines import engines, streamed
from sdd_jax.data.engines.streamed import Batches, WorkerError
from sdd_jax.data.lazy_images import LazyImages
from sdd_jax.data.samplers import BatchOrder
from sdd_jax.errors import InputError

SAMPLERS = ("uniform", "same_class", "two_views", "overlapping")
LABELS = (np.arange(41) % 4).astype(np.int32)
IMAGES = np.random.default_rng(0).integers(0, 256, (41, 4, 5, 3), dtype=np.uint8)
IN_MEMORY = Split(IMAGES, LABELS)
SHAPES = [(20 + i % 5, 30 - i % 7, 3) for i in range(41)]


@pytest.fixture(scope="module")
def files(encoded):
    """Image files of several sizes."""
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in SHAPES]
    return [encoded(image, "JPEG").getvalue() for image in images]


@pytest.fixture
def lazy(files):
    return Split(LazyImages(files, 8, "dataset birds, train"), LABELS)


@pytest.fixture
def damaged(files):
    """As ``lazy``, with image 7 truncated."""
    images = [*files[:7], files[7][:300], *files[8:]]
    return Split(LazyImages(images, 8, "dataset birds, train"), LABELS)


@pytest.fixture
def build():
    """Builds engines, and closes them after the test."""
    built = []

    def build(split, *, name="streamed", sampler="uniform", seed=0, **options):
        context = {"split": split, "batch_size": 8, "sampler": sampler, "seed": seed}
        built.append(engines.build({"name": name} | options, **context))
        return built[-1]

    yield build
    for engine in built:
        engine.close()


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def join(parts):
    return jax.tree.map(lambda *x: np.concatenate(x, axis=1), *jax.device_get(parts))


def batches(engine, start, stop):
    """The batches ``[device][step]`` of an engine."""
    inputs = jax.device_get(engine.inputs(start, stop))

    def one(d, s):
        return jax.device_get(
            engine.gather(engine.resident, jax.tree.map(lambda x: x[d, s], inputs))
        )

    return [[one(d, s) for s in range(stop - start)] for d in range(4)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_hold_the_examples_of_the_order_with_either_engine(build, sampler):
    order = BatchOrder(labels=LABELS, batch_size=8, sampler=sampler, seed=0)
    resident, from_host = (
        build(IN_MEMORY, name=name, sampler=sampler) for name in ("resident", "streamed")
    )
    assert resident.steps_per_epoch == from_host.steps_per_epoch == order.steps_per_epoch
    for start, stop in ((0, 1), (1, 4), (4, order.steps_per_epoch + 2)):  # into the next epoch
        ours = batches(resident, start, stop)
        for d, s in np.ndindex(4, stop - start):
            batch, index = ours[d][s], order.index(start + s)[d]
            assert_equal(batch.views, tuple(IMAGES[index[:, v]] for v in range(index.shape[1])))
            assert_equal((batch.index, batch.labels), (index[:, 0], LABELS[index[:, 0]]))
            np.testing.assert_array_equal(batch.position, [2 * d, 2 * d + 1])
        assert_equal(batches(from_host, start, stop), ours)


def test_crops_depend_on_seed_step_view_and_position(build, lazy):
    inputs = jax.device_get(build(lazy, sampler="two_views").inputs(0, 6))
    first, second = inputs["views"]
    assert first.shape == (4, 6, 2, 8, 8, 3)
    for d, s, b in np.ndindex(first.shape[:3]):
        position, example = int(inputs["position"][d, s, b]), int(inputs["index"][d, s, b, 0])
        assert position == 2 * d + b
        for v, view in enumerate((first, second)):
            rng = np.random.default_rng((3988929947, 0, s, v, position))  # CRC-32 of "crop"
            crop, _ = lazy.images.random_view(example, rng)
            np.testing.assert_array_equal(view[d, s, b], crop)
        assert not np.array_equal(first[d, s, b], second[d, s, b])
    other_seed = jax.device_get(build(lazy, sampler="two_views", seed=1).inputs(0, 1))
    assert not np.array_equal(other_seed["views"][0][:, 0], first[:, 0])


@pytest.mark.parametrize("options", [{"workers": 1, "prefetch": 1}, {"workers": 3, "prefetch": 5}])
def test_batches_depend_neither_on_the_workers_nor_on_a_resume(build, lazy, options):
    expected = jax.device_get(build(lazy).inputs(0, 9))
    engine = build(lazy, **options)
    parts = [jax.device_get(engine.inputs(start, start + 2)) for start in (3, 5, 7)]
    parts.insert(0, jax.device_get(engine.inputs(0, 3)))  # back to the start
    assert_equal(join(parts), expected)


def test_worker_processes_make_the_same_batches_and_end(build, lazy, damaged):
    expected = jax.device_get(build(lazy, sampler="same_class").inputs(2, 7))
    engine = build(lazy, sampler="same_class", processes=True, workers=2)
    parts = [engine.inputs(2, 4)]  # one from each worker
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGTERM)  # as a cluster signals every process of a job
    parts += [engine.inputs(start, start + 1) for start in range(4, 7)]
    assert_equal(join(parts), expected)
    with_error = build(damaged, processes=True, workers=1)
    with pytest.raises(InputError, match="dataset birds, train: image 7 cannot be decoded"):
        with_error.inputs(0, 2 * with_error.steps_per_epoch)
    for each in (engine, with_error, with_error):  # closing twice does no harm
        each.close()
    assert not multiprocessing.active_children()


def test_a_host_prepares_the_shares_of_its_own_devices(lazy, monkeypatch):
    def shares(process, processes, devices):
        monkeypatch.setattr(jax, "process_index", lambda: process)
        monkeypatch.setattr(jax, "device_count", lambda: devices)
        monkeypatch.setattr(jax, "local_device_count", lambda: devices // processes)
        order = BatchOrder(labels=LABELS, batch_size=8, sampler="two_views", seed=3)
        return [Batches(lazy, order, 3, start=2)[i][0] for i in range(4)]

    def flat(shares):  # [devices, 1, B, ...] -> [global batch, ...]
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), shares)

    whole = flat(shares(0, 1, 4))
    halves = shares(0, 2, 4), shares(1, 2, 4)
    assert halves[0][0]["views"][0].shape == (2, 1, 2, 8, 8, 3)
    assert_equal(jax.tree.map(lambda *x: np.concatenate(x), *map(flat, halves)), whole)
    for devices in (1, 8):
        assert_equal(flat(shares(0, 1, devices)), whole)


def test_a_damaged_image_is_named_and_other_steps_still_work(build, damaged):
    engine = build(damaged)
    order = BatchOrder(labels=LABELS, batch_size=8, sampler="uniform", seed=0)
    (bad,) = [step for step in range(5) if 7 in order.index(step)]
    for start, stop in ((0, 5), (bad, bad + 1)):
        with pytest.raises(InputError, match="birds, train: image 7 cannot .*engine.on_error=skip"):
            engine.inputs(start, stop)
        assert engine.inputs(bad + 1, bad + 2)["index"].shape == (4, 1, 2, 1)


@pytest.fixture
def holey(files):
    """As ``lazy``; images 7 and 11 of class 3 and 38, the last of class 2, cannot be decoded."""
    images = [file[:300] if i in (7, 11, 38) else file for i, file in enumerate(files)]
    return Split(LazyImages(images, 8, "dataset birds, train"), LABELS)


REPLACEMENTS = {7: 15, 11: 15, 38: 2}  # the next of the class, from the last to the first


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_next_decodable_image_of_the_class_replaces_a_damaged_one(build, holey, lazy, sampler):
    order = BatchOrder(labels=LABELS, batch_size=8, sampler=sampler, seed=0)
    engine = build(holey, sampler=sampler, on_error="skip")
    stop, replaced = order.steps_per_epoch + 2, 0  # into the next epoch
    for step, all_devices in enumerate(np.transpose(batches(engine, 0, stop))):
        for d, batch in enumerate(all_devices):
            drawn = order.index(step)[d]
            index = np.vectorize(lambda i: REPLACEMENTS.get(i, i))(drawn)
            np.testing.assert_array_equal(batch.index, index[:, 0])
            np.testing.assert_array_equal(batch.labels, LABELS[drawn[:, 0]])
            for v, b in np.ndindex(index.shape[1], 2):
                rng = np.random.default_rng((3988929947, 0, step, v, 2 * d + b))
                crop, _ = lazy.images.random_view(int(index[b, v]), rng)
                np.testing.assert_array_equal(batch.views[v][b], crop)
            replaced += (index != drawn).any(axis=-1).sum()
    assert engine.skipped(0, stop) == replaced > 0
    assert sum(engine.skipped(step, step + 1) for step in range(stop)) == replaced


@pytest.mark.parametrize("options", [{"workers": 3}, {"workers": 2, "processes": True}])
def test_skipping_is_the_same_after_a_resume_and_logged_once(build, holey, caplog, options):
    whole = build(holey, sampler="two_views", on_error="skip")
    expected = jax.device_get([whole.inputs(step, step + 1) for step in range(12)])
    caplog.clear()
    engine = build(holey, sampler="two_views", on_error="skip", **options)
    assert_equal(
        [jax.device_get(engine.inputs(step, step + 1)) for step in range(5, 12)], expected[5:]
    )
    assert engine.skipped(5, 12) == whole.skipped(5, 12)
    for image in (7, 11, 38):
        (message,) = [m for m in caplog.messages if f"train: image {image} cannot" in m]
        assert message.endswith("Truncated File Read; skipped")


def test_an_engine_of_images_in_memory_skips_nothing(build):
    for name in ("resident", "streamed"):
        engine = build(IN_MEMORY, name=name)
        engine.inputs(0, 5)
        assert engine.skipped(0, 5) == 0


def test_a_class_without_a_decodable_image_stops_the_run(build, files):
    images = [file[:300] if label == 3 else file for file, label in zip(files, LABELS, strict=True)]
    split = Split(LazyImages(images, 8, "dataset birds, train"), LABELS)
    message = "birds, train: image .* cannot be decoded: .*; nor can any other image of class 3"
    with pytest.raises(InputError, match=message):
        build(split, on_error="skip").inputs(0, 5)


class Unplugged(list):
    """Images on a disk that does not answer for one of them."""

    def __getitem__(self, index):
        if index == 7:
            raise OSError(5, "Input/output error")
        return super().__getitem__(index)


def test_a_file_that_may_be_readable_later_is_not_skipped(build, files):
    split = Split(LazyImages(Unplugged(files), 8, "dataset birds, train"), LABELS)
    with pytest.raises(InputError, match="image 7 cannot be decoded: OSError: .*/output error"):
        build(split, on_error="skip").inputs(0, 5)


def test_a_killed_worker_process_is_one_line_and_leaves_no_files(
    build, lazy, tmp_path, monkeypatch
):
    monkeypatch.setattr(streamed, "SHARED_MEMORY", str(tmp_path))
    engine = build(lazy, processes=True, workers=2)
    engine.inputs(0, 1)
    assert [*tmp_path.iterdir()]
    multiprocessing.active_children()[0].kill()
    with pytest.raises(WorkerError, match="^a worker process .* exit code -9"):
        engine.inputs(1, 100)
    engine.close()
    assert not [*tmp_path.iterdir()]


def test_closing_ends_the_threads(build, lazy, background_threads, assert_nothing_runs):
    engine = build(lazy)
    engine.inputs(0, 1)
    assert background_threads()
    engine.close()
    assert_nothing_runs()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, r"workers: must be in \[1, 1024\], got 0"),
        ({"workers": 1025}, r"workers: must be in \[1, 1024\], got 1025"),
        ({"on_error": "ignore"}, "on_error: must be one of stop, skip, got 'ignore'"),
        ({"prefetch": 0}, r"prefetch: must be in \[1, 1024\], got 0"),
        ({"name": "resident"}, "name: must be streamed where image_size is set, got 'resident'"),
        ({"name": "nope"}, "name: must be one of resident, streamed, got 'nope'"),
    ],
)
def test_unusable_options_are_refused(build, lazy, options, message):
    with pytest.raises(InputError, match=f"^config.engine.{message}"):
        build(lazy, **options)
