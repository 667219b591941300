"""Checks by name. A check is a file here that registers a frozen dataclass.

Its fields are the check's options, each with a default: they appear in ``config.eval``, and two checks
may share one. Its ``title`` heads its section of the report. ``requirement(subject)`` says why a run
cannot have the check, or nothing; it and ``__post_init__`` raise an ``InputError`` for an unusable
option, before anything is computed. Calling it with an :class:`sdd_jax.evaluation.Evaluation` returns
its :class:`sdd_jax.evaluation.findings.Findings`.
"""

from typing import Any, ClassVar

from sdd_jax.evaluation.findings import Findings
from sdd_jax.registry import Registry

checks = Registry("sdd_jax.evaluation.checks", "--checks", options_field="config.eval")


class Check:
    """What a registered class extends."""

    title: ClassVar[str]

    def requirement(self, subject: Any) -> str:
        """Why the run of this subject cannot have the check; empty if it can."""
        del subject
        return ""

    def __call__(self, evaluation: Any) -> Findings:
        """Looks at one run."""
        raise NotImplementedError


def default_options() -> dict[str, Any]:
    """``{option: default}`` of all checks."""
    options: dict[str, Any] = {}
    for name in checks.names():
        own = checks.options(name)
        del own["name"]
        for option, value in own.items():
            if options.setdefault(option, value) != value:
                raise ValueError(f"config.eval.{option}: two checks disagree on its default")
    return options


def build(name: str, options: dict[str, Any]) -> Check:
    """The check, with those of the options that are its own.

    Raises:
      InputError: an unknown check, or an option that it cannot use.
    """
    own = {key: options[key] for key in checks.options(name) if key in options}
    return checks.build({"name": name} | own)
