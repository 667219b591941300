"""The command lines ``train``, ``eval`` and ``compile``: flags, help, and failures in one line."""

import contextlib
import faulthandler
import io
import json
import logging
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from sdd_jax import cards, supervisor
from sdd_jax.devices import (
    enable_compilation_cache,
    join_cluster,
    leave_cluster,
    let_cpu_collectives_wait,
    start_backend,
)
from sdd_jax.errors import Failure, InputError, require, writing
from sdd_jax.overrides import (
    A_DICT,
    merge_sections,
    parse_sweeps,
    select_entries,
    unknown_field,
)

DEFAULT_CARD = "digits"
HELP_WIDTH, HELP_INDENT = 80, 25  # columns
CLUSTER = ("coordinator_address", "num_processes", "process_id")


def train() -> None:
    """Runs ``train``; exits 0 only when training is done."""
    _prepare_process()
    # No default in the flag itself: overrides for another card would be applied to it.
    card = config_flags.DEFINE_config_file(
        "config", None, "Recipe card: a name or a file; :ARGUMENT after it. By default digits."
    )
    workdir = flags.DEFINE_string("workdir", "", "Folder of the run. By default runs/CARD.")
    trust = flags.DEFINE_bool(
        "trust_imports", False, "Execute the Python files that the teacher's config imports."
    )
    sweeps = flags.DEFINE_multi_string(
        "sweep",
        [],
        "FIELD=VALUE,VALUE,... A run for each value; validation selects one. Repeated: a grid.",
    )
    _define_distributed()

    def names() -> dict[str, Sequence[str]]:
        from sdd_jax.models import models
        from sdd_jax.objectives import objectives

        return {
            "cards (sdd-jax cards describes them)": cards.names(),
            "networks (config.model.name)": models.names(),
            "objectives (config.objective.name)": objectives.names(),
        }

    _show_help(
        "Trains a network, or resumes the run in its folder.",
        "[--config=CARD] [--config.FIELD=VALUE ...]",
        "--config=digits:ce --config.optimizer.learning_rate=0.1",
        names,
    )
    _locate_card()

    def main() -> None:
        from sdd_jax.sweep import train_and_select
        from sdd_jax.train import train_and_evaluate

        grid = parse_sweeps(sweeps.value)
        name = _run_name(config_flags.get_config_filename(flags.FLAGS["config"]))
        folder = workdir.value or f"runs/{name}{'-sweep' if grid else ''}"
        enable_compilation_cache(folder)
        if grid:
            train_and_select(card.value, grid, folder, trust_imports=trust.value)
        else:
            train_and_evaluate(card.value, folder, trust_imports=trust.value)

    _run(main)


def evaluate() -> None:
    """Runs ``eval``: prints the results and writes them, plots and a report to a folder."""
    _prepare_process()
    from sdd_jax.config import default

    workdir = flags.DEFINE_string("workdir", "", "Folder of the run.")
    selected = flags.DEFINE_list(
        "checks",
        ["accuracy", "calibration"],
        "CHECK,CHECK,... or all. By default accuracy,calibration.",
    )
    compare = flags.DEFINE_list("compare", [], "DIR,DIR,... Runs to compare with in the report.")
    which = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
    output = flags.DEFINE_string("output", "", "Folder of the results. By default WORKDIR/eval.")
    trust = flags.DEFINE_bool(
        "trust_imports", False, "Execute the Python files that the runs' configs import."
    )
    full = default()
    folders = {key: full.dataset[key] for key in ("data_dir", "cache_dir")}
    replaceable = ConfigDict({"eval": full.eval, "dataset": folders})
    if message := unknown_field(sys.argv, replaceable.to_dict()):
        _fail(2, message)
    config_flags.DEFINE_config_dict(
        "config", replaceable, "Overrides, --config.eval.FIELD=VALUE, of the runs' configs."
    )
    _define_distributed()

    def names() -> dict[str, Sequence[str]]:
        from sdd_jax.evaluation.checks import checks

        return {"checks": checks.names()}

    _show_help(
        "Evaluates a run: prints the results and writes them, plots and a report.",
        "--workdir=DIR [--checks=CHECK,...] [--FLAG=VALUE ...]",
        "--workdir=runs/digits --checks=accuracy,calibration,mc_dropout",
        names,
    )

    def main() -> None:
        from sdd_jax.evaluate import evaluate_workdir

        require(bool(workdir.value), "--workdir", workdir.value, "the folder of a run")
        enable_compilation_cache(output.value or workdir.value)  # the run may be read-only
        evaluate_workdir(
            workdir.value,
            selected.value,
            compare=compare.value,
            checkpoint=which.value,
            overrides=config_flags.get_override_values(flags.FLAGS["config"]),
            output=output.value or None,
            trust_imports=trust.value,
        )

    _run(main)


def compile_only() -> None:
    """Runs ``compile``; exits 0 only if the program fits into the chips of every topology."""
    _prepare_process()
    card = config_flags.DEFINE_config_file(
        "config", None, "Recipe card: a name or a file; :ARGUMENT after it. By default digits."
    )
    selected = flags.DEFINE_list(
        "topology",
        ["v5e:2x2"],
        "TOPOLOGY,TOPOLOGY,... v5e:RxC, v6e:RxC or v5p:XxYxZ. By default v5e:2x2.",
    )
    data = flags.DEFINE_string(
        "data", "", "NxHxWxC:K. N training images of K classes; for data sets that are not there."
    )
    output = flags.DEFINE_string("json", "", "File to write the figures to.")
    _show_help(
        "Compiles the training program of a card for TPUs that need not be there.",
        "[--config=CARD] [--config.FIELD=VALUE ...] [--topology=TOPOLOGY,...]",
        "--config=cifar100_resnet18 --topology=v5e:2x2,v5e:8x8 --config.batch_size=1024",
        lambda: {"cards (sdd-jax cards describes them)": cards.names()},
    )
    _locate_card()

    from sdd_jax.compile_only import compile_for, find_topology, outcome_values, table, use_one_cpu

    use_one_cpu()

    def main() -> None:
        topologies = [find_topology(name) for name in selected.value]
        reports, failures = {}, {}
        for topology in topologies:
            try:
                reports[topology.name] = compile_for(card.value, topology, data=data.value)
            except Failure as error:
                failures[topology.name] = error
        if reports:
            print(table(reports))
        if output.value:
            text = json.dumps(outcome_values(reports | failures), indent=2) + "\n"
            with writing(output.value):
                pathlib.Path(output.value).write_text(text)
        for name, error in failures.items():
            print(f"error: {name}: {error}", file=sys.stderr)
        too_large = any(report.does_not_fit for report in reports.values())
        sys.exit(max((error.status for error in failures.values()), default=int(too_large)))

    _run(main)


def _prepare_process() -> None:
    """Makes the standard streams and paths usable, and the arguments ready for ml_collections."""
    # Otherwise the next file, perhaps a checkpoint, gets the number of a closed stream, and its output.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    if supervisor.is_supervised():
        supervisor.take_standard_error()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # TensorStore encodes paths in UTF-8; if Python does not, they name different folders.
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    try:
        sys.argv[:] = merge_sections(sys.argv)
    except InputError as error:
        _fail(2, error)


def _define_distributed() -> None:
    flags.DEFINE_bool(
        "distributed", False, "Run on several hosts of a cluster: Slurm, TPU pods, ..."
    )
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0; outside a cluster.")
    flags.DEFINE_integer("num_processes", None, "Number of processes; outside a cluster.")
    flags.DEFINE_integer("process_id", None, "This process, from 0; outside a cluster.")
    flags.DEFINE_integer(
        "cluster_timeout",
        300,
        "Seconds to wait for the other processes at the start.",
        lower_bound=1,
    )


def _join_cluster() -> None:
    if CLUSTER[0] not in flags.FLAGS:
        return
    given = {name: flags.FLAGS[name].value for name in CLUSTER}
    timeout = flags.FLAGS.cluster_timeout
    joining = flags.FLAGS.distributed or given["coordinator_address"]
    for name, value in given.items():
        if value is not None and not joining:
            raise InputError("needs --distributed or --coordinator_address", field=f"--{name}")
    if not joining:
        return
    if hasattr(os, "fork") and not supervisor.is_supervised():
        sys.exit(
            supervisor.supervise(
                f"the processes of the job have not found each other within {timeout} s; start the same "
                "command on every host, with an address of process 0 that all of them reach"
            )
        )
    join_cluster(**given, timeout=timeout)
    if supervisor.is_supervised():
        supervisor.report("joined")


def _show_help(
    summary: str, arguments: str, example: str, names: Callable[[], Mapping[str, Sequence[str]]]
) -> None:
    """Prints the help and exits if the command line asks for it."""
    if "--helpfull" in sys.argv:
        app.usage(writeto_stdout=True, exitcode=0)
    if not {"-h", "-help", "--help"} & {*sys.argv[1:]}:
        return
    program = os.path.basename(sys.argv[0])
    call = f"python {program}" if program.endswith(".py") else program

    def wrapped(text: str, indent: int, label: str = "") -> str:
        label, rest = label.ljust(indent), " " * indent
        return textwrap.fill(text, HELP_WIDTH, initial_indent=label, subsequent_indent=rest)

    own = {flag.name: str(flag.help) for flag in flags.FLAGS.get_flags_for_module(__name__)}
    own["helpfull"] = "Show the other flags, too."
    listed = "\n".join(
        wrapped(text.partition(";\n")[0], HELP_INDENT, f"  --{name}")  # absl adds a clause
        for name, text in own.items()
    )
    lists = [f"{what}\n{wrapped(', '.join(entries), 2)}" for what, entries in names().items()]
    usage, example = f"usage: {call} {arguments}", f"example\n  {call} {example}"
    print(usage, summary, listed, *lists, example, sep="\n\n")
    sys.exit(0)


def _locate_card() -> None:
    """Replaces the name of a card by its path, or inserts the default card; selects entries of it."""
    path = cards.locate(DEFAULT_CARD)
    given = [i for i, a in enumerate(sys.argv) if re.match("--?config(=|$)", a)]
    try:
        for i in given:
            flag, equals, card = sys.argv[i].partition("=")
            path = cards.locate(card) if equals else ""
            sys.argv[i] = f"{flag}={path}" if equals else flag
    except InputError as error:
        _fail(2, error)
    if not given:
        sys.argv.insert(1, f"--config={path}")

    def load() -> Mapping[str, Any]:
        with contextlib.suppress(Exception):  # reported when the flags are parsed
            loaded: Any = flags.FLAGS["config"].parser.parse(path)
            return loaded.to_dict()
        return {}

    sys.argv[:] = select_entries(sys.argv, load)


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
        _show_warnings()
        sys.unraisablehook = _print_unless_late_write
        if supervisor.is_supervised():
            faulthandler.enable(2)  # absl enables it for sys.stderr
        import jax

        from sdd_jax import hosts
        from sdd_jax.buckets import BucketError
        from sdd_jax.train import Interrupted

        try:
            _join_cluster()
            start_backend()
            main()
        except Failure as error:
            _fail(error.status, error)
        except jax.errors.JaxRuntimeError as error:
            if lost := hosts.lost(error):
                _fail(lost.status, lost)
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            _fail(1, f"out of memory; use a smaller batch or network: {error}")
        except BucketError as error:
            _fail(1, f"the bucket cannot be reached: {error}")
        except MemoryError as error:
            _fail(1, f"out of host memory; use smaller data, batches or networks. {error}")
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(128 + stop.signal)

    app.run(guarded, flags_parser=_parse)


def _show_warnings() -> None:
    """Shows the warnings of this package as the errors are shown, in place of absl's prefix."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logger = logging.getLogger("sdd_jax")
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    logger.propagate = False


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
        not_a_dict = r"flag --(config\.\w+)=(.*): Failed to parse .* as a ConfigDict"
        if match := re.match(not_a_dict, str(error), re.DOTALL):
            _fail(2, InputError(f"must be {A_DICT}, got {match[2]!r}", field=match[1]))
        _, is_input_error, message = str(error).partition(f"{InputError.__name__}: ")
        _fail(2, message.partition("\n")[0] if is_input_error else error)
    except (AttributeError, KeyError, TypeError) as error:
        given = [a.partition("=")[2] for a in argv if re.match("--?config=", a)]
        parsed = flags.FLAGS["config"].parser.parse(given[-1]) if given else None
        if parsed is None:
            raise  # an error inside the card: its author needs the traceback
        _fail(2, unknown_field(argv, parsed.to_dict()) or f"--config: {error}")
    return rest


def _fail(status: int, error: object) -> NoReturn:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # otherwise the interpreter reports it again at exit and overrides our status
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if supervisor.is_supervised():
        supervisor.report(f"failed {status}")
        leave_cluster()
        os._exit(status)
    sys.exit(status)
