"""Errors reported in one line, without a traceback."""

import contextlib
from collections.abc import Generator

MAX_LENGTH = 1000  # characters; a longer message quotes a file or a corrupt value


class Failure(Exception):
    """Ends the command line with a one-line message and exit status ``status``.

    Line breaks and unprintable characters in the message are replaced.
    """

    status = 1

    def __init__(self, message: str):
        line = " ".join(message.splitlines())
        if len(line) > MAX_LENGTH:
            line = f"{line[: MAX_LENGTH // 2]} ... {line[-MAX_LENGTH // 2 :]}"
        super().__init__(line.encode(errors="backslashreplace").decode())


class InputError(Failure, ValueError):
    """The user's input cannot be used.

    A layer names its own argument; the caller that knows where the argument came from adds the path
    with :func:`within`, so that ``rate: must be in [0, 1), got 2`` is reported as
    ``config.sd_dropout.rate: must be in [0, 1), got 2``.

    Args:
      reason: the rule and the received value.
      field: name or dotted path of the input; empty if the reason names it.
    """

    status = 2

    def __init__(self, reason: str, *, field: str = ""):
        self.reason, self.field = reason, field
        super().__init__(f"{field}: {reason}" if field else reason)


class WriteError(Failure):
    """A file or the standard output cannot be written."""


def require(ok: bool, field: str, value: object, allowed: str) -> None:
    """Raises ``InputError("FIELD: must be ALLOWED, got VALUE")`` unless ``ok``."""
    if not ok:
        raise InputError(f"must be {allowed}, got {value!r}", field=field)


def require_array(ok: bool, array: str, value: object, allowed: str) -> None:
    """Raises ``InputError("ARRAY must be ALLOWED, got VALUE")``: an array is no value of an option."""
    if not ok:
        raise InputError(f"{array} must be {allowed}, got {value}")


@contextlib.contextmanager
def within(section: str) -> Generator[None]:
    """Prefixes the field of every :class:`InputError` raised inside with ``section``.

    A field that is complete, ``config.A.B`` or ``--FLAG``, stays as it is.
    """
    try:
        yield
    except InputError as error:
        if error.field.startswith(("config.", "--")):
            raise
        field = ".".join(filter(None, (section, error.field)))
        raise InputError(error.reason, field=field) from error.__cause__


@contextlib.contextmanager
def writing(target: object) -> Generator[None]:
    """Converts an ``OSError`` raised while writing ``target`` to a :class:`WriteError`."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{target} cannot be written: {error.strerror or error}") from error
