"""Metric writers: TensorBoard, wandb, and writers of one's own."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from sdd_jax import train
from sdd_jax.data.lazy_images import UndecodableImageError
from sdd_jax.errors import InputError, WriteError
from sdd_jax.experiment import load_experiment
from sdd_jax.runs import MetricsLog, writers

FAKE_WANDB = """
calls = []

class Error(Exception):
    pass

class Run:
    step = 0

    def log(self, values, step):
        calls.append((step, values))
        self.step = step

    def finish(self):
        calls.append("finished")

def init(**options):
    calls.append(options)
    if options["project"] == "refused":
        raise Error("api_key not configured")
    return Run()

def Image(array):
    return array.shape
"""


@pytest.fixture
def events(event_file):
    """Function of a folder: the events of all files, oldest file first."""

    def read(folder):
        paths = sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns)
        return [event for path in paths for event in event_file(path)]

    return read


@pytest.fixture
def visible(events):
    """Function of a folder: ``{tag: steps}`` that TensorBoard shows; a later start hides steps."""

    def read(folder):
        shown = {}
        for event in events(folder):
            if event.session_log.status == 1:
                shown = {tag: [s for s in x if s < event.step] for tag, x in shown.items()}
            for value in event.summary.value:
                shown.setdefault(value.tag, []).append(event.step)
        return shown

    return read


def write(workdir, names, steps, *, start=0, config=None):
    log = MetricsLog(
        workdir, start=start, total=100, steps_per_epoch=10,
        writers=writers.installed(names), config=config,
    )  # fmt: skip
    for step in steps:
        log.write(step, {"train/loss": 1.0})
    log.close()


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A module with the functions of wandb that are used; its ``calls`` are recorded."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    import wandb

    yield wandb
    del sys.modules["wandb"]


def test_tensorboard_has_no_step_twice_after_a_resume(tmp_path, visible):
    write(tmp_path, ["tensorboard"], [10, 20, 30])
    write(tmp_path, ["tensorboard"], [30, 40], start=20)
    assert visible(tmp_path / "tensorboard")["train/loss"] == [10, 20, 30, 40]


def test_tensorboard_shows_a_run_that_starts_over_once(tmp_path, visible):
    for _ in range(2):
        write(tmp_path, ["tensorboard"], [10], config={"seed": 1})
    shown = visible(tmp_path / "tensorboard")
    assert shown["train/loss"] == [10]
    assert shown["config/text_summary"] == [0]


def test_tensorboard_has_the_config_as_text_and_as_hyperparameters(tmp_path, events):
    config = {
        "seed": 7,
        "imports": (),
        "model": {"name": "mlp", "dropout_rate": 0.25, "bias": True},
    }
    write(tmp_path, ["tensorboard"], [10], config=config)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["tensorboard"]
    values = {v.tag: v for event in events(tmp_path / "tensorboard") for v in event.summary.value}
    text = values["config/text_summary"].tensor.string_val[0].decode()
    assert json.loads(text.removeprefix("```json\n").removesuffix("\n```")) == {
        **config, "imports": []
    }  # fmt: skip
    content = values["_hparams_/session_start_info"].metadata.plugin_data.content
    for name in (b"seed", b"model.name", b"mlp", b"model.dropout_rate", b"imports"):
        assert name in content
    metrics = values["_hparams_/experiment"].metadata.plugin_data.content
    assert b"eval/accuracy" in metrics


def test_tensorboard_shows_images(tmp_path, events):
    (writer,) = writers.installed(["tensorboard"])
    opened = writer(tmp_path, start=0, config={})
    opened.image(3, "grid", np.zeros((4, 6, 1), np.uint8))
    opened.close()
    event = events(tmp_path / "tensorboard")[-1]
    (value,) = event.summary.value
    assert (event.step, value.tag, value.image.height, value.image.width) == (3, "grid", 4, 6)


def test_an_evaluation_hides_nothing_of_a_run_that_trains_on(tmp_path, visible):
    write(tmp_path, ["tensorboard"], [10, 20, 30])
    before = visible(tmp_path / "tensorboard")
    (writer,) = writers.installed(["tensorboard"])
    for step in (30, 20, 20):
        opened = writer(tmp_path, start=None, config={"seed": 1})
        opened.image(step, "eval/p", np.zeros((4, 6, 3), np.uint8))
        opened.close()
    assert visible(tmp_path / "tensorboard") == before
    assert visible(tmp_path / "tensorboard" / "eval") == {"eval/p": [30, 20, 20]}


def test_an_evaluation_writes_through_no_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tensorboard").symlink_to(tmp_path / "elsewhere")
    (writer,) = writers.installed(["tensorboard"])
    with pytest.raises(InputError, match="tensorboard or its folder eval is a link"):
        writer(tmp_path, start=None, config={})
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_images_of_a_run_are_the_augmented_ones_in_a_grid(tiny_config):
    tiny_config.augment.pad = 0
    experiment = load_experiment(tiny_config)
    raw = np.asarray(experiment.examples.images[:20])
    grid = train.augmented_images(experiment, count=20)
    assert grid.shape == (3 * 8, 8 * 8, 1)
    np.testing.assert_array_equal(grid[8:16, 16:24], raw[10])
    assert not grid[16:, 32:].any()  # the last row is not full
    tiny_config.augment.pad = 2
    moved = train.augmented_images(load_experiment(tiny_config), count=20)
    assert (moved != grid).any()


def test_a_run_shows_its_training_images_once(tiny_config, tmp_path, events, visible):
    tiny_config.duration = "1 epochs"
    train.train_and_evaluate(tiny_config, str(tmp_path))
    (tmp_path / "metrics.jsonl").unlink()  # the last evaluation is repeated
    train.train_and_evaluate(tiny_config, str(tmp_path))
    found = [v.tag for event in events(tmp_path / "tensorboard") for v in event.summary.value]
    assert found.count("training_images") == 1
    assert visible(tmp_path / "tensorboard")["training_images"] == [0]


def test_a_tensorboard_folder_that_cannot_be_written_is_a_write_error(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(WriteError, match="tensorboard.* cannot be written"):
        write(tmp_path, ["tensorboard"], [10])


def test_without_writers_there_is_the_log_of_record_alone(tmp_path):
    write(tmp_path, [], [10])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_wandb_gets_the_config_and_the_metrics(tmp_path, wandb):
    write(tmp_path, ["wandb"], [10, 20], config={"seed": 7})
    options, *logged = wandb.calls
    assert logged == [(10, {"train/loss": 1.0}), (20, {"train/loss": 1.0}), "finished"]
    assert (options["project"], options["name"]) == ("sdd_jax", tmp_path.name)
    assert options["config"] == {"seed": 7}
    assert options["dir"] == str(tmp_path)


def test_a_resumed_run_continues_its_wandb_run_and_repeats_no_step(tmp_path, wandb, monkeypatch):
    write(tmp_path, ["wandb"], [10, 20, 30])
    monkeypatch.setattr(wandb.Run, "step", 31)  # as wandb counts for a run that it continues
    write(tmp_path, ["wandb"], [30, 40], start=20)
    first, second = (call for call in wandb.calls if isinstance(call, dict))
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    assert [call[0] for call in wandb.calls if isinstance(call, tuple)] == [10, 20, 30, 40]


def test_another_workdir_has_another_wandb_run(tmp_path, wandb):
    for name in "ab":
        (tmp_path / name).mkdir()
        write(tmp_path / name, ["wandb"], [10])
    first, second = (call["id"] for call in wandb.calls if isinstance(call, dict))
    assert first != second


def test_an_evaluation_is_a_wandb_run_of_its_own(tmp_path, wandb):
    write(tmp_path, ["wandb"], [10])
    (writer,) = writers.installed(["wandb"])
    opened = writer(tmp_path, start=None, config={"seed": 7})
    opened.image(5, "eval/p", np.zeros((4, 6, 3), np.uint8))
    opened.close()
    trained, _, _, options, *logged = wandb.calls
    assert logged == [(5, {"eval/p": (4, 6, 3)}), "finished"]
    assert (options["name"], options["job_type"]) == (f"{tmp_path.name}/eval", "eval")
    assert "id" in trained
    assert "id" not in options


def test_wandb_that_refuses_to_start_is_one_line(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "refused")
    with pytest.raises(InputError, match="config.log_to: 'wandb' cannot be used: api_key not conf"):
        write(tmp_path, ["wandb"], [10])


def test_the_id_in_a_strangers_workdir_is_not_trusted(tmp_path, wandb):
    (tmp_path / "secret").write_text("abc")
    (tmp_path / "wandb_id").symlink_to(tmp_path / "secret")
    write(tmp_path, ["wandb"], [10])
    assert wandb.calls[0]["id"] != "abc"
    (tmp_path / "wandb_id").write_text("../../x")
    with pytest.raises(InputError, match="wandb_id: must be the id of a run, got '../../x'"):
        write(tmp_path, ["wandb"], [10])


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_writer_that_is_not_installed_is_one_line_before_anything_is_compiled(
    tiny_config, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(train, "open_workdir", lambda _: pytest.fail("started"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tiny_config.log_to = (name,)
    package = {"tensorboard": "tensorboardX"}.get(name, name)
    message = f"config.log_to: '{name}' needs the package {package}: pip install {package}"
    with pytest.raises(InputError, match=message):
        train.train_and_evaluate(tiny_config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_unknown_writer_is_refused_and_the_known_are_named():
    with pytest.raises(
        InputError, match="config.log_to: must be names of writers: tensorboard, wandb, got 'tb'"
    ):
        writers.installed(["tb"])


def test_another_log_to_resumes_a_run(tiny_config, tmp_path):
    tiny_config.duration = "1 epochs"
    tiny_config.log_to = ()
    train.train_and_evaluate(tiny_config, str(tmp_path))
    assert not (tmp_path / "tensorboard").exists()
    tiny_config.log_to = ("tensorboard",)
    assert train.train_and_evaluate(tiny_config, str(tmp_path))["eval/accuracy"] > 0


@pytest.mark.slow
def test_wandb_itself_takes_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(tmp_path, ["wandb"], [10, 20], config={"seed": 7, "imports": ()})
    write(tmp_path, ["wandb"], [20, 30], start=10)
    run_id = (tmp_path / "wandb_id").read_text()
    logs = list(tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    assert len(logs) == 2


def test_a_damaged_image_is_black_in_the_grid(tiny_config):
    class Damaged:
        """The images, of which the second cannot be decoded."""

        def __len__(self):
            return 4

        def __getitem__(self, index):
            if index == 1:
                raise UndecodableImageError("damaged")
            return images[index]

    tiny_config.augment.pad = 0
    experiment = load_experiment(tiny_config)
    images = experiment.examples.images
    examples = dataclasses.replace(experiment.examples, images=Damaged())
    grid = train.augmented_images(dataclasses.replace(experiment, examples=examples), columns=4)
    np.testing.assert_array_equal(grid[:, :8], images[0])
    assert not grid[:, 8:16].any()
    np.testing.assert_array_equal(grid[:, 24:], images[3])
