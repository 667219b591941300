"""A plan: its runs, and the table made of their files."""

import argparse
import json

import numpy as np
import pytest

from benchmarks import reproduce
from benchmarks.measure import load_card

PLAN = "cifar100-50-per-class"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """``results(row, seed, **figures)`` writes a run's file."""
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    (tmp_path / PLAN).mkdir()

    def write(row, seed, *, accuracy, validation=0.2, ece=None):
        line = {"eval/accuracy": accuracy, "validation/accuracy": validation, "eval/nll": 2.5}
        of_run = {"metrics": [line], "eval": {"eval/ece": ece, "eval/ood/mnist/odin/auroc": 0.75}}
        path = tmp_path / PLAN / f"{row}-{seed}.json"
        path.write_text(json.dumps({"runs": {f"{row}-{seed}": of_run}}))

    return write


@pytest.fixture
def tiny_plan(tmp_path, monkeypatch):
    """``tiny``: a plan of one row, on images in npz files; the arguments of its command line."""
    rng = np.random.default_rng(0)
    for name in ("digits", "others"):
        arrays = {}
        for split in ("train", "test"):
            arrays[f"{split}_images"] = rng.integers(0, 256, (176, 8, 8, 1), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.arange(176) % 3  # the digits themselves have ten
        np.savez(tmp_path / f"{name}.npz", **arrays)
    options = ("--config.duration=2 steps", "--config.model.width=8")
    plan = reproduce.Plan(
        rows={"mlp": reproduce.Row("MLP", "configs/digits.py:ce", options=options)},
        figures={"accuracy": ("eval/accuracy", 1, 4)},
        evaluation=("--checks=accuracy,ood",),
        ood=("others",),
    )
    monkeypatch.setitem(reproduce.PLANS, "tiny", plan)
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results")
    return argparse.Namespace(data_dir=str(tmp_path), runs=str(tmp_path / "runs"), machine="this")


@pytest.mark.slow
def test_a_run_is_trained_evaluated_and_written_down_once(tiny_plan, tmp_path, monkeypatch):
    of_run = reproduce.run("tiny", "mlp", 1, tiny_plan)
    text = (tmp_path / "results" / "tiny" / "mlp-1.json").read_text()
    assert json.loads(text)["runs"] == {"mlp-1": of_run}
    assert str(tmp_path) not in text
    assert of_run["command"].startswith(
        "python train.py --config=configs/digits.py:ce --config.seed=1"
    )
    assert of_run["metrics"][-1]["step"] == 2
    assert of_run["eval"]["eval/accuracy"] == of_run["metrics"][-1]["eval/accuracy"]
    assert 0 < of_run["eval"]["eval/ood/others/odin/auroc"] < 1
    config = json.loads((tmp_path / "runs/tiny/mlp/seed1/config.json").read_text())["config"]
    assert config["seed"] == 1
    assert config["dataset"]["name"] == f"npz:{tmp_path}/digits.npz"
    monkeypatch.setattr(reproduce, "_call", None)
    assert reproduce.run("tiny", "mlp", 1, tiny_plan) == of_run


@pytest.mark.slow
def test_a_run_that_fails_ends_the_plan_with_its_status(tiny_plan, tmp_path):
    (tmp_path / "digits.npz").write_text("no arrays")
    with pytest.raises(SystemExit) as ended:
        reproduce.run("tiny", "mlp", 0, tiny_plan)
    assert ended.value.code == 2
    assert not (tmp_path / "results").exists()


def test_a_recipe_has_mean_and_sample_standard_deviation_of_its_own_seeds(results):
    accuracies = [0.301, 0.312, 0.287]
    for seed, accuracy in enumerate(accuracies):
        results("sd_dropout-0.1", seed, accuracy=accuracy)
    results("ce", 0, accuracy=0.25, ece=0.1)
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in reproduce.table(PLAN).splitlines()
    ]
    assert lines[0] == ["", "CE", "SD-Dropout, weight 0.1"]
    ce, chosen = ({line[0]: line[column] for line in lines} for column in (1, 2))
    percent = 100 * np.array(accuracies)
    assert (ce["seeds"], chosen["seeds"]) == ("1", "3")
    assert chosen["accuracy %"] == f"{percent.mean():.2f} ± {percent.std(ddof=1):.2f}"
    assert ce["accuracy %"] == "25.00"
    assert chosen["AUROC %, ODIN, MNIST"] == "75.0 ± 0.0"
    assert (ce["ECE %"], chosen["ECE %"]) == ("10.0", "")  # null in the files
    assert "FGSM 2/255, accuracy %" not in ce  # no run has it


def test_the_value_with_the_best_validation_goes_on_with_the_other_seeds(results):
    results("sd_dropout-0.02", 0, accuracy=0.9, validation=0.21)
    results("sd_dropout-0.1", 0, accuracy=0.1, validation=0.25)
    results("sd_dropout-1.0", 0, accuracy=0.5, validation=0.20)
    order = list(reproduce.to_run(PLAN, list(reproduce.PLANS[PLAN].rows), [0, 1]))
    assert order[4:] == [("ce", 1), ("sd_dropout-0.1", 1)]
    assert [seed for _, seed in order[:4]] == [0] * 4


def test_tables_replace_what_lies_between_their_marks(results, tmp_path):
    results("ce", 0, accuracy=0.25)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n<!-- {PLAN} -->\nold\n<!-- end -->\nafter <!-- end -->\n")
    reproduce.write_tables(readme)
    expected = (
        f"before\n<!-- {PLAN} -->\n{reproduce.table(PLAN)}\n<!-- end -->\nafter <!-- end -->\n"
    )
    assert readme.read_text() == expected


def test_the_readmes_tables_are_those_of_the_committed_files(root, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_bytes((root / "README.md").read_bytes())
    reproduce.write_tables(readme)
    assert readme.read_text() == (root / "README.md").read_text()
    assert f"<!-- {PLAN} -->\n|" in readme.read_text()


@pytest.mark.parametrize("plan", reproduce.PLANS)
def test_every_row_has_a_card_and_options_of_it(plan):
    for row in reproduce.PLANS[plan].rows.values():
        for card in filter(None, (row.card, row.teacher)):
            config = load_card(card)
            for option in row.options:
                field = option.removeprefix("--config.").partition("=")[0]
                assert field in dict(_fields(config.to_dict()))


def _fields(section, prefix=""):
    for key, value in section.items():
        yield prefix + key, value
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{key}.")
