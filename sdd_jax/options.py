"""Options: keyword arguments whose signature states the default, the type and the allowed range.

A function declares its options once::

    def cs_kd(*, weight: NonNegative = 1.0, reduction: Literal["mean", "sum"] = "mean"): ...

:func:`defaults` reads them for a config, :func:`validate` checks values against them. Ranges are those
of `annotated-types <https://github.com/annotated-types/annotated-types>`_: ``Ge``, ``Gt``, ``Le``,
``Lt``, ``Interval``, ``MinLen``. Positional-only parameters, and those without a default, are not
options: the program provides them.
"""

import collections.abc
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import annotated_types as at
import numpy as np

from sdd_jax.errors import InputError, require

NonNegative = Annotated[float, at.Ge(0)]
Positive = Annotated[float, at.Gt(0)]
Fraction = Annotated[float, at.Interval(ge=0, le=1)]
Rate = Annotated[float, at.Interval(ge=0, lt=1)]  # probability of dropping an element
Size = Annotated[int, at.Ge(1)]
Count = Annotated[int, at.Ge(0)]

MAX_INT = 2**32 - 1  # seeds, counters and sizes have 32 bits on a device
MAX_FLOAT = 3.4e38  # the range of float32

BITS = " of 32 bits"
_SINGULAR = {
    bool: "True or False",
    int: f"a whole number{BITS}",
    float: f"a finite number{BITS}",
    str: "a string",
}
_PLURAL = {
    bool: "of True or False",
    int: f"of whole numbers{BITS}",
    float: f"of finite numbers{BITS}",
    str: "of strings",
}


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """The options of a function or class: its parameters that have a default and can be named."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # a string annotation names a type imported for type checking only
        signature = inspect.signature(function)
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.default is not inspect.Parameter.empty
        and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY
    }


def defaults(function: Callable) -> dict[str, Any]:
    """``{option: default}`` of a function or class."""
    return {name: parameter.default for name, parameter in parameters(function).items()}


def validate(function: Callable, values: Mapping[str, Any]) -> dict[str, Any]:
    """Checks values for options of ``function`` against its signature.

    Returns:
      The values as plain Python: an int as a float where the option is a float, a list as a tuple.

    Raises:
      InputError: an option that the function does not have, another type, nan, infinity, more than 32
        bits, or a value outside the declared range. The field is the option's name.
    """
    known = parameters(function)
    unknown = sorted(map(str, set(values) - set(known)))
    if unknown:
        allowed = ", ".join(sorted(known)) or "no fields"
        raise InputError(f"unknown field; expected {allowed}", field=unknown[0])
    return {
        name: _validated(name, value, _annotation(known[name])) for name, value in values.items()
    }


def describe(parameter: inspect.Parameter) -> str:
    """The allowed values of an option in words, as in "a number greater than 0"."""
    kind, ranges = _unwrap(_annotation(parameter))
    if typing.get_origin(kind) is Literal:
        return " or ".join(f'"{choice}"' for choice in typing.get_args(kind))
    if (element := _element(kind)) is not None:
        kind, inner = _unwrap(element)
        limits = [f"each {_describe(limit)}" for limit in inner]
        if any(isinstance(limit, at.MinLen) for limit in ranges):
            limits.append("not empty")
        return ", ".join([f"a list {_PLURAL.get(kind, '')}".removesuffix(BITS).strip(), *limits])
    limits = " and ".join(map(_describe, ranges))
    return f"{_SINGULAR.get(kind, '').removesuffix(BITS)} {limits}".strip()


def _annotation(parameter: inspect.Parameter) -> Any:
    """The annotation, or the type of the default if the annotation is absent or unresolved."""
    annotation, default = parameter.annotation, parameter.default
    if annotation is not inspect.Parameter.empty and not isinstance(annotation, str):
        return annotation
    kinds = {type(element) for element in default} if isinstance(default, tuple) else set()
    return types.GenericAlias(tuple, (kinds.pop(), ...)) if len(kinds) == 1 else type(default)


def _validated(field: str, value: Any, annotation: Any) -> Any:
    kind, ranges = _unwrap(annotation)
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        require(
            isinstance(value, str) and value in choices,
            field,
            value,
            f"one of {', '.join(choices)}",
        )
        return str(value)
    if kind in _SINGULAR:
        require(_is(kind, value), field, value, _SINGULAR[kind])
        for limit in ranges:
            require(_inside(limit, value), field, value, _describe(limit))
        return kind(value)
    element = _element(kind)
    if element is None:
        return value  # a type of another library: the function checks the value
    element_kind, element_ranges = _unwrap(element)
    if element_kind not in _SINGULAR:
        return value
    ok = isinstance(value, (tuple, list)) and all(_is(element_kind, x) for x in value)
    require(ok, field, value, f"a list {_PLURAL[element_kind]}")
    for limit in element_ranges:
        inside = all(_inside(limit, x) for x in value)
        require(inside, field, tuple(value), f"a list of numbers, each {_describe(limit)}")
    for limit in ranges:
        require(
            not isinstance(limit, at.MinLen) or len(value) >= limit.min_length,
            field,
            tuple(value),
            "a list that is not empty",
        )
    return tuple(element_kind(x) for x in value)


def _unwrap(annotation: Any) -> tuple[Any, list[Any]]:
    """Splits ``Annotated[kind, *ranges]`` into the kind and its ranges."""
    if typing.get_origin(annotation) is not Annotated:
        return annotation, []
    kind, *metadata = typing.get_args(annotation)
    return kind, [m for m in metadata if isinstance(m, at.BaseMetadata | at.GroupedMetadata)]


def _element(kind: Any) -> Any:
    """X of ``tuple[X, ...]``, ``list[X]`` or ``Sequence[X]``; None for any other type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    sequences = (tuple, list, collections.abc.Sequence)
    return args[0] if args and origin in sequences and set(args[1:]) <= {Ellipsis} else None


def _is(kind: type, value: Any) -> bool:
    # bool subclasses int but is not accepted as a number.
    is_bool = isinstance(value, (bool, np.bool_))
    if kind is int:
        integral = isinstance(value, numbers.Integral)
        return not is_bool and integral and abs(value) <= MAX_INT  # pyrefly: ignore[unsupported-operation]
    if kind is float:
        real = isinstance(value, numbers.Real)
        # The comparison is False for nan.
        return not is_bool and real and abs(value) <= MAX_FLOAT  # pyrefly: ignore[unsupported-operation]
    return is_bool if kind is bool else isinstance(value, str)


def _bounds(limit: Any) -> dict[str, Any]:
    return {k: v for k in ("ge", "gt", "le", "lt") if (v := getattr(limit, k, None)) is not None}


def _inside(limit: Any, value: Any) -> bool:
    bounds = _bounds(limit)
    return (
        value >= bounds.get("ge", value)
        and value <= bounds.get("le", value)
        and ("gt" not in bounds or value > bounds["gt"])
        and ("lt" not in bounds or value < bounds["lt"])
    )


def _describe(limit: Any) -> str:
    bounds = _bounds(limit)
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is not None and high is not None:
        return f"in {'[' if 'ge' in bounds else '('}{low}, {high}{']' if 'le' in bounds else ')'}"
    if high is not None:
        return f"at most {high}" if "le" in bounds else f"less than {high}"
    if "gt" in bounds:
        return f"greater than {low}"
    return "0 or more" if low == 0 else f"at least {low}"
