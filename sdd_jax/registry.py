"""One seam for everything that a config chooses by name.

A registry belongs to a package. A module in that package adds an entry by decorating a function::

    @models.register("my_net")
    def my_net(*, num_classes, width=64):
        ...

The module is found by being there; nobody else's file changes. (A user's own file registers the same
way, from anywhere.) The function's keyword arguments with a default are the options a config may set;
of which type, the annotation says, or else the default.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from sdd_jax.errors import InputError
from sdd_jax.values import kind_of, plain


class Registry:
    """Functions by name, with their options checked against their signatures.

    Args:
      package: dotted name of the package whose modules hold the entries.
      field: the config field that chooses an entry, for messages, e.g. ``config.model``.
      options_field: the section that holds the entries' options, if it is another.
    """

    def __init__(self, package: str, field: str, options_field: str = ""):
        self._package, self._field = package, field
        self._options_field = options_field or field
        # A flag names an entry itself, a section of the config has a field for it.
        self._name_field = field if field.startswith("--") else f"{field}.name"
        self._entries: dict[str, Callable] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[Callable], Callable]:
        """Decorator: makes the function known as ``name``."""

        def add(function: Callable) -> Callable:
            if name in self._entries:
                raise ValueError(f"{self._name_field}: {name!r} is registered twice")
            self._entries[name] = function
            return function

        return add

    def names(self) -> list[str]:
        """All names, sorted."""
        if not self._complete:
            self._complete = True  # also if a module fails: a second try would register twice
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
        return sorted(self._entries)

    def get(self, name: str) -> Callable:
        """The function registered as ``name``.

        Raises:
          InputError: no such name.
        """
        if name not in self.names():
            raise InputError(
                f"{self._name_field}: must be one of {', '.join(self.names())}, got {name!r}"
            )
        return self._entries[name]

    def options(self, name: str, /, **overrides: Any) -> dict[str, Any]:
        """``{"name": name, option: default, ...}``, ready for a config, with some values replaced.

        Raises:
          InputError: unknown name, an option that the function does not have, or a value of another
            type.
        """
        defaults = {key: parameter.default for key, parameter in self._options(name).items()}
        return {"name": name} | defaults | self._checked(name, overrides)

    def build(self, options: Mapping[str, Any], **context: Any) -> Any:
        """Calls the function that ``options["name"]`` names.

        Args:
          options: ``name`` and any of the function's options.
          **context: what the program provides; those that the function has a parameter for are passed.

        Raises:
          InputError: as ``options``.
        """
        options = dict(options)
        name = options.pop("name", None)
        function = self.get(name)
        parameters = inspect.signature(function).parameters
        provided = {key: value for key, value in context.items() if key in parameters}
        return function(**self._checked(name, options), **provided)

    def _options(self, name: str) -> dict[str, inspect.Parameter]:
        parameters = inspect.signature(self.get(name)).parameters
        return {k: p for k, p in parameters.items() if p.default is not inspect.Parameter.empty}

    def _checked(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options, if the function has them, with values of the types that it says."""
        known = self._options(name)
        unknown = sorted(map(str, set(given) - set(known)))
        if unknown:
            takes = ", ".join(sorted(known)) or "no options"
            raise InputError(
                f"{self._options_field}.{unknown[0]}: {name!r} has no such option, it takes {takes}; to "
                f"replace all options at once: --{self._field}=\"{{'name': '{name}'}}\""
            )
        return {
            key: plain(
                f"{self._options_field}.{key}",
                value,
                kind_of(known[key].default, known[key].annotation),
            )
            for key, value in given.items()
        }
