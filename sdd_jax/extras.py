"""Extras: what is not installed of one, and the pip command that installs it."""

import importlib.metadata
import json
import pathlib
import re

DISTRIBUTION = "sdd_jax"
CHECKOUT = pathlib.Path(__file__).parent.parent


def missing(extra: str) -> list[str]:
    """The distributions of an extra that are not installed.

    Empty, too, if this package itself is not installed: its requirements are then unknown.
    """
    installed = _distribution()
    requirements = (installed.requires or []) if installed else []
    names = [
        match["name"]
        for requirement in requirements
        if (match := re.fullmatch(rf"(?P<name>[\w.-]+).*; extra == .{extra}.", requirement))
    ]
    return [name for name in names if not _is_installed(name)]


def pip_command(extra: str) -> str:
    """The command that installs an extra into this environment, from where the package came from.

    Example:
      >>> pip_command("prepare")  # doctest: +SKIP
      "pip install -e '.[prepare]'"
    """
    if (CHECKOUT / "setup.cfg").is_file():
        folder = "." if pathlib.Path.cwd() == CHECKOUT else CHECKOUT
        return f"pip install -e '{folder}[{extra}]'"
    installed = _distribution()
    record = installed.read_text("direct_url.json") if installed else None  # PEP 610
    origin = json.loads(record or "{}")
    url = origin.get("url", "")
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}"
    return f"pip install '{DISTRIBUTION}[{extra}]{url and f' @ {url}'}'"


def _distribution() -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
