"""The program ``sdd-jax``, also ``python -m sdd_jax``: ``train``, ``eval``, ``compile``, ``cards``."""

import os
import sys
from typing import NoReturn

import sdd_jax
from sdd_jax import cards
from sdd_jax.errors import InputError
from sdd_jax.extras import missing, pip_command

USAGE = """\
usage: {program} COMMAND [--FLAG ...]

  train         train a network, or resume a run
  eval          evaluate a run: results, plots and a report
  compile       compile the training program for TPUs that need not be there
  cards [CARD]  list the recipe cards, or show one
  --version     print the version

train --help, eval --help and compile --help list their flags.

example
  {program} train --config=digits
  {program} eval --workdir=runs/digits"""


def main() -> None:
    """Runs ``sdd-jax COMMAND``."""
    program = "sdd-jax" if os.path.basename(sys.argv[0]) != "__main__.py" else "python -m sdd_jax"
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("train", "eval", "compile"):
        sys.argv[:] = [f"{program} {command}", *rest]
        run(command)
    elif command == "cards" and not {"-h", "--help"} & {*rest}:
        _print_cards(rest)
    elif command in ("-h", "--help", "cards"):
        print(USAGE.format(program=program))
    elif command == "--version":
        print(f"sdd_jax {sdd_jax.__version__}")
    else:
        _fail(
            2, f"{program}: there is no command {command!r}; expected train, eval, compile or cards"
        )


def run(command: str) -> None:
    """Runs a command with the flags in ``sys.argv``; ``sys.argv[0]`` is its name."""
    if names := missing("train"):
        program = os.path.basename(sys.argv[0])
        _fail(1, f"{program} needs {pip_command('train')}; not installed: {', '.join(names)}")
    try:
        from sdd_jax import cli

        {"train": cli.train, "eval": cli.evaluate, "compile": cli.compile_only}[command]()
    except KeyboardInterrupt:
        _fail(130, "interrupted")


def _print_cards(arguments: list[str]) -> None:
    try:
        for name in arguments:
            path = cards.locate(name).partition(":")[0]
            print(f"{cards.read(name).text}\n\nFile      {path}")
    except InputError as error:
        _fail(2, error)
    if not arguments:
        print(cards.table())


def _fail(status: int, error: object) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
