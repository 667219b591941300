"""What ends a program and is said in one line: bad input, and what fails while it runs."""

import contextlib
from collections.abc import Iterator

LONGEST = 1000  # characters; what is longer holds somebody's file, or a value that went wrong


class Failure(Exception):
    """The command line prints the message without a traceback, and exits with ``status``.

    Whatever values and errors of other libraries the message quotes, it is one line that can be printed.
    """

    status = 1

    def __init__(self, message: str):
        line = " ".join(message.splitlines())
        if len(line) > LONGEST:
            line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
        super().__init__(line.encode(errors="backslashreplace").decode())


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
