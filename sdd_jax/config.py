"""Configs: all fields of a run, with their defaults, types and ranges.

The fields at the top are those of :class:`Run`; every section is the signature of what it configures.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Interval
from ml_collections import ConfigDict

from sdd_jax import data, options, plugins
from sdd_jax.data.engines import engines
from sdd_jax.devices import Parallel
from sdd_jax.errors import InputError, require, within
from sdd_jax.evaluation.checks import checks, default_options
from sdd_jax.models import models
from sdd_jax.objectives import objectives, with_sd_dropout
from sdd_jax.options import Count, Size
from sdd_jax.paths import Path, given_path, is_file
from sdd_jax.runs import (
    UNSTATED,
    differing,
    imports,
    read_record,
    replace_duration,
    write_config,
)
from sdd_jax.runs.workdir import CONFIG_FILE
from sdd_jax.training.optimizers import optimizers
from sdd_jax.training.schedules import schedules


@dataclasses.dataclass(frozen=True)
class Run:
    """The fields at the top of a config. Durations are "N steps" or "N epochs".

    Attributes:
      seed: root of all randomness.
      imports: your own files or modules, which register networks, objectives, checks. The run keeps a
        copy of each file.
      inputs: training images: "train", "perturbed" (each pixel black with probability 0.2) or
        "unlabelled:NAME", another data set.
      teacher: workdir of the teacher's run, for objectives that have a teacher; several, separated by
        commas, are an ensemble.
      batch_size: global batch size, over all devices.
      duration: length of training.
      log_every: interval between log lines.
      log_to: where the metrics go beside ``metrics.jsonl``, see :mod:`sdd_jax.runs.writers`.
      eval_every: interval between evaluations on the test and validation splits.
      checkpoint_every: interval between checkpoints.
      keep_checkpoints: number of latest checkpoints; with a validation split, the best is also kept.
      steps_per_call: training steps per dispatch; 0: the engine's default.
      accumulate: parts of a device's share of the batch that are computed one after another, which saves
        memory; batch norm takes the statistics of one part.
      parallel: how a step is mapped over the devices: "pmap", or "shard_map" under jit.
    """

    seed: Count = 0
    imports: tuple[str, ...] = ()
    inputs: str = "train"
    teacher: str = ""
    batch_size: Size = 128
    duration: str = "10 epochs"
    log_every: str = "50 steps"
    log_to: tuple[str, ...] = ("tensorboard",)
    eval_every: str = "1 epochs"
    checkpoint_every: str = "1 epochs"
    keep_checkpoints: Size = 3
    steps_per_call: Annotated[int, Interval(ge=0, le=100_000)] = 0
    accumulate: Size = 1
    parallel: Parallel = "pmap"


def _augmentation(*, pad: Count = 0, flip: bool = False) -> None:
    """Options of the section ``augment``, see :func:`sdd_jax.data.images.augment`."""


def _evaluation(*, batch_size: Size = 1000) -> None:
    """The field of the section ``eval`` that belongs to no check."""


# Sections whose fields are the options of one function.
FIXED: dict[str, Callable] = {
    "dataset": data.load,
    "augment": _augmentation,
    "sd_dropout": with_sd_dropout,
}

# Sections that select an entry of a registry: its name and its own options.
SELECTED = {
    "model": models,
    "objective": objectives,
    "optimizer": optimizers,
    "schedule": schedules,
    "engine": engines,
}
DEFAULT_ENTRIES = {
    "model": "mlp",
    "objective": "cross_entropy",
    "optimizer": "sgd",
    "schedule": "cosine",
    "engine": "resident",
}

# Fields that may differ between the commands of one workdir, since they do not change what is trained. A
# section stands for all its fields.
OPERATIONAL = (
    "dataset.data_dir",
    "dataset.cache_dir",
    "log_every",
    "log_to",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "engine",
    "steps_per_call",
    "parallel",
    "eval",
)


def default() -> ConfigDict:
    """Every field with its default. A recipe card changes the fields of its recipe and returns it.

    To select another entry of a section, assign its options, for example
    ``config.model = models.options("resnet18", width=16)``.
    """
    sections = {name: options.defaults(function) for name, function in FIXED.items()}
    selected = {name: SELECTED[name].options(entry) for name, entry in DEFAULT_ENTRIES.items()}
    evaluation = options.defaults(_evaluation) | default_options()
    return ConfigDict(options.defaults(Run) | sections | selected | {"eval": evaluation})


def complete(config: ConfigDict) -> ConfigDict:
    """A validated copy with every field and every option of each selected entry, as a run records it.

    Missing fields, as in the record of an earlier version, have their defaults.

    Raises:
      InputError: an unknown field, entry or option, a value of another type or outside its range, or a
        file of ``config.imports`` that cannot be imported.
    """
    values = {str(key): value for key, value in config.to_dict().items()}
    full = default()
    for key, value in values.items():
        if key not in full:
            raise InputError(f"unknown field; expected {', '.join(full)}", field=f"config.{key}")
        if isinstance(full[key], ConfigDict):
            fields = ", ".join(full[key])
            require(isinstance(value, dict), f"config.{key}", value, f"a section of {fields}")
    with within("config"):
        full.update(options.validate(Run, {k: values[k] for k in _names(Run) if k in values}))
        full.imports = plugins.load(full.imports)
    for name, function in FIXED.items():
        with within(f"config.{name}"):
            full[name].update(options.validate(function, values.get(name, {})))
    for name, registry in SELECTED.items():
        if name in values:
            selected = {str(key): value for key, value in values[name].items()}
            full[name] = ConfigDict(registry.options(selected.pop("name", None), **selected))
    with within("config.eval"):
        full.eval.update(_validated_evaluation(values.get("eval", {}), list(full.eval)))
    return full


def complete_record(config: ConfigDict) -> ConfigDict:
    """Completes the recorded config of a run; options that version 0.1 did not have get its behaviour.

    Raises:
      InputError: as :func:`complete`.
    """
    values = config.to_dict()
    sections = [values.get(name) for name in ("optimizer", "objective")]
    if all(isinstance(section, dict) for section in sections):
        values["optimizer"] = {"name": "sgd"} | values["optimizer"]
        if values["objective"].get("name") == "ddgsd":
            values["objective"] = {"joint_batch": False} | values["objective"]
    return complete(ConfigDict(values))


def _names(function: Callable) -> list[str]:
    return list(options.defaults(function))


def _validated_evaluation(values: dict[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """Checks the section ``eval``, whose fields are the options of all checks."""
    for key in values:
        if key not in known:
            raise InputError(f"unknown field; expected {', '.join(known)}", field=str(key))
    validated = {}
    for function in (_evaluation, *map(checks.get, checks.names())):
        own = {key: values[key] for key in _names(function) if key in values}
        validated |= options.validate(function, own)
    return validated


def record(
    workdir: Path,
    config: ConfigDict,
    facts: Mapping[str, Mapping[str, Any]],
    *,
    check_longer: Callable[[str], None] | None = None,
) -> None:
    """Records a new run, or checks that the run in the workdir is the same one, perhaps to be longer.

    One host of a run calls it.

    Args:
      workdir: folder of the run.
      config: the complete config.
      facts: ``{section: values}``, what the run depends on beside its config, such as its data. A
        section that the record lacks (of an earlier version) is not compared.
      check_longer: takes the recorded duration where it is another; raises an InputError if the run
        cannot go on to that of ``config``, which is then recorded. None: never.

    Raises:
      InputError: the workdir holds a run with another config or other facts, or checkpoints without a
        record.
    """
    path = workdir / CONFIG_FILE
    if not path.exists() and not path.is_symlink():
        checkpoints = workdir / "checkpoints"
        if checkpoints.is_dir() and any(checkpoints.iterdir()):
            raise InputError(
                f"{workdir} holds checkpoints, but no {CONFIG_FILE} that says of which run; "
                "put it back, or choose another workdir",
                field="--workdir",
            )
        write_config(workdir, config, facts)
        return
    recorded = read_record(workdir)
    theirs = recorded["config"]
    # The imports first: completing the recorded config executes them.
    _check_imports(workdir, config, theirs)
    theirs = complete_record(theirs)
    former = theirs.duration
    if check_longer is not None:
        theirs.duration = config.duration
    _refuse(workdir, "config", differences(config, theirs))
    known = {section: recorded.get(section, facts[section]) for section in facts}
    if isinstance(known.get("network"), dict):
        known["network"] = UNSTATED | known["network"]
    _refuse(workdir, "data set or setting of JAX", differing(facts, known))
    if check_longer is not None and former != config.duration:
        check_longer(former)
        replace_duration(workdir, config.duration)


def _check_imports(workdir: Path, config: ConfigDict, theirs: ConfigDict) -> None:
    """Requires the same modules and files of the same content; ``theirs`` then names ours."""
    ours, kept = config.imports, imports.names(theirs)
    pairs = list(zip(ours, kept, strict=False))
    if len(ours) == len(kept) and all(imports.same(*pair) for pair in pairs):
        if kept:
            theirs.imports = ours
        return
    for mine, copy in pairs:
        namesakes = os.path.basename(mine) == os.path.basename(copy)
        if (
            namesakes
            and is_file(given_path(copy, field="--workdir"))
            and not imports.same(mine, copy)
        ):
            raise InputError(
                f"{mine} has changed since the run in {workdir} began; choose another workdir, or put "
                f"the file back from {copy}",
                field="config.imports",
            )
    different = differing({"config": {"imports": ours}}, {"config": {"imports": kept}})
    _refuse(workdir, "config", different)


def with_kept_imports(config: ConfigDict, workdir: Path, *, trusted: bool) -> ConfigDict:
    """The config with the run's copies in place of imported files that are no longer there.

    Args:
      config: the config of a command.
      workdir: folder of the run, perhaps a new one.
      trusted: whether the files of the run may be executed.

    Raises:
      InputError: there is such a copy, and it is not trusted; or the record cannot be read.
    """
    ours = imports.names(config)
    if not ours or not (workdir / CONFIG_FILE).exists():
        return config
    copies = imports.gone(ours, imports.names(read_record(workdir)["config"]))
    if not copies:
        return config
    if not trusted:
        raise InputError(
            f"there is no file {', '.join(copies)}; {workdir} has {imports.described(copies.values())}, "
            "which --trust_imports executes in its place",
            field="config.imports",
        )
    config = config.copy_and_resolve_references()
    config.imports = tuple(copies.get(str(name), name) for name in config.imports)
    return config


def _refuse(workdir: Path, what: str, different: Sequence[str]) -> None:
    if different:
        raise InputError(
            f"{workdir} holds a run with another {what} ({'; '.join(different)}); "
            "choose another workdir, or remove it to start over",
            field="--workdir",
        )


def differences(ours: ConfigDict, theirs: ConfigDict) -> list[str]:
    """Differences between two configs, see :func:`differing`; operational fields may differ."""
    return differing(
        {"config": ours},
        {"config": theirs},
        ignored=lambda field: is_operational(field.removeprefix("config.")),
    )


def is_operational(field: str) -> bool:
    """True for a field that may differ between the commands of one workdir."""
    return field in OPERATIONAL or field.partition(".")[0] in OPERATIONAL


def words(
    argument: str, allowed: Sequence[str], *, alternatives: Sequence[Sequence[str]] = ()
) -> set[str]:
    """Returns the words of ``--config=CARD.py:WORD,WORD``.

    Args:
      argument: the words, separated by commas.
      allowed: the known words.
      alternatives: groups of words of which at most one can be given.

    Raises:
      InputError: an unknown word, or two of a group.
    """
    field = "--config=CARD.py:ARGUMENT"
    requested = {word for word in argument.split(",") if word}
    for word in sorted(requested - set(allowed)):
        raise InputError(f"unknown argument {word!r}; expected {' or '.join(allowed)}", field=field)
    for group in alternatives:
        if len(requested & set(group)) > 1:
            raise InputError(f"must be one of {', '.join(group)}, got {argument!r}", field=field)
    return requested
