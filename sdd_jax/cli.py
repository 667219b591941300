"""The command lines of ``train.py`` and ``eval.py``."""

import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from sdd_jax.compilation import keep_compiled
from sdd_jax.errors import Failure, InputError, check

DEFAULT_CARD = "configs/digits.py"


def train() -> None:
    """Runs ``train.py``; exits 0 only when training is done."""
    # No default in the flag itself: overrides meant for another card would be tried on it.
    card = config_flags.DEFINE_config_file("config", None, "Recipe card; :ARGUMENT after it.")
    workdir = flags.DEFINE_string("workdir", "", "Folder of the run; by default runs/CARD.")
    _define_distributed()
    if not any(re.match("--?config(=|$)", argument) for argument in sys.argv):
        here = pathlib.Path(sys.argv[0]).resolve().parent
        sys.argv.insert(1, f"--config={here / DEFAULT_CARD}")

    def main() -> None:
        from sdd_jax.training.loop import train_and_evaluate

        name = config_flags.get_config_filename(flags.FLAGS["config"])
        folder = workdir.value or f"runs/{_run_name(name)}"
        keep_compiled(folder)
        train_and_evaluate(card.value, folder)

    _run(main)


def evaluate() -> None:
    """Runs ``eval.py``: prints the checks' figures; these, plots and a report go to ``DIR/eval``."""
    from sdd_jax.config import default

    workdir = flags.DEFINE_string("workdir", "", "Folder of the run.")
    names = flags.DEFINE_list("checks", ["accuracy", "calibration"], "Which checks to run, or all.")
    compare = flags.DEFINE_list("compare", [], "Folders of runs to stand beside it in the report.")
    which = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
    full = default()
    folders = {key: full.dataset[key] for key in ("data_dir", "cache_dir")}
    replaceable = ConfigDict({"eval": full.eval, "dataset": folders})
    if message := _unknown_override(sys.argv, replaceable):
        _fail(2, message)
    config_flags.DEFINE_config_dict(
        "config", replaceable, "What replaces fields of the runs' configs."
    )
    _define_distributed()

    def main() -> None:
        from sdd_jax.evaluation.run import evaluate_workdir

        check(bool(workdir.value), "--workdir", workdir.value, "the folder of a run")
        keep_compiled(workdir.value)
        evaluate_workdir(
            workdir.value,
            names.value,
            compare=compare.value,
            checkpoint=which.value,
            overrides=config_flags.get_override_values(flags.FLAGS["config"]),
        )

    _run(main)


def _define_distributed() -> None:
    flags.DEFINE_bool("distributed", False, "Several hosts: find the others as the cluster tells.")
    flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of process 0, if it cannot be found."
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes, if it cannot be found.")
    flags.DEFINE_integer("process_id", None, "This process, from 0, if it cannot be found.")


def _initialize_distributed() -> None:
    given = flags.FLAGS
    if given.distributed or given.coordinator_address:
        import jax

        jax.distributed.initialize(given.coordinator_address, given.num_processes, given.process_id)


def _run_name(card: str) -> str:
    """``configs/digits.py:ce`` -> ``digits-ce``."""
    path, _, argument = card.partition(":")
    return "-".join([pathlib.Path(path).stem, *filter(None, argument.split(","))])


def _run(main: Callable[[], None]) -> None:
    """Parses the flags and runs ``main``; what the user can mend is said in one line."""

    def guarded(argv):
        if len(argv) > 1:
            _fail(2, f"unexpected argument {argv[1]!r}; flags begin with --")
        # Orbax tells every detail of every save, and what fails as often as threads wait for it.
        absl_logging.set_verbosity(absl_logging.FATAL)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        logging.getLogger("sdd_jax").setLevel(logging.WARNING)
        _initialize_distributed()
        from sdd_jax.training.loop import Interrupted

        try:
            main()
        except Failure as error:
            _fail(error.status, error)
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(143)
        except KeyboardInterrupt:
            sys.exit(130)

    for flag in flags.FLAGS.get_flags_for_module(__name__):  # so that --help shows them
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """Flags from the command line; a wrong one ends the program with one line."""
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        # ml_collections hands on a card's own error as the text of its traceback.
        _, of_ours, message = str(error).partition(f"{InputError.__name__}: ")
        _fail(2, message.partition("\n")[0] if of_ours else error)
    except (AttributeError, KeyError, TypeError):
        cards = [a.partition("=")[2] for a in argv if re.match("--?config=", a)]
        parsed = flags.FLAGS["config"].parser.parse(cards[-1]) if cards else None
        message = None if parsed is None else _unknown_override(argv, parsed)
        if message is None:
            raise  # a fault inside the card: its author needs the traceback
        _fail(2, message)
    card = config_flags.get_config_filename(flags.FLAGS["config"])
    if isinstance(card, str) and not pathlib.Path(path := card.partition(":")[0]).is_file():
        _fail(2, f"--config: must be a recipe card, there is no file {path!r}")
    return rest


def _unknown_override(argv: list[str], card: ConfigDict) -> str | None:
    """Which ``--config.A.B`` of the command line names no field of the card."""
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0]
        config, path = card, name.split(".")
        if path[0] != "config" or not argument.startswith("-"):
            continue
        for depth, key in enumerate(path[1:], start=1):
            if not isinstance(config, ConfigDict) or key not in config:
                fields = ", ".join(config) if isinstance(config, ConfigDict) else "no fields"
                return f"{name}: there is no such field; {'.'.join(path[:depth])} has {fields}"
            config = config[key]
    return None


def _fail(status: int, error: object) -> None:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # Python would say so once more at its end, and with a status of its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
