"""The command lines of ``train.py`` and ``eval.py``."""

import ast
import io
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from sdd_jax.devices import enable_compilation_cache, let_cpu_collectives_wait
from sdd_jax.errors import Failure, InputError, require

DEFAULT_CARD = "configs/digits.py"
A_DICT = "a dict such as {'name': 'NAME', 'OPTION': VALUE}"
A_SWEEP = "FIELD=VALUE,VALUE,... without empty values and with all brackets and quotes closed"

_OVERRIDE = re.compile(
    r"--?(?P<no>no)?config\.(?P<section>\w+)(\.(?P<field>[^=]+))?(=(?P<value>.*))?", re.DOTALL
)
_SWEEP = re.compile(r"\s*(config\.)?(?P<field>\w+(\.\w+)?)\s*=(?P<values>.*)", re.DOTALL)
_TOKEN = re.compile(r"""'(\\.|[^'\\])*'|"(\\.|[^"\\])*"|.""", re.DOTALL)
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def train() -> None:
    """Runs ``train.py``; exits 0 only when training is done."""
    _prepare_process()
    # No default in the flag itself: overrides for another card would be applied to it.
    card = config_flags.DEFINE_config_file("config", None, "Recipe card; :ARGUMENT after it.")
    workdir = flags.DEFINE_string("workdir", "", "Folder of the run; by default runs/CARD.")
    trust = flags.DEFINE_bool(
        "trust_imports", False, "Execute the Python files that the teacher's config imports."
    )
    sweeps = flags.DEFINE_multi_string(
        "sweep",
        [],
        "FIELD=VALUE,VALUE,... Train a run for each value and select one on the validation split; "
        "repeated: a grid. By default in runs/CARD-sweep.",
    )
    _define_distributed()
    if not any(re.match("--?config(=|$)", argument) for argument in sys.argv):
        root = pathlib.Path(sys.argv[0]).resolve().parent
        sys.argv.insert(1, f"--config={root / DEFAULT_CARD}")

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
    """Runs ``eval.py``: prints the results and writes them, plots and a report to a folder."""
    _prepare_process()
    from sdd_jax.config import default

    workdir = flags.DEFINE_string("workdir", "", "Folder of the run.")
    names = flags.DEFINE_list("checks", ["accuracy", "calibration"], "Checks to run, or all.")
    compare = flags.DEFINE_list("compare", [], "Workdirs of runs to compare with in the report.")
    which = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
    output = flags.DEFINE_string("output", "", "Folder of the results; by default WORKDIR/eval.")
    trust = flags.DEFINE_bool(
        "trust_imports", False, "Execute the Python files that the runs' configs import."
    )
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
        enable_compilation_cache(output.value or workdir.value)  # the run may be read-only
        evaluate_workdir(
            workdir.value,
            names.value,
            compare=compare.value,
            checkpoint=which.value,
            overrides=config_flags.get_override_values(flags.FLAGS["config"]),
            output=output.value or None,
            trust_imports=trust.value,
        )

    _run(main)


def merge_sections(argv: Sequence[str]) -> list[str]:
    """Merges ``--config.SECTION.FIELD=VALUE`` into ``--config.SECTION={...}`` if both are given.

    ml_collections would look for the fields in the card's section, which may select another entry. The
    order does not matter: the last ``--config.SECTION`` is refined by the last value of each field. A
    value is a Python literal, or else a string: its type is unknown until ``config.imports`` are
    imported, and :func:`sdd_jax.config.complete` checks it.

    Raises:
      InputError: the section is not a dict.

    Example:
      >>> merge_sections(["--config.model={'name': 'mlp'}", "--seed=1", "--config.model.width=8"])
      ["--config.model={'name': 'mlp', 'width': 8}", '--seed=1']
    """
    arguments, rest = [], list(argv)
    while rest:
        argument = rest.pop(0)
        if re.fullmatch(r"--?config\.[\w.]+", argument) and rest and not rest[0].startswith("--"):
            argument += f"={rest.pop(0)}"
        arguments.append(argument)
    overrides = [_OVERRIDE.fullmatch(argument) for argument in arguments]
    sections = {m["section"]: m["value"] for m in overrides if m and not m["field"]}
    merged: dict[str, dict[str, Any]] = {}
    for match in overrides:
        if match and match["field"] and (section := match["section"]) in sections:
            whole = merged.get(section, _literal(sections[section]))
            require(isinstance(whole, dict), f"config.{section}", sections[section], A_DICT)
            value = not match["no"] if match["value"] is None else _literal(match["value"])
            merged[section] = whole | {match["field"]: value}
    result = []
    for argument, match in zip(arguments, overrides, strict=True):
        if not match or match["section"] not in merged:
            result.append(argument)
        elif not match["field"]:
            result.append(f"--config.{match['section']}={merged[match['section']]!r}")
    return result


def parse_sweeps(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Parses the values of ``--sweep``: ``{field: values}``.

    Commas in brackets or quotes do not separate values. A value is a Python literal, or else a string,
    as in :func:`merge_sections`. A field may have the prefix ``config.``.

    Raises:
      InputError: a text is malformed, a value is empty, or a field is given twice.

    Example:
      >>> parse_sweeps(["sd_dropout.weight=0,0.1", "sd_dropout.random_rate=(),(0.1, 0.5)"])
      {'sd_dropout.weight': [0, 0.1], 'sd_dropout.random_rate': [(), (0.1, 0.5)]}
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        match = _SWEEP.fullmatch(text)
        values = _split(match["values"]) if match else []
        if not match or not values or "" in values:
            raise InputError(f"must be {A_SWEEP}, got {text!r}", field="--sweep")
        require(match["field"] not in grid, "--sweep", text, "one list of values for each field")
        grid[match["field"]] = [_literal(value) for value in values]
    return grid


def _split(text: str) -> list[str]:
    """Splits at the commas outside brackets and quotes; empty if one of these is not closed."""
    parts, closing = [""], []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "," and not closing:
            parts.append("")
            continue
        parts[-1] += token
        if token in _CLOSING:
            closing.append(_CLOSING[token])
        elif token in (*_CLOSING.values(), "'", '"') and (not closing or closing.pop() != token):
            return []
    return [] if closing else [part.strip() for part in parts]


def _literal(text: Any) -> Any:
    if text in ("true", "false"):  # as absl writes them
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text


def _prepare_process() -> None:
    """Makes the standard streams and paths usable, and the arguments ready for ml_collections."""
    # Otherwise the next file, perhaps a checkpoint, gets the number of a closed stream, and its output.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
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
        _show_warnings()
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
        except MemoryError as error:
            _fail(1, f"out of host memory; use smaller data, batches or networks. {error}")
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(143)
        except KeyboardInterrupt:
            sys.exit(130)

    for flag in flags.FLAGS.get_flags_for_module(__name__):  # so that --help shows them
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
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
