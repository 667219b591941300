"""Types of a config's values: checked here alone, so that a field's own check looks at the range.

A *kind* is ``bool``, ``int``, ``float``, ``str`` or a tuple of one of them, as ``tuple[float, ...]``.
"""

import collections.abc
import inspect
import numbers
import typing
from typing import Any

import numpy as np

from sdd_jax.errors import check

LARGEST_INTEGER = 2**32 - 1  # seeds, counters and sizes have 32 bits on a device
LARGEST_FLOAT = 3.4e38  # and so have all other numbers

_ALLOWED = {  # one of them, some of them
    bool: ("True or False", "of True or False"),
    int: ("a whole number of 32 bits", "of whole numbers of 32 bits"),
    float: ("a finite number of 32 bits", "of finite numbers of 32 bits"),
    str: ("a string", "of strings"),
}


def plain(field: str, value: Any, kind: Any) -> Any:
    """The value, as Python's own type: a whole number where any number may be, a list for a tuple, ...

    Args:
      field: for the message.
      value: what the user gave.
      kind: what it must be; None if that is not known.

    Raises:
      InputError: it is something else, not a number (nan), infinite, or beyond 32 bits.
    """
    if kind is None:
        return value
    if kind in _ALLOWED:
        check(_is(kind, value), field, value, _ALLOWED[kind][0])
        return kind(value)
    (of,) = set(typing.get_args(kind)) - {Ellipsis}
    ok = isinstance(value, (tuple, list)) and all(_is(of, element) for element in value)
    check(ok, field, value, f"a list {_ALLOWED[of][1]}")
    return tuple(of(element) for element in value)


def kind_of(value: Any, annotation: Any = None) -> Any:
    """The kind of an option whose default is ``value``; None if neither says it.

    Args:
      value: the default.
      annotation: of the parameter; ``Sequence[str]`` is a tuple, too.
    """
    if annotation in (None, inspect.Parameter.empty) or isinstance(annotation, str):
        kinds = {type(element) for element in value} if isinstance(value, tuple) else set()
        annotation = tuple[kinds.pop(), ...] if len(kinds) == 1 else type(value)
    origin, of = typing.get_origin(annotation), typing.get_args(annotation)
    if of and origin in (tuple, list, collections.abc.Sequence) and set(of[1:]) <= {Ellipsis}:
        return tuple[of[0], ...] if of[0] in _ALLOWED else None
    return annotation if isinstance(annotation, type) and annotation in _ALLOWED else None


def _is(kind: type, value: Any) -> bool:
    truth = isinstance(value, (bool, np.bool_))  # no number, though Python says that it is one
    if kind is int:
        return not truth and isinstance(value, numbers.Integral) and abs(value) <= LARGEST_INTEGER
    if kind is float:  # false of nan, too
        return not truth and isinstance(value, numbers.Real) and abs(value) <= LARGEST_FLOAT
    return truth if kind is bool else isinstance(value, str)
