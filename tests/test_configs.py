"""Recipe cards and the validation of configs."""

import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks.measure import load_card
from sdd_jax import config as configs
from sdd_jax import models, recipes
from sdd_jax.errors import InputError


def test_every_card_is_complete_and_cites_its_paper_and_command(root):
    cards = sorted(root.glob("configs/*.py"))
    assert len(cards) >= 3
    for card in cards:
        config = configs.complete(load_card(f"configs/{card.name}"))
        models.build(config.model, num_classes=10)
        text = card.read_text()
        assert "Paper " in text, card
        assert "Command " in text, card


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_papers_cifar_recipe(dataset):
    config = load_card(f"configs/{dataset}_resnet18.py")
    assert config.dataset.name == dataset
    assert (config.augment.pad, config.augment.flip) == (4, True)
    sgd = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": False}
    sgd |= {"weight_decay": 1e-4, "decay": "coupled", "weight_decay_mask": "all"}
    assert config.optimizer.to_dict() == sgd | {"clip_norm": 0.0, "ema": 0.0}
    assert config.schedule.milestones == ("100 epochs", "150 epochs")
    assert (config.schedule.factor, config.schedule.warmup) == (0.1, "0 steps")
    assert (config.batch_size, config.duration) == (128, "200 epochs")
    assert (config.sd_dropout.weight, config.sd_dropout.rate) == (1.0, 0.5)
    assert (config.sd_dropout.temperature, config.sd_dropout.gradient) == (3.0, "both")
    assert (config.model.name, config.model.stem, config.model.width) == ("resnet18", "cifar", 64)


@pytest.mark.parametrize(
    ("card", "dataset", "batch_size", "milestones", "duration"),
    [
        ("cub200_resnet18.py", "caltech_birds2011", 32, (100, 150), "200 epochs"),
        ("stanford_dogs_resnet18.py", "stanford_dogs", 32, (100, 150), "200 epochs"),
        ("imagenet_resnet152.py", "imagenet2012", 256, (30, 60), "90 epochs"),
    ],
)
def test_the_papers_recipes_at_224_pixels(card, dataset, batch_size, milestones, duration):
    config = load_card(f"configs/{card}")
    assert (config.dataset.name, config.dataset.image_size) == (dataset, 224)
    assert config.dataset.mean == (0.485, 0.456, 0.406)
    assert config.dataset.std == (0.229, 0.224, 0.225)
    assert config.engine.name == "streamed"
    assert (config.augment.pad, config.augment.flip) == (0, True)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (0.1, 1e-4)
    assert (config.schedule.factor, config.schedule.warmup) == (0.1, "0 steps")
    assert config.schedule.milestones == tuple(f"{epoch} epochs" for epoch in milestones)
    assert (config.batch_size, config.duration) == (batch_size, duration)
    assert (config.model.stem, config.model.width) == ("imagenet", 64)
    assert config.model.name == card.removesuffix(".py").rpartition("_")[2]
    assert config.sd_dropout.weight == 1
    assert load_card(f"configs/{card}:ce").sd_dropout.weight == 0
    small = load_card(f"configs/{card}:ce,runlocal")
    assert (small.model.width, small.dataset.image_size) == (16, 64)


def test_arguments_of_a_card_choose_the_objective_and_the_scale():
    config = load_card("configs/cifar100_resnet18.py:ce,runlocal")
    assert config.sd_dropout.weight == 0
    assert config.model.width == 16
    with pytest.raises(InputError, match="unknown argument 'nope'; expected sd_dropout or ce or"):
        load_card("configs/cifar100_resnet18.py:nope")
    for words in ("byot,dml", "ce,byot", "sd_dropout,ce"):
        with pytest.raises(InputError, match=f"must be one of .*ce.*, got '{words}'"):
            load_card(f"configs/cifar100_resnet18.py:{words}")


@pytest.mark.parametrize("card", ["cifar100_resnet18", "cub200_resnet18"])
@pytest.mark.parametrize("method", recipes.METHODS)
def test_the_papers_cards_accept_every_method_as_an_argument(card, method):
    alone, combined, plain = (
        load_card(f"configs/{card}.py:{words}") for words in (method, f"{method},sd_dropout", "ce")
    )
    assert alone.objective.name == combined.objective.name == method
    assert (alone.sd_dropout.weight, combined.sd_dropout.weight) == (0.0, 0.1)
    assert plain.objective.name == "cross_entropy"
    alone.objective = plain.objective
    assert alone == plain


def test_another_entry_replaces_all_options_of_the_section():
    config = configs.default()
    config.model = {"name": "resnet18", "width": 16}
    assert configs.complete(config).model.stem == "cifar"
    config.model = {"name": "resnet18", "depth": 2}
    with pytest.raises(InputError, match=r"config.model.depth: 'resnet18' has no such option"):
        configs.complete(config)
    config.model = {"width": 16}
    with pytest.raises(InputError, match="config.model.name: must be one of .*got None"):
        configs.complete(config)


def test_missing_fields_of_an_earlier_version_get_their_defaults():
    record = configs.default().to_dict()
    del record["inputs"], record["eval"]["mc_samples"]
    record["dataset"]["mean"] = [0.5]  # JSON turns tuples into lists
    config = configs.complete(ConfigDict(record))
    assert config.inputs == "train"
    assert config.eval.mc_samples == 100
    assert config.dataset.mean == (0.5,)
    assert configs.differences(config, configs.complete(ConfigDict(record))) == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (None, "config.nope: unknown field; expected "),
        ("dataset", "config.dataset.nope: unknown field; expected cache_dir, data_dir, "),
        ("eval", "config.eval.nope: unknown field; expected batch_size, "),
    ],
)
def test_an_unknown_field_is_refused(section, message):
    record = configs.default().to_dict()
    (record[section] if section else record)["nope"] = 1
    with pytest.raises(InputError, match=message):
        configs.complete(ConfigDict(record))


def record_with(field, value):
    record = configs.default().to_dict()
    *sections, key = field.split(".")
    parent = record
    for section in sections:
        parent = parent[section]
    parent[key] = value
    return ConfigDict(record)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", "3", "config.seed: must be a whole number of 32 bits, got '3'"),
        ("seed", None, "config.seed: must be a whole number of 32 bits, got None"),
        ("seed", True, "config.seed: must be a whole number of 32 bits, got True"),
        ("seed", 2.0, "config.seed: must be a whole number of 32 bits, got 2.0"),
        ("seed", 2**32, "config.seed: must be a whole number of 32 bits, got 4294967296"),
        ("dataset.validation", "half", "config.dataset.validation: must be a finite number"),
        ("optimizer.learning_rate", math.nan, "learning_rate: must be a finite number .*got nan"),
        ("optimizer.weight_decay", math.inf, "weight_decay: must be a finite number .*got inf"),
        ("sd_dropout.temperature", 1e300, "temperature: must be a finite number of 32 bits"),
        ("sd_dropout.exclusive", 1, "config.sd_dropout.exclusive: must be True or False, got 1"),
        ("dataset.num_classes", 2**31, r"config.dataset.num_classes: must be in \[0, 10000000\]"),
        ("model.depth", 2**31 - 1, "config.model.depth: must be at most 1000, got 2147483647"),
        ("model.width", 2**32 - 1, "config.model.width: must be at most 65536, got 4294967295"),
        ("duration", 3, "config.duration: must be a string, got 3"),
        ("imports", "mine.py", "config.imports: must be a list of strings, got 'mine.py'"),
        ("dataset.mean", (0.5, math.nan), "config.dataset.mean: must be a list of finite numbers"),
        ("sd_dropout.random_rate", ("a", "b"), "random_rate: must be a list of finite numbers"),
        ("eval.epsilons", [1.0, None], "config.eval.epsilons: must be a list of finite numbers"),
        ("eval.mc_samples", "many", "config.eval.mc_samples: must be a whole number"),
        ("eval", 3, "config.eval: must be a section of batch_size, .*got 3"),
        ("dataset", "digits", "config.dataset: must be a section of cache_dir, .*got 'digits'"),
        ("seed", {"a": 1}, "config.seed: must be a whole number"),
        ("model", "mlp", "config.model: must be a section of .*name.*got 'mlp'"),
        ("model.width", 8.5, "config.model.width: must be a whole number"),
        ("model.name", ["mlp"], r"config.model.name: must be one of .*got \['mlp'\]"),
        ("model.self", 1, "config.model.self: 'mlp' has no such option"),
        ("objective", {1: 2}, "config.objective.name: must be one of .*got None"),
        ("schedule", {"name": "step", "milestones": "3 epochs"}, "must be a list of strings"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused(field, value, message):
    with pytest.raises(InputError, match=message):
        configs.complete(record_with(field, value))


def test_values_are_converted_to_floats_tuples_and_python_types():
    assert (
        configs.complete(record_with("optimizer.learning_rate", 1)).optimizer.learning_rate == 1.0
    )
    assert configs.complete(record_with("dataset.mean", [1, 0.5])).dataset.mean == (1.0, 0.5)
    assert type(configs.complete(record_with("seed", np.int64(7))).seed) is int
    assert (
        type(
            configs.complete(record_with("dataset.validation", np.float32(0.5))).dataset.validation
        )
        is float
    )
    milestones = {"name": "step", "milestones": ["1 epochs"]}
    assert configs.complete(record_with("schedule", milestones)).schedule.milestones == (
        "1 epochs",
    )


def test_a_record_of_version_0_1_has_its_optimizer_and_two_passes_of_ddgsd():
    record = configs.default().to_dict()
    record["optimizer"] = {
        "learning_rate": 0.2,
        "momentum": 0.5,
        "nesterov": True,
        "weight_decay": 0.1,
    }
    record["objective"] = {"name": "ddgsd", "weight": 1.0}
    config = configs.complete_record(ConfigDict(record))
    optimizer = config.optimizer
    assert optimizer.to_dict() | record["optimizer"] == optimizer.to_dict()
    assert (optimizer.name, optimizer.ema) == ("sgd", 0.0)
    assert config.objective.joint_batch is False  # as version 0.1 trained
    assert configs.complete(config) == config


@pytest.mark.parametrize("section", ["", "dataset", "model", "optimizer", "sd_dropout", "eval"])
def test_a_reserved_python_name_is_an_unknown_field(section):
    record = configs.default().to_dict()
    (record[section] if section else record)["__class__"] = 1

    class Record:  # JSON allows this key, ConfigDict does not
        to_dict = staticmethod(lambda: record)

    with pytest.raises(InputError, match="__class__"):
        configs.complete(Record)
