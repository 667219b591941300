"""The command lines of ``train.py`` and ``eval.py``."""

import json
import pathlib
import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from sdd_jax.errors import InputError

DEFAULT_CONFIG = "configs/digits.py"


def train() -> None:
    """Runs ``train.py``; exits 0 only when training is done."""
    here = pathlib.Path(sys.argv[0]).resolve().parent
    default = pathlib.Path(DEFAULT_CONFIG)
    card = config_flags.DEFINE_config_file(
        "config", str(default if default.is_file() else here / default), "Recipe card; :ARGUMENT after it."
    )
    workdir = flags.DEFINE_string("workdir", "", "Folder of the run; by default runs/CARD.")
    _define_distributed()

    def main() -> None:
        from sdd_jax.training.loop import train_and_evaluate

        name = config_flags.get_config_filename(flags.FLAGS["config"])
        train_and_evaluate(card.value, workdir.value or f"runs/{_run_name(name)}")

    _run(main)


def evaluate() -> None:
    """Runs ``eval.py``: prints the checks' figures and writes ``DIR/eval/metrics.json``."""
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    names = flags.DEFINE_list("checks", ["accuracy", "calibration"], "Which checks to run.")
    which = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
    data_dir = flags.DEFINE_string("data_dir", None, "In place of the run's config.dataset.data_dir.")
    _define_distributed()

    def main() -> None:
        from sdd_jax.evaluation.run import evaluate_workdir

        result = evaluate_workdir(
            workdir.value, names.value, checkpoint=which.value, data_dir=data_dir.value
        )
        for name, value in result.items():
            print(f"{name} {json.dumps(value)}")

    _run(main)


def _define_distributed() -> None:
    flags.DEFINE_bool("distributed", False, "Several hosts: find the others as the cluster tells.")
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, if it cannot be found.")
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

    def parse(argv):
        try:
            return app.parse_flags_with_usage(argv)
        except (InputError, AttributeError, TypeError, ValueError, OSError) as error:
            _fail(2, error)

    def guarded(argv):
        if len(argv) > 1:
            _fail(2, f"unexpected argument {argv[1]!r}; flags begin with --")
        logging.set_verbosity(logging.WARNING)  # Orbax tells every detail of every save
        _initialize_distributed()
        from sdd_jax.training.loop import Interrupted, NonFiniteLossError

        try:
            main()
        except InputError as error:
            _fail(2, error)
        except NonFiniteLossError as error:
            _fail(1, error)
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(143)

    app.run(guarded, flags_parser=parse)


def _fail(status: int, error: object) -> None:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(status)
