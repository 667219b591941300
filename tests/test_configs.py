"""Recipe cards: each loads and says what its recipe says."""

import importlib.util

import pytest
from ml_collections import ConfigDict

from sdd_jax import config as base
from sdd_jax import models
from sdd_jax.errors import InputError


def load(root, card):
    path, _, argument = card.partition(":")
    spec = importlib.util.spec_from_file_location("card", root / "configs" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*filter(None, [argument]))


def test_every_card_is_complete_and_says_where_it_comes_from(root):
    cards = sorted(root.glob("configs/*.py"))
    assert len(cards) >= 3
    for card in cards:
        config = base.complete(load(root, card.name))
        models.build(config.model, num_classes=10)
        text = card.read_text()
        assert "Paper " in text, card
        assert "Command " in text, card


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_papers_cifar_recipe(root, dataset):
    config = load(root, f"{dataset}_resnet18.py")
    assert config.dataset.name == dataset
    assert (config.augment.pad, config.augment.flip) == (4, True)
    assert config.optimizer.to_dict() == {
        "learning_rate": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4
    }  # fmt: skip
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
def test_the_papers_recipes_at_224_pixels(root, card, dataset, batch_size, milestones, duration):
    config = load(root, card)
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
    assert load(root, f"{card}:ce").sd_dropout.weight == 0
    small = load(root, f"{card}:ce,runlocal")
    assert (small.model.width, small.dataset.image_size) == (16, 64)


def test_arguments_of_a_card_choose_the_objective_and_the_scale(root):
    config = load(root, "cifar100_resnet18.py:ce,runlocal")
    assert config.sd_dropout.weight == 0
    assert config.model.width == 16
    with pytest.raises(InputError, match="must be of sd_dropout, ce, runlocal, got 'nope'"):
        load(root, "cifar100_resnet18.py:nope")


def test_another_entry_replaces_the_whole_section():
    config = base.default()
    config.model = {"name": "resnet18", "width": 16}
    assert base.complete(config).model.stem == "cifar"
    config.model = {"name": "resnet18", "depth": 2}
    with pytest.raises(InputError, match=r"config.model.depth: 'resnet18' has no such option"):
        base.complete(config)
    config.model = {"width": 16}
    with pytest.raises(InputError, match="config.model.name: must be one of .*got None"):
        base.complete(config)


def test_the_record_of_an_earlier_version_gets_the_defaults_of_what_it_lacks():
    record = base.default().to_dict()
    del record["inputs"], record["eval"]["mc_samples"]
    record["dataset"]["mean"] = [0.5]  # as JSON gives it back
    config = base.complete(ConfigDict(record))
    assert config.inputs == "train"
    assert config.eval.mc_samples == 100
    assert config.dataset.mean == (0.5,)
    assert base.differences(config, base.complete(ConfigDict(record))) == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (None, "config.nope: there is no such field; config has augment, batch_size"),
        ("dataset", "config.dataset.nope: there is no such field; config.dataset has cache_dir"),
    ],
)
def test_a_field_that_is_none_is_refused(section, message):
    record = base.default().to_dict()
    (record[section] if section else record)["nope"] = 1
    with pytest.raises(InputError, match=message):
        base.complete(ConfigDict(record))
