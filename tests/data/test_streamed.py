"""The streamed engine: its batches, who makes them, and runs that train on them."""

import importlib.util
import io
import multiprocessing
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from sdd_jax import experiment as experiments
from sdd_jax.data import Split
from sdd_jax.data.engines import engines
from sdd_jax.data.engines.streamed import Batches
from sdd_jax.data.order import Order
from sdd_jax.data.stored import StoredImages
from sdd_jax.errors import InputError
from sdd_jax.evaluation.run import evaluate_workdir
from sdd_jax.models import models
from sdd_jax.training import loop
from sdd_jax.training.checkpoints import Checkpoints

SAMPLERS = ("uniform", "same_class", "two_views", "overlapping")
RNG = np.random.default_rng(0)
LABELS = (np.arange(41) % 4).astype(np.int32)
PLAIN = Split(RNG.integers(0, 256, (41, 4, 5, 3), dtype=np.uint8), LABELS)


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    return buffer.getvalue()


FILES = [jpeg(RNG.integers(0, 256, (20 + i % 5, 30 - i % 7, 3), dtype=np.uint8)) for i in range(41)]


def stored(files=FILES):
    return Split(StoredImages(files, 8, "dataset made, train"), LABELS)


@pytest.fixture
def make():
    """Builds engines, and closes them."""
    made = []

    def make(split=None, *, name="streamed", sampler="uniform", seed=0, **options):
        context = {"split": split or stored(), "batch_size": 8, "sampler": sampler, "seed": seed}
        made.append(engines.build({"name": name} | options, **context))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def raw_batches(engine, inputs):
    """What the steps see, device by device."""
    host = jax.device_get(inputs)
    devices, steps = host["position"].shape[:2]
    return [
        jax.device_get(engine.gather(engine.resident, jax.tree.map(lambda x: x[d, s], host)))  # noqa: B023
        for s in range(steps)
        for d in range(devices)
    ]


def background_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("grain-")]


def assert_nothing_runs():
    """Threads that have been told to stop still finish what they are at."""
    deadline = time.monotonic() + 20
    while background_threads() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not background_threads()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_in_memory_come_out_as_from_the_resident_engine(make, sampler):
    ours, theirs = (make(PLAIN, name=name, sampler=sampler) for name in ("streamed", "resident"))
    assert ours.steps_per_epoch == theirs.steps_per_epoch
    stop = ours.steps_per_epoch + 2  # into the next epoch
    for start, end in ((0, 1), (1, 4), (4, stop)):
        found = raw_batches(ours, ours.inputs(start, end))
        expected = raw_batches(theirs, theirs.inputs(start, end))
        assert len(found) == 4 * (end - start)
        assert_equal(found, expected)


def test_an_epoch_holds_every_example_once(make):
    engine = make(prefetch=1)
    inputs = jax.device_get(engine.inputs(0, engine.steps_per_epoch))
    assert len(np.unique(inputs["index"])) == inputs["index"].size == 40


def test_views_are_crops_that_depend_on_seed_step_view_and_position(make):
    inputs = jax.device_get(make(sampler="two_views").inputs(0, 6))
    first, second = inputs["views"]
    assert first.shape == (4, 6, 2, 8, 8, 3)
    images = stored().images
    for d, s, b in np.ndindex(first.shape[:3]):
        position, place = int(inputs["position"][d, s, b]), inputs["index"][d, s, b, 0]
        assert position == 2 * d + b
        for v, view in enumerate((first, second)):
            rng = np.random.default_rng((3988929947, 0, s, v, position))  # CRC-32 of "crop"
            np.testing.assert_array_equal(view[d, s, b], images.random_view(place, rng))
        assert not np.array_equal(first[d, s, b], second[d, s, b])
    other = jax.device_get(make(sampler="two_views", seed=1).inputs(0, 1))
    assert not np.array_equal(other["views"][0][:, 0], first[:, 0])


@pytest.mark.parametrize("options", [{"workers": 1, "prefetch": 1}, {"workers": 3, "prefetch": 5}])
def test_batches_do_not_depend_on_the_workers_nor_on_where_a_run_resumed(make, options):
    expected = jax.device_get(make().inputs(0, 9))
    engine = make(**options)
    parts = [jax.device_get(engine.inputs(start, start + 2)) for start in (3, 5, 7)]
    parts.insert(0, jax.device_get(engine.inputs(0, 3)))  # back to the start
    joined = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
    assert_equal(joined, expected)


def test_worker_processes_make_the_same_batches_and_end(make):
    threads = make(sampler="same_class")
    expected = jax.device_get(threads.inputs(2, 7))
    parallel = make(sampler="same_class", processes=True, workers=2)
    parts = [jax.device_get(parallel.inputs(2, 4))]  # one of each worker
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGTERM)  # a cluster tells every process of a job
    parts += [jax.device_get(parallel.inputs(start, start + 1)) for start in range(4, 7)]
    assert_equal(jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts), expected)
    files = [*FILES[:7], FILES[7][:300], *FILES[8:]]
    engine = make(stored(files), processes=True, workers=1)
    with pytest.raises(InputError, match="dataset made, train: image 7 cannot be decoded"):
        engine.inputs(0, 2 * engine.steps_per_epoch)
    for each in (threads, parallel, engine, engine):  # twice does no harm
        each.close()
    assert_nothing_runs()


def test_a_process_makes_the_shares_of_its_own_devices_alone(monkeypatch):
    def shares(process, processes, devices):
        monkeypatch.setattr(jax, "process_index", lambda: process)
        monkeypatch.setattr(jax, "device_count", lambda: devices)
        monkeypatch.setattr(jax, "local_device_count", lambda: devices // processes)
        order = Order(labels=LABELS, batch_size=8, sampler="two_views", seed=3)
        return [Batches(stored().images, order, 3, start=2)[i] for i in range(4)]

    def flat(batches):  # [devices, 1, B, ...] -> [global batch, ...]
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), batches)

    whole = shares(0, 1, 4)
    halves = shares(0, 2, 4), shares(1, 2, 4)
    assert halves[0][0]["views"][0].shape == (2, 1, 2, 8, 8, 3)
    both = jax.tree.map(lambda *x: np.concatenate(x), *map(flat, halves))
    assert_equal(both, flat(whole))
    assert_equal(flat(shares(0, 1, 1)), flat(whole))  # one device
    assert_equal(flat(shares(0, 1, 8)), flat(whole))  # eight


def test_a_damaged_image_is_named_and_the_engine_goes_on_elsewhere(make):
    files = [*FILES[:7], FILES[7][:300], *FILES[8:]]
    engine = make(stored(files))
    order = Order(labels=LABELS, batch_size=8, sampler="uniform", seed=0)
    (bad,) = [step for step in range(5) if 7 in order.index(step)]
    with pytest.raises(InputError, match="dataset made, train: image 7 cannot be decoded"):
        engine.inputs(0, 5)
    assert engine.inputs(bad + 1, bad + 2)["index"].shape == (4, 1, 2, 1)
    with pytest.raises(InputError, match="image 7"):
        engine.inputs(bad, bad + 1)


def test_closing_ends_the_threads(make):
    engine = make()
    engine.inputs(0, 1)
    assert background_threads()
    engine.close()
    assert_nothing_runs()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "config.engine.workers: must be at least 1, got 0"),
        ({"prefetch": 0}, "config.engine.prefetch: must be at least 1, got 0"),
        ({"name": "resident"}, "config.engine.name: must be streamed where .*image_size is set"),
    ],
)
def test_unusable_options_are_refused(make, options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def final_state(config, workdir):
    like = jax.eval_shape(experiments.load_experiment(config).create_state)
    return Checkpoints(workdir, read_only=True).restore(like)


def test_a_run_ends_with_the_same_parameters_with_either_engine(tiny_config, tmp_path):
    config = tiny_config
    config.duration, config.eval_every = "9 steps", "9 steps"  # one step of the next epoch
    states = {}
    for name, steps in (("resident", 0), ("streamed", 0), ("streamed", 3)):
        config.engine, config.steps_per_call = engines.options(name), steps
        workdir = tmp_path / f"{name}{steps}"
        loop.train_and_evaluate(config, str(workdir))
        states[name, steps] = final_state(config, workdir)
    assert_equal(states["streamed", 0], states["resident", 0])
    assert_equal(states["streamed", 3], states["resident", 0])
    assert_nothing_runs()
    # The engine may change within a run: it is not part of what is trained.
    config.engine = engines.options("resident")
    loop.train_and_evaluate(config, str(tmp_path / "streamed3"))


@pytest.fixture
def card(root, photographs, tmp_path):
    """CUB's card, made small, on the made photographs."""
    spec = importlib.util.spec_from_file_location("card", root / "configs/cub200_resnet18.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("sd_dropout,runlocal")
    config.dataset.update(
        name="tiny_birds", data_dir=photographs, cache_dir=str(tmp_path / "cache"), image_size=32
    )
    config.model.width = 4
    config.batch_size = 8
    config.duration = "2 epochs"
    return config


def test_a_card_trains_and_evaluates_on_photographs(card, tmp_path):
    card.dataset.validation = 0.2
    card.duration = "1 epochs"
    result = loop.train_and_evaluate(card, str(tmp_path))
    assert_nothing_runs()
    (line,) = [line for line in loop.read_metrics(tmp_path) if "eval/accuracy" in line]
    assert line["step"] == 4  # of 39 images in batches of 8
    assert {"train/sd_dropout", "validation/accuracy"} <= line.keys()
    repeated = evaluate_workdir(str(tmp_path), ["accuracy"])
    assert repeated["eval/accuracy"] == result["eval/accuracy"]


def test_a_run_resumes_in_the_middle_of_an_epoch_to_the_same_parameters(
    card, tmp_path, monkeypatch
):
    card.model = models.options("mlp", width=8, depth=1)
    card.optimizer.learning_rate = 0.01
    card.duration = card.checkpoint_every = card.eval_every = "7 steps"
    result = loop.train_and_evaluate(card, str(tmp_path / "whole"))
    asked = []
    inputs = engines.get("streamed").inputs

    def interrupted(self, start, stop):
        asked.append(start)
        if asked == [0, 1, 2]:
            signal.raise_signal(signal.SIGTERM)
        return inputs(self, start, stop)

    monkeypatch.setattr(engines.get("streamed"), "inputs", interrupted)
    with pytest.raises(loop.Interrupted, match="after step 3, which is saved"):
        loop.train_and_evaluate(card, str(tmp_path / "parts"))
    assert_nothing_runs()
    assert loop.train_and_evaluate(card, str(tmp_path / "parts")) == result
    assert asked == [0, 1, 2, 3, 4, 5, 6]
    assert_equal(*(final_state(card, tmp_path / run) for run in ("whole", "parts")))


def test_checks_take_photographs_and_another_set_in_their_size(card, tmp_path):
    card.model = models.options("mlp", width=8, depth=1)
    card.duration = "2 steps"
    loop.train_and_evaluate(card, str(tmp_path))
    few = {"eval.max_images": 5, "eval.pgd_steps": 1}
    found = evaluate_workdir(str(tmp_path), ["ood", "adversarial"], overrides=few)
    assert 0 <= found["eval/ood/photos/msp/auroc"] <= 1
    assert found["eval/adversarial/images"] == 5


def test_a_damaged_photograph_ends_the_run_with_one_line_and_no_threads(
    card, tmp_path, monkeypatch
):
    from sdd_jax.data.sources.tfds import EncodedImages

    card.model = models.options("mlp", width=4, depth=1)
    read = EncodedImages.__getitem__
    monkeypatch.setattr(
        EncodedImages, "__getitem__", lambda self, i: read(self, i)[: 99 if i == 11 else None]
    )
    with pytest.raises(
        InputError, match="dataset tiny_birds, train: image 11 cannot be decoded"
    ) as error:
        loop.train_and_evaluate(card, str(tmp_path / "run"))
    assert "\n" not in str(error.value)
    assert_nothing_runs()
