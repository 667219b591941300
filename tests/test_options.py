"""Options: defaults, types and ranges from signatures."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Literal

import annotated_types as at
import numpy as np
import pytest

from sdd_jax import options
from sdd_jax.errors import InputError
from sdd_jax.options import Count, Fraction, NonNegative, Positive, Rate, Size


def example(
    provided,
    *,
    number: float = 1,
    share: Fraction = 0.5,
    rate: Rate = 0.0,
    weight: NonNegative = 1.0,
    temperature: Positive = 3.0,
    width: Size = 8,
    count: Count = 0,
    bounded: Annotated[int, at.Interval(ge=2, le=9)] = 2,
    below: Annotated[int, at.Lt(3)] = 0,
    mode: Literal["both", "forward"] = "both",
    flag: bool = False,
    names: Sequence[str] = (),
    sizes: tuple[int, ...] = (1,),
    rates: Annotated[tuple[Rate, ...], at.MinLen(1)] = (0.1,),
    plain="text",
    either: float | None = None,
    later: "float" = 0.5,
):
    """A function with an option of every kind."""


def test_defaults_are_the_parameters_that_have_one():
    found = options.defaults(example)
    assert "provided" not in found
    assert found["temperature"] == 3.0
    assert found["sizes"] == (1,)


def test_positional_only_parameters_are_no_options():
    def function(seed=0, /, *, name="digits"): ...

    assert options.defaults(function) == {"name": "digits"}
    with pytest.raises(InputError, match=r"^seed: unknown field; expected name$"):
        options.validate(function, {"seed": 1})


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("number", "fast", "a finite number of 32 bits"),
        ("number", math.nan, "a finite number of 32 bits"),
        ("number", math.inf, "a finite number of 32 bits"),
        ("number", 1e300, "a finite number of 32 bits"),
        ("number", False, "a finite number of 32 bits"),
        ("share", 1.5, "in [0, 1]"),
        ("rate", 1.0, "in [0, 1)"),
        ("rate", -0.1, "in [0, 1)"),
        ("weight", -1.0, "0 or more"),
        ("temperature", 0.0, "greater than 0"),
        ("width", 0, "at least 1"),
        ("width", 2.0, "a whole number of 32 bits"),
        ("width", 2**32, "a whole number of 32 bits"),
        ("width", None, "a whole number of 32 bits"),
        ("count", -1, "0 or more"),
        ("bounded", 10, "in [2, 9]"),
        ("below", 3, "less than 3"),
        ("mode", "up", "one of both, forward"),
        ("mode", 3, "one of both, forward"),
        ("flag", 1, "True or False"),
        ("names", "a", "a list of strings"),
        ("names", (1,), "a list of strings"),
        ("sizes", (1.5,), "a list of whole numbers of 32 bits"),
        ("rates", (0.5, 1.0), "a list of numbers, each in [0, 1)"),
        ("rates", (), "a list that is not empty"),
        ("plain", 3, "a string"),
        ("later", "soon", "a finite number of 32 bits"),
    ],
)
def test_a_value_of_another_type_or_outside_its_range_is_refused(option, value, allowed):
    message = f"{option}: must be {allowed}, got {value!r}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        options.validate(example, {option: value})


def test_values_become_plain_python():
    values = {"number": 2, "sizes": [2, 3], "rates": [0], "width": np.int64(7), "either": "any"}
    validated = options.validate(example, values)
    assert validated == {
        "number": 2.0,
        "sizes": (2, 3),
        "rates": (0.0,),
        "width": 7,
        "either": "any",
    }
    assert {type(validated["number"]), type(validated["rates"][0])} == {float}
    assert type(validated["width"]) is int


def test_an_unknown_option_is_refused_with_the_known_ones():
    def bare(*, size: Size = 1): ...

    with pytest.raises(InputError, match=r"^colour: unknown field; expected size$"):
        options.validate(bare, {"colour": "red"})
