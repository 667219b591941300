"""Configs: the fields that every recipe card shares, and what a card's argument may say."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from sdd_jax import extensions
from sdd_jax.data.engines import engines
from sdd_jax.errors import InputError, check
from sdd_jax.evaluation.checks import default_options
from sdd_jax.models import models
from sdd_jax.objectives import objectives
from sdd_jax.training.schedules import schedules
from sdd_jax.values import kind_of, plain

# The sections that choose an entry of a registry.
NAMED = {"model": models, "objective": objectives, "schedule": schedules, "engine": engines}

# What is in the tuples that are empty by default; the type of every other field is that of its default.
ELEMENTS = {
    "config.imports": str,
    "config.dataset.mean": float,
    "config.dataset.std": float,
    "config.sd_dropout.random_rate": float,
}

# May differ between the runs of one workdir: they do not change what is trained. A section stands for
# all its fields.
OPERATIONAL = (
    "dataset.data_dir",
    "dataset.cache_dir",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "engine",
    "steps_per_call",
    "eval",
)


def default() -> ConfigDict:
    """Every field with its default. A recipe card changes what its recipe says and returns it.

    ``model``, ``objective``, ``schedule`` and ``engine`` each have a name and that entry's own options;
    assign ``models.options("resnet18", width=16)`` and its like to choose another entry.
    """
    return ConfigDict(
        {
            "seed": 0,
            "imports": (),  # files of your own that register networks, objectives, ...
            "dataset": {
                "name": "digits",  # "digits", "npz:PATH" or a tfds name
                "data_dir": "",  # empty: $TFDS_DATA_DIR or ~/tensorflow_datasets
                "cache_dir": "",  # of decoded tfds images; empty: ~/.cache/sdd_jax
                "num_classes": 0,  # 0: as the data says
                "validation": 0.0,  # share cut from train
                "examples_per_class": 0,  # of train, after the cut; 0: all
                "image_size": 0,  # pixels of a crop of images of any size; 0: as stored, in memory
                "mean": (),  # per channel of pixels in [0, 1]; empty: from train
                "std": (),
            },
            "inputs": "train",  # or "perturbed", "unlabelled:NAME"
            "augment": {"pad": 0, "flip": False},  # pixels of padding before a random crop
            "model": models.options("mlp"),
            "objective": objectives.options("cross_entropy"),
            "teacher": "",  # the workdir of a run, for objectives that have a teacher
            "sd_dropout": {
                "weight": 1.0,  # lambda; 0 leaves the term out
                "rate": 0.5,  # beta
                "random_rate": (),  # (low, high): drawn for each example, in place of rate
                "temperature": 3.0,  # T; the term is scaled by T^2
                "num_samples": 2,  # masks; the term is the mean over their pairs
                "gradient": "both",  # or "forward" (the authors' detach), "reverse"
                "exclusive": False,  # disjoint masks
                "position": 0,  # of the masks: 0 the features, s what the network's stage s gave
                "ramp": 0.0,  # share of the run over which the weight grows from 0
                "gradient_cosine": False,  # log it: forward against reverse gradient
            },
            "optimizer": {
                "learning_rate": 0.1,
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 1e-4,  # on all parameters
            },
            "schedule": schedules.options("cosine"),
            "batch_size": 128,  # of all devices together
            "duration": "10 epochs",  # this and what follows: "N steps" or "N epochs"
            "log_every": "50 steps",
            "eval_every": "1 epochs",
            "checkpoint_every": "1 epochs",
            "keep_checkpoints": 3,  # the latest; with a validation split also the best
            "engine": engines.options("resident"),
            "steps_per_call": 0,  # steps in one dispatch; 0: as the engine says
            "eval": {"batch_size": 1000} | default_options(),  # and the options of the checks
        }
    )


def complete(config: ConfigDict) -> ConfigDict:
    """A copy with every field, and every option of each named entry: what the run is recorded as.

    Fields that are not given, as in the record of a run of an earlier version, have their defaults.

    Raises:
      InputError: a field that is none, an unknown name, an option that the entry does not have, a value
        of another type, or a file of the user's that cannot be imported.
    """
    full = default()
    _update(full, config.to_dict(), "config")
    full.imports = extensions.load(full.imports)
    for section, registry in NAMED.items():
        given = full[section].to_dict()
        full[section] = registry.options(given.pop("name", None), **given)
    return full


def arguments(argument: str, allowed: Sequence[str]) -> set[str]:
    """The words of ``--config=CARD.py:WORD,WORD``.

    Raises:
      InputError: a word that is not allowed.
    """
    words = {word for word in argument.split(",") if word}
    unknown = sorted(words - set(allowed))
    if unknown:
        raise InputError(
            f"--config=CARD.py:ARGUMENT: must be of {', '.join(allowed)}, got {unknown[0]!r}"
        )
    return words


def differences(ours: ConfigDict, theirs: ConfigDict) -> list[str]:
    """The fields, operational ones aside, in which two configs differ: ``"FIELD: A, B"``."""
    a, b = _flat(ours), _flat(theirs)
    return [
        f"config.{field}: {a.get(field)!r} now, {b.get(field)!r} there"
        for field in sorted(a.keys() | b.keys())
        if not _operational(field) and a.get(field) != b.get(field)
    ]


def _operational(field: str) -> bool:
    return field in OPERATIONAL or field.partition(".")[0] in OPERATIONAL


def _update(full: ConfigDict, given: dict, path: str) -> None:
    for key, value in given.items():
        field = f"{path}.{key}"
        if key not in full:
            raise InputError(f"{field}: there is no such field; {path} has {', '.join(full)}")
        default = full[key]
        if not isinstance(default, ConfigDict):
            kind = tuple[ELEMENTS[field], ...] if field in ELEMENTS else kind_of(default)
            full[key] = plain(field, value, kind)
            continue
        check(isinstance(value, dict), field, value, f"a section of {', '.join(default)}")
        if field.removeprefix("config.") in NAMED:
            full[key] = {str(k): v for k, v in value.items()}  # what these may be, the entry says
        else:
            _update(default, value, field)


def _flat(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
