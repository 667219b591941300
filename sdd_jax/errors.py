"""What bad input gets: one line that names the field, the value and what is allowed."""

LONGEST = 1000  # characters; what is longer holds somebody's file, or a value that went wrong


class InputError(ValueError):
    """The user's input cannot be used; the command line prints the message without a traceback.

    Whatever values and errors of other libraries the message quotes, it is one line that can be printed.
    """

    def __init__(self, message: str):
        line = " ".join(message.splitlines())
        if len(line) > LONGEST:
            line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
        super().__init__(line.encode(errors="backslashreplace").decode())


def check(ok: bool, field: str, value: object, allowed: str) -> None:
    """Raises ``InputError("FIELD: must be ALLOWED, got VALUE")`` unless ``ok``."""
    if not ok:
        raise InputError(f"{field}: must be {allowed}, got {value!r}")
