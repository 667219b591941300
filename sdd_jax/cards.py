"""Recipe cards: the files in ``configs/``, which are part of the package, and their descriptions."""

import ast
import dataclasses
import difflib
import pathlib
import re
import textwrap
from collections.abc import Mapping

from sdd_jax.errors import InputError

WIDTH = 100  # columns of the list
FIELDS = ("Paper", "Data", "Expected")

_PACKAGE = pathlib.Path(__file__).parent
_FIELD = re.compile(r"^([A-Z]\w+) {2,}(.*(?:\n {10}.*)*)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Card:
    """The description of a recipe card, from its docstring.

    Attributes:
      name: its name on the command line.
      title: the first line of the docstring.
      fields: ``{"Paper": ..., "Command": ..., ...}``, each on one line.
      text: the whole docstring.
    """

    name: str
    title: str
    fields: Mapping[str, str]
    text: str


def folder() -> pathlib.Path:
    """The folder of the cards: ``sdd_jax/configs`` where installed, ``configs`` in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """The names of all cards, sorted."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem != "__init__")


def locate(card: str) -> str:
    """The path of a card, with its argument: ``"digits:ce"`` -> ``"/.../configs/digits.py:ce"``.

    Args:
      card: name of a card, or path of a file; ``:ARGUMENT`` after it.

    Raises:
      InputError: there is no such card or file; the message names the most similar cards.
    """
    name, colon, argument = card.partition(":")
    if name in names():
        return f"{folder() / name}.py{colon}{argument}"
    if pathlib.Path(name).is_file():
        return card
    stem = pathlib.Path(name).stem.lower()
    similar = [known for known in names() if stem and stem in known]
    similar = similar or difflib.get_close_matches(stem, names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(similar)}? " if similar else ""
    raise InputError(
        f"must be a recipe card, there is no card or file {name!r}; {hint}all cards: sdd-jax cards",
        field="--config",
    )


def read(name: str) -> Card:
    """Reads the description of a card, without executing it.

    Raises:
      InputError: as :func:`locate`.
    """
    path = pathlib.Path(locate(name).partition(":")[0])
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    fields = {key: " ".join(value.split()) for key, value in _FIELD.findall(text)}
    return Card(path.stem, text.partition("\n")[0], fields, text)


def table() -> str:
    """The list of all cards: name and title, paper, data and expected figure."""
    return "\n\n".join(_entry(read(name)) for name in names())


def _entry(card: Card) -> str:
    lines = [card.name, *_wrapped(card.title, "  ")]
    for key in FIELDS:
        label = f"    {key.lower():10}"
        lines += _wrapped(card.fields.get(key, "-"), label)
    return "\n".join(lines)


def _wrapped(text: str, label: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=label,
        subsequent_indent=" " * len(label),
        break_on_hyphens=False,
    )
