"""A user's own files, which register networks, objectives, checks, ... from outside the package."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable

from sdd_jax.errors import InputError


def load(modules: Iterable[str]) -> tuple[str, ...]:
    """Imports each module once in a process, so that its entries are known.

    Args:
      modules: ``config.imports``: paths of Python files, or names of installed modules.

    Returns:
      The same, with absolute paths.

    Raises:
      InputError: there is no such file or module, or it fails.
    """
    return tuple(_load_file(name) if name.endswith(".py") else _load(name) for name in modules)


def _load(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a user's module raises
        raise _failure(name, error) from error
    return name


def _load_file(name: str) -> str:
    path = os.path.abspath(os.path.expanduser(name))
    module_name = f"sdd_jax_import:{path}"
    if module_name in sys.modules:
        return path
    if not os.path.isfile(path):
        raise InputError(
            f"config.imports: must be Python files or modules, there is no file {name!r}"
        )
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises
        del sys.modules[module_name]
        raise _failure(name, error) from error
    return path


def _failure(name: str, error: Exception) -> InputError:
    return InputError(f"config.imports: {name!r} fails: {type(error).__name__}: {error}")
