"""Pages that are generated from the code: all config fields, and the entries of every registry."""

import inspect
import pathlib
import re
from collections.abc import Callable, Iterator

from sdd_jax import config as configs
from sdd_jax import options
from sdd_jax.evaluation.checks import checks
from sdd_jax.registry import Registry

ENTRIES = {
    "model": ("Networks", "the network"),
    "objective": ("Objectives", "what a training step minimises"),
    "optimizer": ("Optimizers", "the gradient transformation"),
    "schedule": ("Schedules", "the learning rate by step"),
    "engine": ("Engines", "how batches reach the device"),
}


def write(folder: pathlib.Path) -> None:
    """Writes ``config.md`` into the folder."""
    folder.mkdir(exist_ok=True)
    text = "\n".join(_config())
    path = folder / "config.md"
    if not path.is_file() or path.read_text() != text:  # sphinx rebuilds what is newer
        path.write_text(text)


def _config() -> Iterator[str]:
    yield "# Config fields\n"
    yield (
        "Every field of a run with its default and what is allowed, from the signatures of the "
        "functions that it configures. On the command line: `--config.SECTION.FIELD=VALUE`.\n"
    )
    yield "## The run\n\nFields at the top, such as `--config.seed=1`.\n"
    yield from _table(configs.Run)
    for section, function in configs.FIXED.items():
        yield f"## `{section}`\n\n{_summary(function)}\n"
        yield from _table(function)
    for section, registry in configs.SELECTED.items():
        title, what = ENTRIES[section]
        default = configs.DEFAULT_ENTRIES[section]
        yield (
            f"## `{section}`: {title.lower()}\n\nSelects {what}, by default `{default}`: "
            f"`--config.{section}=\"{{'name': 'NAME', 'OPTION': VALUE}}\"`; a single option of the "
            f"selected entry: `--config.{section}.OPTION=VALUE`.\n"
        )
        yield from _entries(registry)
    size = configs.default().eval.batch_size
    yield (
        "## `eval`: options of the checks\n\n`eval.py` takes them, and `--config.eval.batch_size`, by "
        f"default {size}; `--checks=NAME,NAME` selects checks.\n"
    )
    yield from _entries(checks)


def _entries(registry: Registry) -> Iterator[str]:
    for name in registry.names():
        function = registry.get(name)
        yield f"### `{name}`\n\n{_summary(function)}\n"
        yield from _table(function)


def _table(function: Callable) -> Iterator[str]:
    parameters = options.parameters(function)
    if not parameters:
        yield "No options.\n"
        return
    meanings = _meanings(function)
    yield "| field | default | allowed | meaning |\n|---|---|---|---|"
    for name, parameter in parameters.items():
        cells = (f"`{name}`", f"`{parameter.default!r}`", options.describe(parameter))
        yield f"| {' | '.join(cells)} | {meanings.get(name, '')} |"
    yield ""


def _summary(function: Callable) -> str:
    """The first paragraph of a docstring as Markdown."""
    text = inspect.getdoc(function) or ""
    return _markdown(text.partition("\n\n")[0])


def _meanings(function: Callable) -> dict[str, str]:
    """``{name: text}`` of the sections Args and Attributes of a docstring."""
    meanings: dict[str, str] = {}
    name, inside = "", False
    for line in (inspect.getdoc(function) or "").splitlines():
        if re.match(r"\w+:$", line):
            inside = line in ("Args:", "Attributes:")
        elif inside and (match := re.match(r" {2}(\w+): (.*)", line)):
            name, meanings[match[1]] = match[1], match[2]
        elif inside and name and line.strip():
            meanings[name] += " " + line.strip()
    return {key: _markdown(value) for key, value in meanings.items()}


def _markdown(text: str) -> str:
    """Converts the roles, links and literals of a docstring; one line."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"`([^`<]+) <(https?://[^>]+)>`_+", r"[\1](\2)", text)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`").replace("|", r"\|")
