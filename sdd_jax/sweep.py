"""Sweeps: one run for each setting of some fields; the validation split selects one of them."""

import dataclasses
import hashlib
import itertools
import json
import pprint
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sdd_jax import hosts
from sdd_jax.config import complete, is_operational
from sdd_jax.errors import InputError, require, writing
from sdd_jax.paths import Path, given_path
from sdd_jax.runs import open_workdir, read_metrics, write_text
from sdd_jax.runs.workdir import CONFIG_FILE
from sdd_jax.tasks import figures, selecting
from sdd_jax.train import NonFiniteLossError, train_and_evaluate

FIELD = "--sweep"
RESULTS_FILE = "sweep.json"
CARD_FILE = "selected.py"
RULE = "highest accuracy on the validation split at the last step; among equals, lowest NLL"
VALIDATION = 0.1  # fraction held out for a config that holds out nothing
MAX_NAME = 150  # characters; file systems allow 255 bytes

_CARD = '''"""The config that a sweep selected: {name}.

Sweep     {sweep}
Rule      {rule}
Result    {result}
Command   python train.py --config={path} --workdir=RUN
"""

from ml_collections import ConfigDict

from sdd_jax.config import complete
from sdd_jax.errors import require

CONFIG = {config}


def get_config(argument: str = ""):
    """The complete config; there are no arguments."""
    require(not argument, "--config=CARD.py:ARGUMENT", argument, "empty")
    return complete(ConfigDict(CONFIG))
'''


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A setting of the fields of a sweep.

    Attributes:
      values: ``{field: value}``.
      config: the complete config of its run.
    """

    values: Mapping[str, Any]
    config: ConfigDict

    @property
    def name(self) -> str:
        """The name of its run's folder: "FIELD=VALUE,FIELD=VALUE".

        A character that is unsafe in a file name becomes "_"; a hash then keeps the name apart.
        """
        text = ",".join(f"{field}={show(value)}" for field, value in self.values.items())
        name = re.sub(r"[^\w.,+=-]", "_", text, flags=re.ASCII)
        if name == text.replace(" ", "_") and len(name) <= MAX_NAME:
            return name
        digest = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
        return f"{name[:MAX_NAME]}-{digest[:8]}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of the run of a candidate.

    Attributes:
      candidate: the candidate.
      metrics: the last line of the run's log; empty if it diverged.
      failure: the reason why it has no result; empty if it has one.
    """

    candidate: Candidate
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    failure: str = ""

    def row(self) -> dict[str, Any]:
        """Values, folder and training and validation metrics, in JSON's types; no test metrics."""
        row = {"values": dict(self.candidate.values), "workdir": self.candidate.name}
        if self.failure:
            return row | {"failure": self.failure}
        metrics = {
            name: value
            for name, value in self.metrics.items()
            if name.startswith("validation/") or name == "train/accuracy"
        }
        return row | {"step": self.metrics["step"]} | metrics


def train_and_select(
    config: ConfigDict,
    grid: Mapping[str, Sequence[Any]],
    workdir: str,
    *,
    trust_imports: bool = False,
) -> ConfigDict:
    """Trains one run per setting of the grid, or resumes the sweep, and selects one by validation.

    The run of a setting is in ``WORKDIR/FIELD=VALUE``, see :func:`sdd_jax.train.train_and_evaluate`; a
    finished one is not trained again. A run that diverges has no result, and the sweep goes on. The
    setting with the highest accuracy on the validation split at the last step is selected (mIoU of
    segmentation, mAP of several labels); among equals, the one with the lowest NLL. The test split is
    not used. If the config holds out nothing, the sweep holds out a tenth of the training images.

    Prints a table and writes ``sweep.json`` (the grid, the results, the rule) and ``selected.py``, a
    recipe card with the complete selected config; another sweep in the same folder replaces both.

    Args:
      config: see :func:`sdd_jax.config.default`.
      grid: ``{field: values}``; a field is ``SECTION.OPTION``, ``SECTION`` or a field at the top.
      workdir: folder of the sweep; created if necessary.
      trust_imports: execute the Python files that the config of the teacher imports.

    Returns:
      The complete selected config.

    Raises:
      InputError: the config, the grid or the workdir cannot be used; nothing has been trained. Or a run
        refuses its config, for example because it does not fit the data.
      NonFiniteLossError: every run diverged.
      WriteError: a file cannot be written.
      Interrupted: SIGTERM or Ctrl-C; the state of the run is saved, the same call resumes.
    """
    given = given_path(workdir, field="--workdir")
    require(
        not (given / CONFIG_FILE).exists(),
        "--workdir",
        workdir,
        f"the folder of a sweep; there is a run in it ({CONFIG_FILE})",
    )
    config = complete(config)
    holds_out = config.dataset.validation > 0
    if not holds_out:
        config.dataset.validation = VALIDATION
    runs = candidates(config, grid)
    with open_workdir(workdir) as folder:
        if not holds_out:
            _say(
                "config.dataset.validation: 0 holds out nothing to select by; the sweep holds out "
                f"{VALIDATION} of the training images"
            )
        outcomes = []
        for number, candidate in enumerate(runs, start=1):
            _say(f"\nrun {number} of {len(runs)}: {candidate.name}")
            outcomes.append(_run(candidate, folder, trust_imports=trust_imports))
        selected = select(outcomes)
        card = given / CARD_FILE
        if hosts.first():
            record = {
                "sweep": {field: list(values) for field, values in grid.items()},
                "rule": _rule(selected),
                "rows": [outcome.row() for outcome in outcomes],
                "selected": selected.row(),
            }
            write_text(folder / RESULTS_FILE, json.dumps(record, indent=2) + "\n")
            write_text(folder / CARD_FILE, recipe_card(selected, grid, card))
    _say(f"\n{table(outcomes, selected)}\n\nselected: {selected.candidate.name}, see {card}")
    return selected.candidate.config


def candidates(config: ConfigDict, grid: Mapping[str, Sequence[Any]]) -> list[Candidate]:
    """The settings of a grid, the values of the last field changing fastest.

    Whole sections are set before single options, in whatever order the grid has them.

    Raises:
      InputError: a field that does not exist, is no part of what is trained or cannot be selected by
        validation, a value that it cannot have, no value, or two settings of the same config.
    """
    require(len(grid) > 0, FIELD, dict(grid), "at least one field with its values")
    for field, values in grid.items():
        _check_field(field)
        require(len(values) > 0, f"{FIELD}={field}", list(values), "a list with at least one value")
    base = complete(config).to_dict()
    runs = [
        _candidate(base, dict(zip(grid, setting, strict=True)))
        for setting in itertools.product(*grid.values())
    ]
    for a, b in itertools.combinations(runs, 2):
        if a.config.to_dict() == b.config.to_dict():
            raise InputError(f"{a.name} and {b.name} are the same config", field=FIELD)
    return runs


def select(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome that ``RULE`` selects; the first of several with the same metrics.

    Raises:
      NonFiniteLossError: every run diverged.
    """
    finished = [outcome for outcome in outcomes if not outcome.failure]
    if not finished:
        first = outcomes[0]
        raise NonFiniteLossError(
            f"{FIELD}: every run diverged; {first.candidate.name}: {first.failure}"
        )
    return max(
        finished,
        key=lambda x: (
            x.metrics[f"validation/{selecting(x.metrics, 'validation')}"],
            -x.metrics["validation/nll"],
        ),
    )


def table(outcomes: Sequence[Outcome], selected: Outcome) -> str:
    """The table for the terminal, with a star before the selected row.

    The train accuracy is the mean over the last steps' batches, as augmented: a low one shows
    underfitting.
    """
    fields = list(outcomes[0].candidate.values)
    metric = figures()[selecting(selected.metrics, "validation")]
    heading = ["", *fields, f"validation {metric} %", "validation NLL", "train accuracy %"]
    rows = [heading]
    for outcome in outcomes:
        values = [show(value) for value in outcome.candidate.values.values()]
        rows.append(["*" if outcome is selected else "", *values, *_figures(outcome)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first = 1 + len(fields)  # the first column of figures, which are aligned at the right
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < first else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def recipe_card(selected: Outcome, grid: Mapping[str, Sequence[Any]], path: str | Path) -> str:
    """The text of a recipe card with the selected config.

    Args:
      selected: the selected outcome.
      grid: the grid of the sweep.
      path: the path of the card, for the command in its docstring.
    """
    prose = {
        "name": selected.candidate.name,
        "sweep": "; ".join(
            f"{field} of {', '.join(map(show, values))}" for field, values in grid.items()
        ),
        "rule": _rule(selected),
        "result": "validation {} {} %, NLL {}, train accuracy {} %".format(
            figures()[selecting(selected.metrics, "validation")], *_figures(selected)
        ),
        "path": str(path),
    }
    escaped = {
        key: text.replace("\\", r"\\").replace('"', r"\"").encode(errors="replace").decode()
        for key, text in prose.items()
    }
    values = pprint.pformat(selected.candidate.config.to_dict(), width=90)
    return _CARD.format(config=values.replace("\n", "\n" + " " * len("CONFIG = ")), **escaped)


def show(value: Any) -> str:
    """A value in a few characters: a number as it is, an entry as "NAME+OPTION=VALUE"."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, dict):
        options = sorted((str(key), show(x)) for key, x in value.items() if key != "name")
        name = [show(value["name"])] if "name" in value else []
        return "+".join([*name, *(f"{key}={x}" for key, x in options)]) or "empty"
    if isinstance(value, tuple | list):
        return "+".join(map(show, value)) or "empty"
    return str(value) or "empty"


def _check_field(field: str) -> None:
    """Refuses a field that validation cannot select."""
    reasons = {
        "seed": "seed is no setting to select: the best of several seeds is the luckiest; "
        "train the selected config with other seeds",
        "dataset": f"{field} is part of the data, on which all runs of a sweep are compared",
    }
    if reason := reasons.get(field.partition(".")[0]):
        raise InputError(reason, field=FIELD)
    if is_operational(field):
        raise InputError(f"{field} does not change what is trained", field=FIELD)


def _candidate(base: Mapping[str, Any], values: Mapping[str, Any]) -> Candidate:
    sections = dict(base)
    for field, value in sorted(values.items(), key=lambda item: "." in item[0]):
        section, _, option = field.partition(".")
        whole = sections.get(section)
        known = whole if isinstance(whole, dict) else {}
        sections[section] = known | {option: value} if option else value
    try:
        config = ConfigDict(sections)
    except (AttributeError, TypeError, ValueError) as error:  # a key that ConfigDict does not take
        raise InputError(str(error), field=FIELD) from error
    try:
        return Candidate(values, complete(config))
    except InputError as error:
        raise InputError(str(error), field=FIELD) from error


def _run(candidate: Candidate, folder: Path, *, trust_imports: bool) -> Outcome:
    """Trains a candidate, unless its run is finished."""
    workdir = folder / candidate.name
    try:
        train_and_evaluate(candidate.config, str(workdir), trust_imports=trust_imports)
    except NonFiniteLossError as error:
        _say(f"diverged: {error}")
        return Outcome(candidate, failure=str(error))
    return Outcome(candidate, read_metrics(workdir)[-1])


def _rule(selected: Outcome) -> str:
    """``RULE`` with the metric of the task."""
    return RULE.replace("accuracy", figures()[selecting(selected.metrics, "validation")])


def _figures(outcome: Outcome) -> list[str]:
    """Validation accuracy (or mIoU, or mAP), validation NLL and train accuracy, formatted."""
    if outcome.failure:
        return ["diverged", "-", "-"]
    metric = f"validation/{selecting(outcome.metrics, 'validation')}"
    train = outcome.metrics.get("train/accuracy")  # absent for objectives without labels
    return [
        f"{100 * outcome.metrics[metric]:.2f}",
        f"{outcome.metrics['validation/nll']:.4f}",
        "-" if train is None else f"{100 * train:.2f}",
    ]


def _say(message: str) -> None:
    """Prints on the first process."""
    if hosts.first():
        with writing("standard output"):
            print(message, flush=True)
