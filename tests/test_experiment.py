"""The parts of a run: labels of its data, and warnings about settings without effect."""

import logging

import numpy as np
import pytest

from sdd_jax import config as configs
from sdd_jax import data
from sdd_jax.errors import InputError
from sdd_jax.experiment import load_experiment, load_setup
from sdd_jax.objectives import objectives
from sdd_jax.runs import changed_data, read_config, read_metrics
from sdd_jax.train import train_and_evaluate
from sdd_jax.training.schedules import schedules


@pytest.fixture
def warnings_of(tiny_config, caplog):
    """``warnings_of(**sections)``: the messages that the tiny config with other values logs."""

    def warnings_of(*, duration="4 epochs", **sections):
        tiny_config.duration = duration
        for name, values in sections.items():
            tiny_config[name].update(values)
        with caplog.at_level(logging.WARNING, "sdd_jax"):
            load_experiment(tiny_config)
        return [record.getMessage() for record in caplog.records]

    return warnings_of


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.999999}, "config.sd_dropout.rate: keeps 1.6e-05 of 16 features on average;"),
        ({"rate": 0.95}, "config.sd_dropout.rate: keeps 0.8 of 16 features on average;"),
        (
            {"random_rate": (0.9, 0.999)},
            "config.sd_dropout.random_rate: keeps 0.808 of 16 features",
        ),
    ],
)
def test_a_rate_that_keeps_less_than_one_feature_is_a_warning(warnings_of, options, message):
    (warning,) = warnings_of(sd_dropout=options)
    assert warning.startswith(message)
    assert "\n" not in warning


@pytest.mark.parametrize(
    "options",
    [
        {"rate": 0.9375},  # one of 16
        {"random_rate": (0.0, 0.999)},
        {"rate": 0.999999, "weight": 0.0},
    ],
)
def test_a_rate_that_keeps_a_feature_or_has_no_weight_is_none(warnings_of, options):
    assert warnings_of(sd_dropout=options) == []


def test_the_width_of_features_says_nothing_about_masks_inside_the_network(
    tiny_config, warnings_of
):
    tiny_config.model = {"name": "resnet18", "width": 1}
    assert warnings_of(sd_dropout={"rate": 0.999, "position": 1}) == []


@pytest.mark.parametrize(
    ("duration", "warmup"), [("4 steps", "100 epochs"), ("4 steps", "4 steps")]
)
def test_a_warmup_as_long_as_the_run_is_a_warning(warnings_of, duration, warmup):
    assert warnings_of(duration=duration, schedule={"warmup": warmup}) == [
        f"config.schedule.warmup: {warmup} is not shorter than the run of 4 steps; "
        "the learning rate never reaches its peak"
    ]


def test_a_shorter_warmup_is_none(warnings_of):
    assert warnings_of(duration="4 steps", schedule={"warmup": "3 steps"}) == []


def test_the_warmup_of_another_schedule_may_be_anything(tiny_config, warnings_of):
    @schedules.register("test_with_a_warmup_of_its_own")
    def build(*, learning_rate, warmup: int = 100_000):
        return lambda count: learning_rate

    tiny_config.schedule = schedules.options("test_with_a_warmup_of_its_own")
    assert warnings_of() == []


@pytest.mark.parametrize("milestones", [(), ("1 epochs",)])
def test_a_step_schedule_without_milestones_is_a_warning(tiny_config, warnings_of, milestones):
    tiny_config.schedule = schedules.options("step", milestones=milestones)
    expected = "config.schedule.milestones: empty; the learning rate never decays"
    assert warnings_of() == ([] if milestones else [expected])


# --------------------------------------------------------------------------- labels


def labels_of(config, split="train"):
    return load_setup(configs.complete(config)).dataset.splits[split].labels


@pytest.fixture
def other_labels(tmp_path):
    """Saves labels of the digits, each increased by ``shift``; returns the path."""

    def save(shift, name="labels.npy"):
        own = data.load().splits["train"].labels
        np.save(tmp_path / name, (own + shift) % 10)
        return str(tmp_path / name)

    return save


def test_label_noise_follows_the_seed_of_the_run(tiny_config):
    own = labels_of(tiny_config)
    tiny_config.dataset.label_noise = 0.4
    first, again = labels_of(tiny_config), labels_of(tiny_config)
    tiny_config.seed = 1
    other = labels_of(tiny_config)
    np.testing.assert_array_equal(first, again)
    assert np.sum(first != own) == np.sum(other != own) == round(0.4 * len(own))
    assert np.any(first != other)


def test_a_run_trains_on_noisy_labels_and_is_evaluated_with_the_same(tiny_config, tmp_path):
    tiny_config.seed, tiny_config.batch_size, tiny_config.duration = 3, 64, "10 epochs"
    tiny_config.model.width, tiny_config.sd_dropout.weight = 64, 0.0
    tiny_config.dataset.update(label_noise=0.4, validation=0.1)
    noisy = load_experiment(tiny_config).examples.labels
    result = train_and_evaluate(tiny_config, str(tmp_path))
    assert result["eval/accuracy"] > 0.7
    assert read_metrics(tmp_path)[-1]["train/accuracy"] < 0.7  # by the noisy labels
    setup = load_setup(read_config(tmp_path))
    np.testing.assert_array_equal(setup.dataset.splits["train"].labels, noisy)
    assert not changed_data(tmp_path, setup.dataset)


def test_a_run_does_not_resume_on_other_labels_of_the_same_file(
    tiny_config, other_labels, tmp_path
):
    tiny_config.duration = "1 epochs"
    tiny_config.dataset.train_labels = other_labels(1)
    result = train_and_evaluate(tiny_config, str(tmp_path / "run"))
    assert result["eval/accuracy"] < 0.3  # the test set has its own labels
    other_labels(2)
    with pytest.raises(InputError, match=r"another data set .*data\.train\.labels: "):
        train_and_evaluate(tiny_config, str(tmp_path / "run"))
    other_labels(1)
    assert train_and_evaluate(tiny_config, str(tmp_path / "run")) == result


@pytest.mark.parametrize(
    ("teachers", "students", "message"),
    [
        ({"label_noise": 0.1}, {}, r"was trained with config.dataset.label_noise 0.1, .* has 0.0"),
        ({"label_noise": 0.1}, {"label_noise": 0.1, "seed": 1}, r".*\(data.train.labels: "),
        ({"train_labels": 1}, {"train_labels": 2}, r".*\(data.train.labels: "),
    ],
)
def test_a_teacher_of_other_labels_is_refused(
    tiny_config, other_labels, tmp_path, teachers, students, message
):
    def use(config, *, seed=0, train_labels=0, label_noise=0.0):
        config.seed = seed
        config.dataset.label_noise = label_noise
        config.dataset.train_labels = other_labels(train_labels) if train_labels else ""
        return config

    tiny_config.duration, tiny_config.sd_dropout.weight = "1 epochs", 0.0
    tiny_config.model.dropout_rate = 0.1
    train_and_evaluate(use(tiny_config, **teachers), str(tmp_path / "teacher"))
    tiny_config.objective = objectives.options("distill")
    tiny_config.teacher = str(tmp_path / "teacher")
    load_experiment(use(tiny_config, **teachers))
    with pytest.raises(InputError, match=f"^config.teacher: .*{message}"):
        load_experiment(use(tiny_config, **students))


def test_an_unusable_file_of_labels_is_an_error_of_its_field(tiny_config):
    tiny_config.dataset.train_labels = "/nowhere.npy"
    with pytest.raises(InputError, match="^config.dataset.train_labels: there is no file"):
        load_experiment(tiny_config)
