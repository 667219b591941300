"""Runs a process of a cluster as a child, and reports in one line if the runtime aborts it.

When a process of a job dies, or never starts, JAX's runtime aborts the others from C++, with a page of
log lines and stacks, where no handler of Python can run. Only another process can say it in one line.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from typing import IO

LOST = (
    "another process of the job has ended, or cannot be reached; start the same command again on every "
    "host to resume"
)
_ENVIRONMENT = "SDD_JAX_SUPERVISED"  # descriptors: one for events, and the standard error
_PR_SET_PDEATHSIG = 1
# From the first of these lines on, C++ tells the end of the process; they are kept back.
_ENDING = re.compile(r"[WEF]\d{4} .*(coordination|client\.h|distributed)|Fatal Python error")
_GREETING = re.compile(r"\[Gloo\] Rank \d+ is connected")


def is_supervised() -> bool:
    """True in the child."""
    return _ENVIRONMENT in os.environ


def take_standard_error() -> None:
    """In the child: writes Python's messages to the terminal; the runtime's go to the supervisor."""
    _, terminal = os.environ[_ENVIRONMENT].split()
    sys.stderr = os.fdopen(int(terminal), "w", buffering=1, errors="backslashreplace")


def report(event: str) -> None:
    """In the child: "joined", the processes of the job have found each other; or "failed STATUS".

    A failure has been told on the standard error; what the runtime adds as the process ends is not.
    """
    events, _ = os.environ[_ENVIRONMENT].split()
    os.write(int(events), f"{event}\n".encode())


def supervise(never_joined: str) -> int:
    """Runs this command in a child process.

    Signals to stop are passed on. If this process is killed, so is the child.

    Args:
      never_joined: the message if the runtime ends the child before it has joined the job.

    Returns:
      The exit status of the child; 1 if the runtime aborted it.
    """
    receiving, events = os.pipe()
    terminal = os.dup(2)
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {_ENVIRONMENT: f"{events} {terminal}"},
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        pass_fds=(events, terminal),
        start_new_session=True,  # Ctrl-C comes from here alone
        preexec_fn=_die_with_parent,
    )
    os.close(events)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: child.send_signal(number))
    ending: list[str] = []
    reported: list[str] = []
    assert child.stderr is not None
    relay = threading.Thread(target=_relay, args=(child.stderr, ending), daemon=True)
    relay.start()
    status = child.wait()
    relay.join(5)
    os.set_blocking(receiving, False)
    with contextlib.suppress(BlockingIOError):  # nothing there, and a worker has the other end
        reported = os.read(receiving, 1000).decode().splitlines()
    if reported and reported[-1].startswith("failed"):
        return int(reported[-1].split()[1])
    if status in (-signal.SIGABRT, -signal.SIGSEGV):
        print(f"error: {LOST if reported else never_joined}", file=sys.stderr)
        return 1
    sys.stderr.writelines(ending)
    return status if status >= 0 else 128 - status


def _relay(stream: IO[str], ending: list[str]) -> None:
    """Passes on what the runtime says, but for the lines of its end."""
    for line in stream:
        if ending or _ENDING.match(line):
            ending.append(line)
        elif not _GREETING.match(line):
            sys.stderr.write(line)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
