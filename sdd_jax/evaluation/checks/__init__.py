"""Checks by name. A check is a file here that registers a frozen dataclass.

Its fields are the options of the check, each with a default and a range (see :mod:`sdd_jax.options`).
All checks share one section of the config, so options of the same name in two checks are one option.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from sdd_jax.evaluation.evaluator import EvaluationSetup, Evaluator
from sdd_jax.evaluation.results import CheckResult
from sdd_jax.registry import Registry

checks = Registry("sdd_jax.evaluation.checks", "--checks", options="eval")


@dataclasses.dataclass(frozen=True)
class Check:
    """Base class of the checks.

    ``__post_init__`` raises an :class:`~sdd_jax.errors.InputError` for invalid options that no range can
    express.

    Attributes:
      title: heading of its section in the report.
      one_label: whether it applies only to tasks with one label for each example.
      inputs: the kinds of inputs that it applies to; empty: all.
    """

    title: ClassVar[str]
    one_label: ClassVar[bool] = False
    inputs: ClassVar[tuple[str, ...]] = ()

    def reason(self, setup: EvaluationSetup) -> str:
        """Returns the reason why the check does not apply to a run; empty if it does.

        Raises:
          InputError: as :meth:`requirement`.
        """
        dataset = setup.dataset
        if self.one_label and not dataset.task.one_label:
            return f"{self.title} needs one label per example; the task is {dataset.task.name}"
        if self.inputs and dataset.inputs.name not in self.inputs:
            return f"{self.title} needs {' or '.join(self.inputs)}, got {dataset.inputs.name}"
        return self.requirement(setup)

    def requirement(self, setup: EvaluationSetup) -> str:
        """Returns the reason why it does not, beside its task and its inputs; empty if it does.

        Raises:
          InputError: an option cannot be used with this run. The field is the option's name.
        """
        del setup
        return ""

    def __call__(self, evaluator: Evaluator) -> CheckResult:
        """Evaluates one run."""
        raise NotImplementedError


def default_options() -> dict[str, Any]:
    """``{option: default}`` of all checks."""
    options: dict[str, Any] = {}
    for name in checks.names():
        for option, value in checks.options(name).items():
            if option != "name" and options.setdefault(option, value) != value:
                raise ValueError(f"{option}: two checks have different defaults")
    return options


def build(name: str, options: Mapping[str, Any]) -> Check:
    """Builds a check with its own share of the options of all checks.

    Raises:
      InputError: an unknown check, or an option of another type or outside its range.
    """
    own = {key: options[key] for key in checks.options(name) if key in options}
    return checks.build(own | {"name": name})
