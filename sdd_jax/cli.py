"""The command lines of ``train.py`` and ``eval.py``."""

import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from sdd_jax.devices import enable_compilation_cache, let_cpu_collectives_wait
from sdd_jax.errors import Failure, InputError, require

DEFAULT_CARD = "configs/digits.py"


def train() -> None:
    """Runs ``train.py``; exits 0 only when training is done."""
    # No default in the flag itself: overrides for another card would be applied to it.
    card = config_flags.DEFINE_config_file("config", None, "Recipe card; :ARGUMENT after it.")
    workdir = flags.DEFINE_string("workdir", "", "Folder of the run; by default runs/CARD.")
    _define_distributed()
    if not any(re.match("--?config(=|$)", argument) for argument in sys.argv):
        root = pathlib.Path(sys.argv[0]).resolve().parent
        sys.argv.insert(1, f"--config={root / DEFAULT_CARD}")

    def main() -> None:
        from sdd_jax.train import train_and_evaluate

        name = config_flags.get_config_filename(flags.FLAGS["config"])
        folder = workdir.value or f"runs/{_run_name(name)}"
        enable_compilation_cache(folder)
        train_and_evaluate(card.value, folder)

    _run(main)


def evaluate() -> None:
    """Runs ``eval.py``: prints the results and writes them, plots and a report to ``DIR/eval``."""
    from sdd_jax.config import default

    workdir = flags.DEFINE_string("workdir", "", "Folder of the run.")
    names = flags.DEFINE_list("checks", ["accuracy", "calibration"], "Checks to run, or all.")
    compare = flags.DEFINE_list("compare", [], "Workdirs of runs to compare with in the report.")
    which = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
    full = default()
    folders = {key: full.dataset[key] for key in ("data_dir", "cache_dir")}
    replaceable = ConfigDict({"eval": full.eval, "dataset": folders})
    if message := _unknown_override(sys.argv, replaceable):
        _fail(2, message)
    config_flags.DEFINE_config_dict(
        "config", replaceable, "Overrides of fields of the runs' configs."
    )
    _define_distributed()

    def main() -> None:
        from sdd_jax.evaluate import evaluate_workdir

        require(bool(workdir.value), "--workdir", workdir.value, "the folder of a run")
        enable_compilation_cache(workdir.value)
        evaluate_workdir(
            workdir.value,
            names.value,
            compare=compare.value,
            checkpoint=which.value,
            overrides=config_flags.get_override_values(flags.FLAGS["config"]),
        )

    _run(main)


def _define_distributed() -> None:
    flags.DEFINE_bool(
        "distributed", False, "Run on several hosts; detect them from the cluster environment."
    )
    flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of process 0, if it cannot be detected."
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes, if it cannot be detected.")
    flags.DEFINE_integer(
        "process_id", None, "Index of this process, from 0, if it cannot be detected."
    )


def _initialize_distributed() -> None:
    args = flags.FLAGS
    if args.distributed or args.coordinator_address:
        import jax

        jax.distributed.initialize(args.coordinator_address, args.num_processes, args.process_id)


def _run_name(card: str) -> str:
    """``configs/digits.py:ce`` -> ``digits-ce``."""
    path, _, argument = card.partition(":")
    return "-".join([pathlib.Path(path).stem, *filter(None, argument.split(","))])


def _run(main: Callable[[], None]) -> None:
    """Parses the flags and runs ``main``; failures are reported in one line."""
    # Only where the user creates CPU devices: a jaxlib that lacks one of these flags would abort.
    created = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if created or "JAX_NUM_CPU_DEVICES" in os.environ:
        let_cpu_collectives_wait()

    def guarded(argv):
        if len(argv) > 1:
            _fail(2, f"unexpected argument {argv[1]!r}; flags begin with --")
        # Orbax logs every save in detail and repeats each failure per waiting thread.
        absl_logging.set_verbosity(absl_logging.FATAL)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        logging.getLogger("sdd_jax").setLevel(logging.WARNING)
        sys.unraisablehook = _print_unless_late_write
        _initialize_distributed()
        import jax

        from sdd_jax.train import Interrupted

        try:
            main()
        except Failure as error:
            _fail(error.status, error)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            _fail(1, f"out of memory; use a smaller batch or network: {error}")
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(143)
        except KeyboardInterrupt:
            sys.exit(130)

    for flag in flags.FLAGS.get_flags_for_module(__name__):  # so that --help shows them
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(guarded, flags_parser=_parse)


def _print_unless_late_write(unraisable: Any) -> None:
    """Drops errors of pending TensorStore writes after a failed write has closed their event loop."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; an invalid one ends the program with a one-line error."""
    rest: list[str] = []
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        # ml_collections passes on a card's own error as the text of its traceback.
        _, is_input_error, message = str(error).partition(f"{InputError.__name__}: ")
        _fail(2, message.partition("\n")[0] if is_input_error else error)
    except (AttributeError, KeyError, TypeError) as error:
        cards = [a.partition("=")[2] for a in argv if re.match("--?config=", a)]
        parsed = flags.FLAGS["config"].parser.parse(cards[-1]) if cards else None
        if parsed is None:
            raise  # an error inside the card: its author needs the traceback
        _fail(2, _unknown_override(argv, parsed) or f"--config: {error}")
    card = config_flags.get_config_filename(flags.FLAGS["config"])
    if isinstance(card, str) and not pathlib.Path(path := card.partition(":")[0]).is_file():
        _fail(2, f"--config: must be a recipe card, there is no file {path!r}")
    return rest


def _unknown_override(argv: list[str], card: ConfigDict) -> str | None:
    """The error for the first ``--config.A.B`` that names no field of the card, or None."""
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0]
        config, path = card, name.split(".")
        if path[0] != "config" or not argument.startswith("-"):
            continue
        for depth, key in enumerate(path[1:], start=1):
            if not isinstance(config, ConfigDict) or key not in config:
                fields = ", ".join(config) if isinstance(config, ConfigDict) else "no fields"
                return f"{'.'.join(path[: depth + 1])}: unknown field; expected {fields}"
            config = config[key]
    return None


def _fail(status: int, error: object) -> None:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # otherwise the interpreter reports it again at exit and overrides our status
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
