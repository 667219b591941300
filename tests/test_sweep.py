"""Sweeps: parsing, refused settings, selection by validation, resuming, and the selected card."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import pytest

from benchmarks.measure import load_card
from sdd_jax import config as configs
from sdd_jax import sweep, train
from sdd_jax.cli import parse_sweeps
from sdd_jax.data import load
from sdd_jax.errors import InputError, WriteError
from sdd_jax.runs import open_workdir, read_metrics
from sdd_jax.sweep import Candidate, Outcome, candidates, select, table, train_and_select

WEIGHTS = {"sd_dropout.weight": [0, 0.1]}


@pytest.fixture
def config(tiny_config):
    """Config of a run of 8 steps."""
    tiny_config.model.width = 8
    tiny_config.duration = "1 epochs"
    return tiny_config


def outcome(weight, accuracy=None, nll=1.0, **metrics):
    candidate = Candidate({"sd_dropout.weight": weight}, configs.default())
    if accuracy is None:
        return Outcome(candidate, failure="the loss is nan at step 3")
    validation = {"validation/accuracy": accuracy, "validation/nll": nll}
    return Outcome(candidate, {"step": 8, "eval/accuracy": 1 - accuracy} | validation | metrics)


# --------------------------------------------------------------------------------------- parsing


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("sd_dropout.weight=0,0.1,1,5", "sd_dropout.weight", [0, 0.1, 1, 5]),
        ("config.sd_dropout.weight=1e-1", "sd_dropout.weight", [0.1]),
        ("sd_dropout.gradient=both, forward", "sd_dropout.gradient", ["both", "forward"]),
        ("optimizer.nesterov=true,False", "optimizer.nesterov", [True, False]),
        ("duration='1 epochs',2 epochs", "duration", ["1 epochs", "2 epochs"]),
        ("sd_dropout.random_rate=(),(0.1, 0.5)", "sd_dropout.random_rate", [(), (0.1, 0.5)]),
        ("teacher='','a,b',\"it's (\"", "teacher", ["", "a,b", "it's ("]),
        (
            "objective={'name': 'cross_entropy'},{'name': 'label_smoothing', 'smoothing': 0.1}",
            "objective",
            [{"name": "cross_entropy"}, {"name": "label_smoothing", "smoothing": 0.1}],
        ),
    ],
)
def test_values_are_literals_or_strings_between_commas(text, field, values):
    assert parse_sweeps([text]) == {field: values}


def test_several_sweeps_are_a_grid_in_their_order():
    grid = parse_sweeps(["sd_dropout.weight=1,2", "batch_size=8"])
    assert list(grid.items()) == [("sd_dropout.weight", [1, 2]), ("batch_size", [8])]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sd_dropout.weight",
        "sd_dropout.weight=",
        "sd_dropout.weight=1,",
        "sd_dropout.weight=1,,2",
        "=1",
        "sd_dropout.weight.x=1",
        "model={'name': 'mlp'",
        "model='mlp",
        "model=(1]",
        "model=1)",
    ],
)
def test_a_malformed_sweep_is_refused(text):
    with pytest.raises(InputError, match="^--sweep: must be FIELD=VALUE,VALUE,... ") as refused:
        parse_sweeps([text])
    assert repr(text) in str(refused.value)


def test_a_field_has_one_list_of_values():
    with pytest.raises(InputError, match="^--sweep: must be one list of values for each field"):
        parse_sweeps(["seed=1", "config.seed=2"])


# --------------------------------------------------------------------------------- configs


def test_every_setting_of_a_grid_has_a_complete_config(config):
    runs = candidates(config, {"sd_dropout.weight": [0, 1], "model.width": [4, 8]})
    assert [run.name for run in runs] == [
        "sd_dropout.weight=0,model.width=4",
        "sd_dropout.weight=0,model.width=8",
        "sd_dropout.weight=1,model.width=4",
        "sd_dropout.weight=1,model.width=8",
    ]
    for run in runs:
        assert configs.complete(run.config).to_dict() == run.config.to_dict()
        assert run.config.sd_dropout.weight == run.values["sd_dropout.weight"]
        assert run.config.model.width == run.values["model.width"]
        assert run.config.batch_size == 176
    assert config.model.width == 8


def test_a_section_is_set_before_its_fields_in_any_order(config):
    section = {"objective": [{"name": "label_smoothing"}]}
    option = {"objective.smoothing": [0.1, 0.3]}
    for grid in (section | option, option | section):
        smoothing = [run.config.objective.smoothing for run in candidates(config, grid)]
        assert smoothing == [0.1, 0.3]


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("sd_dropout.weight", 1.0, "sd_dropout.weight=1"),
        ("sd_dropout.weight", 1e-5, "sd_dropout.weight=1e-05"),
        ("duration", "10 epochs", "duration=10_epochs"),
        ("sd_dropout.random_rate", (0.1, 0.5), "sd_dropout.random_rate=0.1+0.5"),
        ("sd_dropout.random_rate", (), "sd_dropout.random_rate=empty"),
        (
            "objective",
            {"smoothing": 0.1, "name": "label_smoothing"},
            "objective=label_smoothing+smoothing=0.1",
        ),
    ],
)
def test_the_name_of_a_folder_is_readable(config, field, value, name):
    (run,) = candidates(config, {field: [value]})
    assert run.name == name


@pytest.mark.parametrize("text", ["../a/b", "a:b", "é", "a\nb", "x" * 300, "\udc80", '"\\'])
def test_the_name_of_a_folder_is_safe_and_distinct(config, text):
    runs = candidates(config, {"teacher": [text, f"{text} 2", text.replace("/", "|") + "3"]})
    assert len({run.name for run in runs}) == 3
    for run in runs:
        assert run.name.isascii()
        assert len(run.name) < 200
        assert not set(run.name) & set("/\\:*?\"<>|'\n ")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"nope": [1]}, "config.nope: unknown field; expected"),
        ({"nope.weight": [1]}, "config.nope: unknown field; expected"),
        ({"sd_dropout.nope": [1]}, "config.sd_dropout.nope: unknown field; expected"),
        ({"objective.smoothing": [0.1]}, "config.objective.smoothing: 'cross_entropy' has no"),
        ({"sd_dropout.weight": [0, -1]}, "config.sd_dropout.weight: must be 0 or more, got -1"),
        ({"sd_dropout.weight": ["abc"]}, "config.sd_dropout.weight: must be a finite number"),
        ({"batch_size.x": [1]}, "config.batch_size: must be a whole number"),
        ({"objective": ["label_smoothing"]}, "config.objective: must be a section"),
        ({"objective": [{"a.b": 1}]}, "ConfigDict does not accept dots"),
        ({"objective": [{"__class__": 1}]}, "'__class__ cannot be overridden."),
        ({"objective": [{None: 1}]}, "argument of type 'NoneType' is not iterable"),
        ({"sd_dropout.weight": [0.1, 1, 1e-1]}, "sd_dropout.weight=0.1 and sd_dropout.weight=0.1"),
        ({"sd_dropout.weight": [1, 1.0]}, "are the same config"),
        (
            {"objective": [{"name": "label_smoothing"}, {"name": "label_smoothing", "smoothing": 0.1}]},
            "objective=label_smoothing and objective=label_smoothing+smoothing=0.1 are the same config",
        ),
        ({"seed": [0, 1]}, "seed is no setting to select"),
        ({"dataset.validation": [0.1]}, "dataset.validation is part of the data"),
        ({"dataset": [{"name": "digits"}]}, "dataset is part of the data"),
        ({"eval_every": ["1 epochs"]}, "eval_every does not change what is trained"),
        ({"engine.workers": [1, 2]}, "engine.workers does not change what is trained"),
        ({}, "must be at least one field"),
        ({"sd_dropout.weight": []}, "must be a list with at least one value"),
    ],
)  # fmt: skip
def test_a_grid_that_cannot_be_trained_or_selected_is_one_line(config, tmp_path, grid, message):
    with pytest.raises(InputError) as refused:
        train_and_select(config, grid, str(tmp_path / "sweep"))
    assert str(refused.value).startswith("--sweep")
    assert message in str(refused.value)
    assert not (tmp_path / "sweep").exists()


def test_an_error_outside_the_sweep_names_its_own_field(config, tmp_path):
    config.batch_size = 0
    with pytest.raises(InputError, match="^config.batch_size: must be at least 1"):
        train_and_select(config, WEIGHTS, str(tmp_path / "sweep"))


def test_the_folder_of_a_run_is_no_folder_of_a_sweep(config, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="^--workdir: must be the folder of a sweep; there is a"):
        train_and_select(config, WEIGHTS, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


# ------------------------------------------------------------------------------------- selection


def test_accuracy_on_validation_selects_and_the_nll_decides_among_equals():
    low, high = outcome(0, 0.8, nll=0.1), outcome(1, 0.9, nll=0.5)
    assert select([low, high]) is high
    better, worse = outcome(2, 0.9, nll=0.4), outcome(3, 0.9, nll=0.6)
    assert select([low, high, better, worse]) is better
    assert select([high, outcome(4, 0.9, nll=0.5)]) is high  # the first
    assert select([outcome(5), low]) is low


def test_no_selection_if_every_run_diverged():
    message = "every run diverged; sd_dropout.weight=0: the loss is nan at step 3"
    with pytest.raises(train.NonFiniteLossError, match=message):
        select([outcome(0), outcome(1)])


def test_the_table_marks_the_selected_row():
    best = outcome(0.1, 0.975, nll=0.12345, **{"train/accuracy": 0.999})
    assert table([outcome(0, 0.9), best, outcome(5)], best).splitlines() == [
        "   sd_dropout.weight  validation accuracy %  validation NLL  train accuracy %",
        "   0                                  90.00          1.0000                 -",
        "*  0.1                                97.50          0.1235             99.90",
        "   5                               diverged               -                 -",
    ]


# -------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Config, folder, selected config and output of a sweep in which one run diverges."""
    from sdd_jax.models import models

    config = configs.default()
    config.model = models.options("mlp", width=8, depth=1)
    config.batch_size = 176
    config.duration = "1 epochs"
    config.sd_dropout.weight = 0.0
    folder = tmp_path_factory.mktemp("sweep") / 'the "first"'
    grid = {"optimizer.learning_rate": [1e-6, 1e20, 0.1]}
    return config, folder, grid, train_and_select(config, grid, str(folder))


def test_the_best_run_on_validation_is_selected_and_a_diverged_one_is_reported(swept):
    config, folder, grid, selected = swept
    assert selected.optimizer.learning_rate == 0.1
    assert selected.dataset.validation == 0.1
    results = json.loads((folder / "sweep.json").read_text())
    assert results["sweep"] == grid
    low, diverged, high = results["rows"]
    assert results["selected"] == high
    assert high["values"] == {"optimizer.learning_rate": 0.1}
    assert high["workdir"] == "optimizer.learning_rate=0.1"
    assert "not finite" in diverged["failure"] or "the loss" in diverged["failure"]
    assert high["validation/accuracy"] > low["validation/accuracy"]
    for row in (low, high):
        last = read_metrics(folder / row["workdir"])[-1]
        assert row["step"] == last["step"] == 7
        assert row["validation/nll"] == last["validation/nll"]
        assert row["train/accuracy"] == last["train/accuracy"]
    assert "eval/" not in (folder / "sweep.json").read_text()
    assert config.dataset.validation == 0.0


def test_the_selected_card_holds_the_config_of_the_run(swept, tmp_path):
    _, folder, _, selected = swept
    shutil.copy(folder / "selected.py", tmp_path / "card.py")
    card = load_card(str(tmp_path / "card.py"))
    assert card.to_dict() == selected.to_dict()
    recorded = json.loads((folder / "optimizer.learning_rate=0.1" / "config.json").read_text())
    assert json.loads(json.dumps(card.to_dict())) == recorded["config"]
    with pytest.raises(InputError, match="must be empty, got 'ce'"):
        load_card(f"{tmp_path}/card.py:ce")


def test_the_docstring_of_the_card_says_what_selected_it(config):
    config.teacher = '"""\\ \udc80'
    values = {"sd_dropout.weight": 0.1, "inputs": '"""'}
    metrics = {"validation/accuracy": 0.5, "validation/nll": 1, "train/accuracy": 0.75}
    chosen = Outcome(Candidate(values, config), {"step": 8} | metrics)
    grid = {"sd_dropout.weight": [0, 0.1], "inputs": ['"""', "train"]}
    text = sweep.recipe_card(chosen, grid, '/a\\b"""/selected.py')
    namespace = {"__name__": "card"}
    exec(text.encode(), namespace)
    assert namespace["CONFIG"] == config.to_dict()
    words = namespace["__doc__"]
    assert words.startswith("The config that a sweep selected: sd_dropout.weight=0.1,inputs=")
    assert 'sd_dropout.weight of 0, 0.1; inputs of """, train' in words
    assert sweep.RULE in words
    assert "validation accuracy 50.00 %, NLL 1.0000, train accuracy 75.00 %" in words
    assert 'train.py --config=/a\\b"""/selected.py --workdir=RUN' in words


def test_the_same_sweep_again_trains_nothing_and_a_longer_one_only_its_new_values(
    swept, tmp_path, monkeypatch, capsys
):
    config, folder, _, selected = swept
    grid = {"optimizer.learning_rate": [1e-6, 0.1]}
    before = {path: path.read_bytes() for path in folder.glob("*/metrics.jsonl")}
    with monkeypatch.context() as patch:
        patch.setattr(train, "compile_train_call", lambda *_: pytest.fail("compiled"))
        assert train_and_select(config, grid, str(folder)).to_dict() == selected.to_dict()
    assert {path: path.read_bytes() for path in before} == before
    output = capsys.readouterr().out
    assert output.count("is finished: step 7") == 2
    assert "config.dataset.validation: 0 holds out nothing to select by; the sweep holds" in output
    compiled, calls = train.compile_train_call, []
    monkeypatch.setattr(train, "compile_train_call", lambda *a: calls.append(a) or compiled(*a))
    train_and_select(config, {"optimizer.learning_rate": [1e-6, 0.1, 0.01]}, str(folder))
    assert len(calls) == 1


def test_a_stopped_sweep_resumes_the_run_that_was_stopped(config, tmp_path, monkeypatch, capsys):
    compiled, stopped = train.compile_train_call, []

    def compile_and_stop(*arguments):
        call = compiled(*arguments)

        def stopping_call(state, *rest):
            if int(state.step) == 3 and compile_and_stop.runs == 2 and not stopped:
                stopped.append(True)
                os.kill(os.getpid(), signal.SIGTERM)
            return call(state, *rest)

        compile_and_stop.runs += 1
        return stopping_call

    compile_and_stop.runs = 0
    config.dataset.validation = 0.015
    monkeypatch.setattr(train, "compile_train_call", compile_and_stop)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(train.Interrupted, match="after step 4, which is saved"):
        train_and_select(config, WEIGHTS, str(tmp_path))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "sweep.json").exists()
    first = (tmp_path / "sd_dropout.weight=0" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    train_and_select(config, WEIGHTS, str(tmp_path))
    output = capsys.readouterr().out
    assert "holds out nothing" not in output
    assert output.count("resuming after step 4") == 1
    assert "; 8 steps" not in output
    assert (tmp_path / "sd_dropout.weight=0" / "metrics.jsonl").read_bytes() == first
    assert len(json.loads((tmp_path / "sweep.json").read_text())["rows"]) == 2


@pytest.fixture
def ends(monkeypatch):
    """``ends(*errors)``: the runs of a sweep end with these errors, or well with None."""

    def ends(*errors):
        remaining = iter(errors)

        def run(*_, **__):
            if error := next(remaining):
                raise error

        line = {"step": 8, "validation/accuracy": 0.5, "validation/nll": 1.0}
        monkeypatch.setattr(sweep, "train_and_evaluate", run)
        monkeypatch.setattr(sweep, "read_metrics", lambda _: [line])

    return ends


@pytest.mark.parametrize("error", [WriteError("full"), InputError("bad"), train.Interrupted()])
def test_an_error_that_is_no_divergence_stops_the_sweep(config, tmp_path, ends, error):
    ends(None, error)
    with pytest.raises(type(error)):
        train_and_select(config, {"sd_dropout.weight": [0, 0.1, 1]}, str(tmp_path))
    assert not (tmp_path / "sweep.json").exists()


def test_every_run_diverging_is_one_line(config, tmp_path, ends):
    ends(train.NonFiniteLossError("a"), train.NonFiniteLossError("b"))
    message = "^--sweep: every run diverged; sd_dropout.weight=0: a$"
    with pytest.raises(train.NonFiniteLossError, match=message):
        train_and_select(config, WEIGHTS, str(tmp_path))
    assert not (tmp_path / "selected.py").exists()


def test_a_second_process_of_the_same_sweep_is_refused(config, tmp_path):
    with (
        open_workdir(str(tmp_path)),
        pytest.raises(InputError, match="--workdir: must not be in use"),
    ):
        train_and_select(config, WEIGHTS, str(tmp_path))


@pytest.mark.slow
def test_a_run_leaves_nothing_on_the_devices_and_the_validation_images_are_the_same(
    config, tmp_path
):
    config.dataset.validation = 0.1
    train_and_select(config, {"sd_dropout.weight": [0.1]}, str(tmp_path))
    before = len(jax.live_arrays())
    train_and_select(config, {"sd_dropout.weight": [0.2, 0.3]}, str(tmp_path))
    assert len(jax.live_arrays()) <= before
    expected = load(name="digits", validation=0.1).splits["validation"].fingerprint()
    for folder in tmp_path.glob("*=*"):
        recorded = json.loads((folder / "config.json").read_text())
        assert recorded["data"]["validation"] == expected


def test_only_the_first_process_writes_and_prints(config, tmp_path, ends, monkeypatch, capsys):
    ends(None, None)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert train_and_select(config, WEIGHTS, str(tmp_path)).sd_dropout.weight == 0
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------------------------- command line


def run(root, cwd, *arguments):
    return subprocess.run(
        [sys.executable, str(root / "train.py"), *arguments],
        capture_output=True, text=True, timeout=300, cwd=cwd,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_sweeps_a_grid_and_its_card_trains(root, tmp_path):
    objectives = "{'name': 'cross_entropy'},{'name': 'label_smoothing', 'smoothing': 0.3}"
    options = [f"--sweep=objective={objectives}", "--sweep", "config.sd_dropout.weight=0,0.1"]
    options += ["--config.duration=4 steps", "--config.model.width=8"]
    done = run(root, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    folder = tmp_path / "runs" / "digits-sweep"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "objective=cross_entropy,sd_dropout.weight=0",
        "objective=cross_entropy,sd_dropout.weight=0.1",
        "objective=label_smoothing+smoothing=0.3,sd_dropout.weight=0",
        "objective=label_smoothing+smoothing=0.3,sd_dropout.weight=0.1",
    ]
    assert [path.name for path in (tmp_path / "runs").iterdir() if path != folder] == [".jax_cache"]
    rows = done.stdout[done.stdout.index("   objective  ") :].splitlines()
    assert sum(row.startswith("*") for row in rows) == 1
    assert rows[-1].endswith("see runs/digits-sweep/selected.py")
    again = run(root, tmp_path, *options)
    assert again.stdout.count("is finished: step 4") == again.stdout.count("eval/") == 4
    card = ["--config=runs/digits-sweep/selected.py", "--workdir=seed", "--config.seed=1"]
    done = run(root, tmp_path, *card)
    assert done.returncode == 0, done.stderr
    recorded = json.loads((tmp_path / "seed" / "config.json").read_text())["config"]
    assert (recorded["seed"], recorded["dataset"]["validation"]) == (1, 0.1)
    assert recorded["model"]["width"] == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "status"),
    [
        (["--sweep="], 2),
        (["--sweep=sd_dropout.weight=0,1e-1,0.1"], 2),
        (["--sweep=sd_dropout.nope=1"], 2),
        (["--sweep=optimizer.learning_rate=1e20", "--config.duration=2 steps"], 1),
    ],
)
def test_a_sweep_that_fails_is_one_line(root, tmp_path, options, status):
    done = run(root, tmp_path, *options)
    assert done.returncode == status
    assert done.stderr.startswith("error: --sweep: ")
    assert done.stderr.count("\n") == 1
