"""What ends a program and is said in one line: bad input, and what fails while it runs."""

import contextlib
from collections.abc import Iterator


class Failure(Exception):
    """The command line prints the message without a traceback, and exits with ``status``."""

    status = 1


class InputError(Failure, ValueError):
    """The user's input cannot be used."""

    status = 2


class WriteError(Failure):
    """Something cannot be written: the disk is full, or read-only, or nobody reads the output."""


def check(ok: bool, field: str, value: object, allowed: str) -> None:
    """Raises ``InputError("FIELD: must be ALLOWED, got VALUE")`` unless ``ok``."""
    if not ok:
        raise InputError(f"{field}: must be {allowed}, got {value!r}")


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Around what writes ``what``.

    Raises:
      WriteError: the system does not let it; the message has its reason.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"{what} cannot be written: {error.strerror or error}") from error
