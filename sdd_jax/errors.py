"""What bad input gets: one line that names the field, the value and what is allowed."""


class InputError(ValueError):
    """The user's input cannot be used; the command line prints the message without a traceback."""


def check(ok: bool, field: str, value: object, allowed: str) -> None:
    """Raises ``InputError("FIELD: must be ALLOWED, got VALUE")`` unless ``ok``."""
    if not ok:
        raise InputError(f"{field}: must be {allowed}, got {value!r}")
