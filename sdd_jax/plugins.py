"""Plugins: a user's own files, which register networks, objectives and checks."""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterable

from sdd_jax.errors import InputError


def load(modules: Iterable[str]) -> tuple[str, ...]:
    """Imports each module once per process, so that its entries are registered.

    Args:
      modules: ``config.imports``: paths of Python files, or names of installed modules.

    Returns:
      The same modules, with absolute paths.

    Raises:
      InputError: a file or module does not exist, or raises on import.
    """
    return tuple(
        _load_file(name) if name.endswith(".py") else _load_module(name) for name in modules
    )


def not_loaded(modules: Iterable[str]) -> list[str]:
    """The modules that this process has not loaded yet, so that :func:`load` would execute them."""
    return [
        name
        for name in modules
        if not (_is_loaded(_absolute(name)) if name.endswith(".py") else name in sys.modules)
    ]


def _load_module(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:  # a user's module can raise anything
        raise _failure(name, error) from error
    return name


def _load_file(name: str) -> str:
    path = _absolute(name)
    if _is_loaded(path):
        return path
    if not os.path.isfile(path):
        raise InputError(
            f"must be Python files or modules, there is no file {name!r}", field="imports"
        )
    module_name = f"sdd_jax_import:{path}"
    loader = importlib.machinery.SourceFileLoader(module_name, path)
    spec = importlib.util.spec_from_loader(module_name, loader)
    assert spec is not None  # None only without a loader
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except Exception as error:  # a user's file can raise anything
        del sys.modules[module_name]
        raise _failure(name, error) from error
    return path


def _absolute(name: str) -> str:
    return os.path.abspath(os.path.expanduser(name))


def _is_loaded(path: str) -> bool:
    """True for the file of any module: a user's program may have imported it under a name of its own."""
    return any(getattr(module, "__file__", None) == path for module in list(sys.modules.values()))


def _failure(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name!r} cannot be imported: {type(error).__name__}: {error}", field="imports"
    )
