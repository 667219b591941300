"""Plugins: a user's own files, which register networks, objectives and checks."""

import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
import types
from collections.abc import Iterable

from sdd_jax.errors import InputError
from sdd_jax.paths import given_path, is_file, is_remote

_executed: dict[str, bytes] = {}  # by path: the source of each file that this process executed

_logger = logging.getLogger(__name__)


def load(modules: Iterable[str]) -> tuple[str, ...]:
    """Imports each module once per process, so that its entries are registered.

    A file that holds what another one did that was executed before, such as the copy of it in a run, is
    not executed again.

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


def source(name: str) -> bytes:
    """The content of a file as this process executed it, or else as it is now.

    Raises:
      InputError: there is no such file, or it cannot be read.
    """
    path = _absolute(name)
    return _executed[path] if path in _executed else _read(path, name)


def digest(content: bytes) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


class _Loader(importlib.machinery.SourceFileLoader):
    """Executes source that has been read, and never byte code from ``__pycache__``."""

    def __init__(self, name: str, path: str, content: bytes):
        super().__init__(name, path)
        self._content = content

    def get_code(self, fullname: str) -> types.CodeType:
        """Compiles the source."""
        return self.source_to_code(self._content, self.path)


def _load_module(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:  # a user's module can raise anything
        raise _failure(name, error) from error
    return name


def _load_file(name: str) -> str:
    path = _absolute(name)
    if _is_loaded(path):
        _warn_if_changed(path)
        return path
    content = _read(path, name)
    module_name = f"sdd_jax_import:{path}"
    loader = _Loader(module_name, path, content)
    spec = importlib.util.spec_from_loader(module_name, loader)
    assert spec is not None  # None only without a loader
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except Exception as error:  # a user's file can raise anything
        del sys.modules[module_name]
        raise _failure(name, error) from error
    _executed[path] = content
    return path


def _absolute(name: str) -> str:
    return name if is_remote(name) else os.path.abspath(os.path.expanduser(name))


def _read(path: str, name: str) -> bytes:
    if not is_file(given_path(path, field="imports")):
        raise InputError(
            f"must be Python files or modules, there is no file {name!r}", field="imports"
        )
    try:
        return given_path(path, field="imports").read_bytes()
    except OSError as error:
        raise _failure(name, error) from error


def _is_loaded(path: str) -> bool:
    """True for the file of any module: a user's program may have imported it under a name of its own.

    Also for a file with the name of such a file, or that of any plugin, and with its content.
    """
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    if path in files:
        return True
    content, name = _content(path), os.path.basename(path)
    namesakes = (_content(file) for file in files if os.path.basename(file) == name)
    return content is not None and content in (*_executed.values(), *namesakes)


def _content(path: str) -> bytes | None:
    return _executed[path] if path in _executed else _on_disk(path)


def _on_disk(path: str) -> bytes | None:
    try:
        return given_path(path, field="imports").read_bytes()
    except (OSError, ValueError):  # not there, or no name of a file
        return None


def _warn_if_changed(path: str) -> None:
    now = _on_disk(path) if path in _executed else None
    if now is not None and now != _executed[path]:
        _warn_of_change(path, digest(now))


@functools.cache  # once for each content
def _warn_of_change(path: str, sha256: str) -> None:
    del sha256
    _logger.warning("%s has changed; this process goes on with what it executed", path)


def _failure(name: str, error: Exception) -> InputError:
    reason = f"{name!r} cannot be imported: {type(error).__name__}: {error}"
    others = [
        path
        for path in _executed
        if os.path.basename(path) == os.path.basename(name) and path != _absolute(name)
    ]
    if others:
        reason += f"; this process has executed another version of it, {others[-1]}"
    return InputError(reason, field="imports")
