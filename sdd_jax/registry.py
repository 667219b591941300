"""Named functions selected by a config, with options from their signatures.

A registry belongs to a package or module. A module in that package adds an entry with a decorator::

    @models.register("my_net")
    def my_net(*, num_classes, width: Size = 64): ...

Every module of the package is imported on first use, so a new entry is a new file. A file outside the
package registers its entries in the same way. The keyword arguments with a default are the options that
a config can set, see :mod:`sdd_jax.options`.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from sdd_jax import options as option_types
from sdd_jax.errors import InputError, within


class Registry:
    """Functions by name, with their options checked against their signatures.

    Args:
      package: dotted name of the package, or module, whose modules hold the entries.
      selector: the config section with the name and the options, as in ``model``; or the command-line
        flag with the name, as in ``--checks``.
      options: the config section with the options, if it is not ``selector``.
    """

    def __init__(self, package: str, selector: str, *, options: str = ""):
        self._package = package
        flag = selector.startswith("--")
        self._selector = selector if flag else f"config.{selector}"
        self._name_field = selector if flag else f"config.{selector}.name"
        self._options_field = f"config.{options}" if options else self._selector
        self._entries: dict[str, Callable] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[Callable], Callable]:
        """Decorator: registers the function as ``name``."""

        def add(function: Callable) -> Callable:
            if name in self._entries:
                raise ValueError(f"{self._name_field}: {name!r} is registered twice")
            self._entries[name] = function
            return function

        return add

    def names(self) -> list[str]:
        """All names, sorted."""
        if not self._complete:
            self._complete = True  # set first: after a failed import, a retry would register twice
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
                importlib.import_module(f"{self._package}.{module.name}")
        return sorted(self._entries)

    def get(self, name: str) -> Callable:
        """The function registered as ``name``.

        Raises:
          InputError: nothing is registered under this name.
        """
        if name not in self.names():
            reason = f"must be one of {', '.join(self.names())}, got {name!r}"
            if name is None:
                reason += f"; to change one option only: --{self._selector}.OPTION=VALUE"
            raise InputError(reason, field=self._name_field)
        return self._entries[name]

    def options(self, name: str, /, **overrides: Any) -> dict[str, Any]:
        """``{"name": name, option: default, ...}``, ready for a config, with some values replaced.

        Raises:
          InputError: unknown name or option, or a value of another type or outside its range.
        """
        defaults = option_types.defaults(self.get(name))
        return {"name": name} | defaults | self._validated(name, overrides)

    def build(self, options: Mapping[str, Any], **context: Any) -> Any:
        """Calls the function that ``options["name"]`` names.

        Args:
          options: ``name`` and any of the function's options.
          **context: arguments from the program; those that the function does not take are ignored.

        Raises:
          InputError: as :meth:`options`, or raised by the function; the message names the config field.
        """
        options = dict(options)
        name = options.pop("name", None)
        function = self.get(name)
        parameters = inspect.signature(function).parameters
        provided = {key: value for key, value in context.items() if key in parameters}
        validated = self._validated(name, options)
        with within(self._options_field):
            return function(**validated, **provided)

    def _validated(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        function = self.get(name)
        known = option_types.defaults(function)
        unknown = sorted(map(str, set(values) - set(known)))
        if unknown:
            raise InputError(
                f"{name!r} has no such option; expected {', '.join(sorted(known)) or 'no options'}; to "
                f"replace all options at once: --{self._selector}=\"{{'name': '{name}'}}\"",
                field=f"{self._options_field}.{unknown[0]}",
            )
        with within(self._options_field):
            return option_types.validate(function, values)
