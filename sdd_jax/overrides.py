"""Overrides on the command line: ``--config.SECTION.FIELD=VALUE``, and the values of ``--sweep``."""

import ast
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdd_jax.errors import InputError, require

A_DICT = "a dict such as {'name': 'NAME', 'OPTION': VALUE}"
A_SWEEP = "FIELD=VALUE,VALUE,... without empty values and with all brackets and quotes closed"

_OVERRIDE = re.compile(
    r"--?(?P<no>no)?config\.(?P<section>\w+)(\.(?P<field>[^=]+))?(=(?P<value>.*))?", re.DOTALL
)
_SWEEP = re.compile(r"\s*(config\.)?(?P<field>\w+(\.\w+)?)\s*=(?P<values>.*)", re.DOTALL)
_TOKEN = re.compile(r"""'(\\.|[^'\\])*'|"(\\.|[^"\\])*"|.""", re.DOTALL)
_CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclasses.dataclass(frozen=True)
class _Argument:
    """An argument of a command line, and what it overrides.

    Attributes:
      text: the argument.
      section: the section, or the field at the top, that it overrides; empty for other arguments.
      field: the field of the section; empty for the whole section.
      value: its value, a Python literal or else a string.
      source: its value as given; None for a flag without a value.
    """

    text: str
    section: str = ""
    field: str = ""
    value: Any = None
    source: str | None = None


def _arguments(argv: Sequence[str]) -> list[_Argument]:
    """Parses a command line; ``--config VALUE`` and ``--config.FIELD VALUE`` become one argument."""
    arguments, rest = [], list(argv)
    while rest:
        text = rest.pop(0)
        if re.fullmatch(r"--?config(\.[\w.]+)?", text) and rest and not rest[0].startswith("--"):
            text += f"={rest.pop(0)}"
        if match := _OVERRIDE.fullmatch(text):
            source = match["value"]
            value = not match["no"] if source is None else _literal(source)
            override = _Argument(text, match["section"], match["field"] or "", value, source)
            arguments.append(override)
        else:
            arguments.append(_Argument(text))
    return arguments


def merge_sections(argv: Sequence[str]) -> list[str]:
    """Merges ``--config.SECTION.FIELD=VALUE`` into ``--config.SECTION={...}`` if both are given.

    ml_collections would look for the fields in the card's section, which may select another entry. The
    order does not matter: the last ``--config.SECTION`` is refined by the last value of each field. A
    value is a Python literal, or else a string: its type is unknown until ``config.imports`` are
    imported, and :func:`sdd_jax.config.complete` checks it.

    Raises:
      InputError: the section is not a dict.

    Example:
      >>> merge_sections(["--config.model={'name': 'mlp'}", "--seed=1", "--config.model.width=8"])
      ["--config.model={'name': 'mlp', 'width': 8}", '--seed=1']
    """
    arguments = _arguments(argv)
    wholes = {a.section: a for a in arguments if a.section and not a.field}
    merged: dict[str, dict[str, Any]] = {}
    for argument in arguments:
        if argument.field and (whole := wholes.get(argument.section)):
            section = merged.get(argument.section, whole.value)
            name = f"config.{argument.section}"
            require(isinstance(section, dict), name, whole.source, A_DICT)
            merged[argument.section] = section | {argument.field: argument.value}
    return [
        f"--config.{a.section}={merged[a.section]!r}" if a.section in merged else a.text
        for a in arguments
        if a.section not in merged or not a.field
    ]


def select_entries(argv: Sequence[str], config: Callable[[], Mapping[str, Any]]) -> list[str]:
    """Merges ``--config.SECTION.name=NAME`` and fields of that entry into one override.

    Only where the section of the card has no option that this would drop. Otherwise the arguments stay
    as they are, and :func:`unknown_field` shows the override of the whole section.

    Args:
      argv: the arguments, with merged sections.
      config: function that loads the card; called only if there is an override to merge.

    Example:
      >>> argv = ["--config.engine.name=streamed", "--config.engine.workers=2"]
      >>> select_entries(argv, lambda: {"engine": {"name": "resident"}})
      ["--config.engine={'name': 'streamed', 'workers': 2}"]
    """
    arguments = _arguments(argv)
    named = dict.fromkeys(a.section for a in arguments if a.field == "name")
    entries = {section: _fields(arguments, section) for section in named}
    entries = {section: entry for section, entry in entries.items() if len(entry) > 1}
    sections = config() if entries else {}
    whole = {
        section: entry
        for section, entry in entries.items()
        if isinstance(options := sections.get(section), Mapping) and {*options} <= {*entry}
    }
    rest = [a.text for a in arguments if a.section not in whole]
    return [*rest, *(f"--config.{section}={entry!r}" for section, entry in whole.items())]


def unknown_field(argv: Sequence[str], config: Mapping[str, Any]) -> str | None:
    """The error for the first override of a command line that names no field of ``config``, or None.

    Fields of another entry of a section are refused with the override that selects it.
    """
    arguments = _arguments(argv)
    for argument in filter(lambda a: a.section, arguments):
        path = [argument.section, *filter(None, argument.field.split("."))]
        value: Any = config
        for depth, key in enumerate(path, start=1):
            if isinstance(value, Mapping) and key in value:
                value = value[key]
                continue
            fields = ", ".join(value) if isinstance(value, Mapping) else "no fields"
            error = f"config.{'.'.join(path[:depth])}: unknown field; expected {fields}"
            entry = _fields(arguments, argument.section)
            if "name" in entry and depth == 2:
                error += f'; for another entry: --config.{argument.section}="{entry!r}"'
            return error
    return None


def parse_sweeps(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Parses the values of ``--sweep``: ``{field: values}``.

    Commas in brackets or quotes do not separate values. A value is a Python literal, or else a string,
    as in :func:`merge_sections`. A field may have the prefix ``config.``.

    Raises:
      InputError: a text is malformed, a value is empty, or a field is given twice.

    Example:
      >>> parse_sweeps(["sd_dropout.weight=0,0.1", "sd_dropout.random_rate=(),(0.1, 0.5)"])
      {'sd_dropout.weight': [0, 0.1], 'sd_dropout.random_rate': [(), (0.1, 0.5)]}
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        match = _SWEEP.fullmatch(text)
        values = _split(match["values"]) if match else []
        if not match or not values or "" in values:
            raise InputError(f"must be {A_SWEEP}, got {text!r}", field="--sweep")
        require(match["field"] not in grid, "--sweep", text, "one list of values for each field")
        grid[match["field"]] = [_literal(value) for value in values]
    return grid


def _fields(arguments: Sequence[_Argument], section: str) -> dict[str, Any]:
    """The fields of a section that are overridden, with their last values."""
    return {a.field: a.value for a in arguments if a.section == section and a.field}


def _split(text: str) -> list[str]:
    """Splits at the commas outside brackets and quotes; empty if one of these is not closed."""
    parts, closing = [""], []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "," and not closing:
            parts.append("")
            continue
        parts[-1] += token
        if token in _CLOSING:
            closing.append(_CLOSING[token])
        elif token in (*_CLOSING.values(), "'", '"') and (not closing or closing.pop() != token):
            return []
    return [] if closing else [part.strip() for part in parts]


def _literal(text: Any) -> Any:
    if text in ("true", "false"):  # as absl writes them
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text
