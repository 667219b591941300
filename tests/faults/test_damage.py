"""Truncated, emptied, bit-flipped and removed files of a run."""

import collections
import json
import random
import shutil
import signal

import jax
import numpy as np
import pytest

from sdd_jax import train
from sdd_jax.errors import InputError
from sdd_jax.models import build, models
from sdd_jax.runs import Checkpoints
from sdd_jax.training.optimizers import optimizers
from sdd_jax.training.state import create

# TensorStore's pending reads outlive the event loop of a read that failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def flip(path, fraction):
    """Flips one random bit of the byte at ``fraction`` of the file's length."""
    data = bytearray(path.read_bytes())
    data[round(fraction * (len(data) - 1))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


DAMAGES = {
    "cut to half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
    "one bit": lambda path: flip(path, random.random()),
}


@pytest.fixture(scope="module")
def state():
    """A training state large enough that Orbax gives some arrays their own files."""
    model = build({"name": "mlp", "width": 40, "depth": 2}, num_classes=3)
    optimizer = optimizers.build({"name": "sgd"}, schedule=lambda rate: rate)
    return jax.device_get(create(model, optimizer, seed=0, image_shape=(4, 4, 1)))


def at(state, step):
    shift = np.float32(step)
    params = jax.tree.map(lambda x: x + shift, state.params)
    return state.replace(step=np.int32(step), params=params)


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    """Two workdirs: one with checkpoints 1 and 2, one with checkpoint 2 only."""
    folders = {}
    for name, steps in (("two", (1, 2)), ("one", (2,))):
        folders[name] = tmp_path_factory.mktemp("saved") / name
        checkpoints = Checkpoints(folders[name])
        for step in steps:
            checkpoints.save(step, at(state, step), validation_accuracy=step / 10)
        checkpoints.close()
    return folders


def restored(folder, state, reader):
    """Restored step, or None if refused, and a flag: the arrays equal the saved ones."""
    checkpoints = Checkpoints(folder, read_only=reader == "variables")
    try:
        if reader == "variables":
            like = {"params": state.params, "batch_stats": state.batch_stats}
            step, variables = checkpoints.restore_variables(like)
            return step, equal(variables, like | {"params": at(state, step).params})
        result = checkpoints.restore(state)
        return int(result.step), equal(result, at(state, int(result.step)))
    except InputError:
        return None, True
    finally:
        checkpoints.close()


@pytest.mark.parametrize("reader", ["state", "variables"])
@pytest.mark.parametrize("num_checkpoints", ["two", "one"])
def test_restored_arrays_equal_the_saved_ones_whichever_file_is_damaged(
    saved, state, num_checkpoints, reader, tmp_path, report, caplog
):
    source, outcomes = saved[num_checkpoints], collections.Counter()
    files = [p for p in (source / "checkpoints" / "2").rglob("*") if p.is_file()]
    assert len(files) > 10
    for number, file in enumerate(files):
        for damage, apply in DAMAGES.items():
            folder = tmp_path / f"{number}"
            shutil.copytree(source, folder)
            apply(folder / file.relative_to(source))
            caplog.clear()
            case = f"{file.relative_to(source)}, {damage}"
            step, equal_saved = restored(folder, state, reader)
            assert equal_saved, case
            assert (step == 2) == ("2 is damaged" not in caplog.text), case
            assert (step is None) <= (num_checkpoints == "one"), case
            outcomes[{None: "refused", 1: "fell_back", 2: "harmless"}[step]] += 1
            shutil.rmtree(folder)
    name = f"{num_checkpoints} checkpoint{'s' if num_checkpoints == 'two' else ''}, {reader}"
    totals = {"files": len(files), "damages": len(DAMAGES), "tried": len(files) * len(DAMAGES)}
    report("damage", name, totals | outcomes)


def test_a_run_resumes_from_the_previous_checkpoint_with_one_warning(
    programs, tiny, uninterrupted, ends_like, inspect, tmp_path
):
    shutil.copytree(uninterrupted, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "60"
    flip(max(newest.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0), 0.5)
    done = programs.finished(tmp_path / "run", *tiny)
    assert "resuming after step 50" in done.stdout
    assert done.stderr.count("\n") == 1
    assert "60 is damaged" in done.stderr
    assert "falling back to the one before" in done.stderr
    assert "Traceback" not in done.stderr
    ends_like(tmp_path / "run", uninterrupted)


def test_a_run_without_a_readable_checkpoint_stops(
    programs, tiny, uninterrupted, refused, inspect, tmp_path
):
    shutil.copytree(uninterrupted, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*/state/*.ocdbt"):
        DAMAGES["cut to half"](path)
    before = inspect(tmp_path / "run").digests
    for script in ("eval.py", "train.py", "train.py"):  # a supervisor starts it again
        arguments = tiny if script == "train.py" else ()
        done = programs.run(script, f"--workdir={tmp_path / 'run'}", *arguments)
        *warnings, last = done.stderr.splitlines(keepends=True)
        refused(2, done.returncode, last, "no checkpoint can be read, of steps [40, 50, 60]")
        assert len([line for line in warnings if "is damaged" in line]) == len(warnings) == 3
    assert inspect(tmp_path / "run").digests == before
    assert inspect(tmp_path / "run").lines == inspect(uninterrupted).lines


CONFIGS = {
    **DAMAGES,
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "another kind": lambda path: path.write_text("[1, 2]"),
    "no section": lambda path: path.write_text('{"config": {"model": 5}}'),
    "no number": lambda path: path.write_text('{"config": {"seed": "x"}}'),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", [name for name in CONFIGS if name not in ("removed", "one bit")])
def test_a_damaged_config_file_stops_the_run_and_keeps_its_checkpoints(finished, damage, tmp_path):
    config, reference, _ = finished
    shutil.copytree(reference, tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run/checkpoints").rglob("*") if p.is_file()}
    CONFIGS[damage](tmp_path / "run" / "config.json")
    with pytest.raises(InputError) as error:
        train.train_and_evaluate(config, str(tmp_path / "run"))
    assert "\n" not in str(error.value)
    assert before == {p: p.read_bytes() for p in before}


def test_a_flipped_bit_in_the_config_file_is_refused_or_harmless(finished, tmp_path):
    config, reference, result = finished
    shutil.copytree(reference, tmp_path / "run")
    refused = 0
    for _ in range(60):
        shutil.copy(reference / "config.json", tmp_path / "run")
        flip(tmp_path / "run" / "config.json", random.random())
        try:
            assert train.train_and_evaluate(config, str(tmp_path / "run")) == result
        except InputError:
            refused += 1
    assert refused


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Config, workdir and result of a run of 12 steps, evaluated and saved every 4."""
    from sdd_jax import config as configs

    config = configs.default()
    config.model = models.options("mlp", width=8, depth=1)
    config.batch_size, config.duration = 64, "12 steps"
    config.log_every, config.eval_every, config.checkpoint_every = "2 steps", "4 steps", "4 steps"
    folder = tmp_path_factory.mktemp("finished") / "run"
    return config, folder, train.train_and_evaluate(config, str(folder))


@pytest.fixture(scope="module")
def stopped(finished, tmp_path_factory):
    """Workdir of the same run, stopped after step 10."""
    config, _, _ = finished
    folder = tmp_path_factory.mktemp("stopped") / "run"
    compiled = train.compile_train_call

    def compile_and_stop(*arguments):
        call = compiled(*arguments)

        def stopping_call(state, *rest):
            if int(state.step) == 9:
                signal.raise_signal(signal.SIGTERM)
            return call(state, *rest)

        return stopping_call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "compile_train_call", compile_and_stop)
        with pytest.raises(train.Interrupted, match="after step 10, which is saved"):
            train.train_and_evaluate(config, str(folder))
    return folder


def replace_third_line(text, line):
    lines = text.splitlines(keepends=True)
    return b"".join([*lines[:2], line, *lines[3:]])


LOGS = {
    "cut in a line": lambda text: text[:-20],
    "garbage in the middle": lambda text: replace_third_line(text, b"}{nonsense\n"),
    "bytes of no text": lambda text: replace_third_line(text, bytes(range(128, 256)) + b"\n"),
    "zeros at the end": lambda text: text + b"\0" * 4096,
    "other values": lambda text: replace_third_line(text, b'3\n[]\n{"step": "x"}\n{}\nnull\n'),
    "emptied": lambda text: b"",
    "all of it binary": lambda text: bytes(range(256)) * 40,
}


@pytest.mark.parametrize("damage", LOGS)
def test_a_damaged_log_loses_only_its_damaged_lines(finished, stopped, inspect, damage, tmp_path):
    config, reference, result = finished
    shutil.copytree(stopped, tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_bytes(LOGS[damage](log.read_bytes()))
    assert train.train_and_evaluate(config, str(tmp_path / "run")) == result
    ours, theirs = inspect(tmp_path / "run"), inspect(reference)
    assert ours.record(12) == theirs.record(12)
    json.loads(f"[{','.join(log.read_text().splitlines())}]")  # no damaged line remains
    lost = {"cut in a line": [10], "zeros at the end": []}.get(damage, [6])
    if damage in ("emptied", "all of it binary"):
        lost = [2, 4, 6, 8, 10]
    expected = [line for line in theirs.lines if line["step"] not in lost]
    assert ours.lines == expected
