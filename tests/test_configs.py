"""Recipe cards and the validation of configs."""

import ast
import itertools
import math
import warnings

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from benchmarks.measure import load_card
from sdd_jax import cli, models, recipes
from sdd_jax import config as configs
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
        ("eval", "config.eval.nope: unknown field; expected apgd_steps, "),
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
        ("eval", 3, "config.eval: must be a section of apgd_steps, .*got 3"),
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


# ------------------------------------------------------------ a section given whole, with its fields


@pytest.fixture
def parse(root):
    """``parse(*arguments, card=)`` returns the complete config of a command line of ``train.py``."""

    def parse(*arguments, card="digits"):
        argv = ["train.py", f"--config={root}/configs/{card}.py", *arguments]
        argv = cli.merge_sections(argv)
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # ml_collections loads the card
            assert values(argv) == ["train.py"]
        return configs.complete(values["config"].value)

    return parse


@pytest.mark.parametrize(
    ("section", "given", "field", "value", "expected"),
    [
        ("model", "{'name': 'resnet50', 'width': 32}", "dtype", "bfloat16", "bfloat16"),
        ("model", "{'name': 'resnet50', 'width': 32}", "width", "16", 16),
        ("objective", "{'name': 'label_smoothing'}", "smoothing", "0.3", 0.3),
        ("optimizer", "{'name': 'adamw'}", "b1", "5e-1", 0.5),
        ("optimizer", "{'name': 'sgd'}", "nesterov", "true", True),
        ("schedule", "{'name': 'step'}", "milestones", "('1 epochs',)", ("1 epochs",)),
        ("engine", "{'name': 'streamed'}", "workers", "2", 2),
        ("dataset", "{'data_dir': 'there'}", "validation", "0.25", 0.25),
    ],
)
def test_a_field_refines_a_section_that_is_given_whole_in_any_order_and_form(
    parse, section, given, field, value, expected
):
    whole, flag = f"--config.{section}={given}", f"--config.{section}.{field}"
    forms = [[whole, f"{flag}={value}"], [f"{flag}={value}", whole], [whole, flag, value]]
    configs_ = [parse(*form, card="cifar100_resnet18") for form in forms]
    assert configs_[0] == configs_[1] == configs_[2]
    assert configs_[0][section].to_dict() | ast.literal_eval(given) | {field: expected} == (
        configs_[0][section].to_dict()
    )


def test_flags_without_a_value_refine_a_section_that_is_given_whole(parse):
    whole = "--config.optimizer={'name': 'sgd', 'nesterov': True}"
    assert parse("--config.optimizer.nesterov", whole.replace("True", "False")).optimizer.nesterov
    assert not parse(whole, "--noconfig.optimizer.nesterov").optimizer.nesterov


def test_fields_refine_an_entry_of_an_imported_file(parse, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from sdd_jax.models import models\n"
        "@models.register('test_of_an_imported_file')\n"
        "def build(*, num_classes, leaves: int = 3): ...\n"
    )
    arguments = ["--config.model.leaves=5", "--config.model={'name': 'test_of_an_imported_file'}"]
    config = parse(*arguments, f"--config.imports={tmp_path / 'mine.py'}")
    expected = {"name": "test_of_an_imported_file", "leaves": 5, "init": "", "spread": "none"}
    assert config.model.to_dict() == expected


def test_the_last_of_two_whole_sections_and_of_two_values_holds(parse):
    first, second = (
        "--config.model={'name': 'mlp', 'width': 7}",
        "--config.model={'name': 'lenet'}",
    )
    assert parse(first, second).model.name == "lenet"
    config = parse(second, "--config.model.depth=1", first, "--config.model.depth=3")
    assert (
        config.model.to_dict() | {"name": "mlp", "width": 7, "depth": 3} == config.model.to_dict()
    )


def test_arguments_of_other_sections_are_left_alone(parse):
    arguments = ["--config.model={'name': 'mlp'}", "--config.seed", "3", "--config.augment.flip"]
    arguments += ["--workdir", "x", "--config.optimizer.momentum=0.5"]
    others = ["--config.seed=3", *arguments[3:]]
    assert cli.merge_sections(arguments) == [arguments[0], *others]
    merged = cli.merge_sections([*arguments, "--config.model.depth=1"])
    assert merged == ["--config.model={'name': 'mlp', 'depth': 1}", *others]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model={'name': 'mlp'}", "model.nope=1"], "config.model.nope: 'mlp' has no such option"),
        (["model={'name': 'mlp'}", "model.width=wide"], "config.model.width: .*got 'wide'"),
        (["model={'name': 'nope'}", "model.width=8"], "config.model.name: must be one of .*'nope'"),
        (
            ["model={'width': 32}", "model.depth=1"],
            "config.model.name: .*--config.model.OPTION=VALUE",
        ),
        (["model={'width': 32}"], "config.model.name: .*--config.model.OPTION=VALUE"),
        (["model=resnet50", "model.width=8"], "config.model: must be a dict .*got 'resnet50'"),
        (["model={'name': ", "model.width=8"], "config.model: must be a dict .*got .{'name': "),
        (["model.name=resnet50"], "config.model.depth: 'resnet50' has no such option"),
    ],
)
def test_a_section_that_cannot_be_used_is_refused(parse, arguments, message):
    for order in itertools.permutations(arguments):
        with pytest.raises(InputError, match=message):
            parse(*(f"--config.{argument}" for argument in order))
