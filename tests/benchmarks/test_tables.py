"""The README's tables: means over seeds, and equality with the committed files."""

import json

import numpy as np
import pytest

from benchmarks import measure, tables
from benchmarks.plans import PLANS, Plan, Row

PLAN = "cifar100-50-per-class"


@pytest.fixture
def write_run(tmp_path, monkeypatch):
    """``write_run(row, seed, **figures)`` writes the result file of a run."""
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    (tmp_path / PLAN).mkdir()

    def write(row, seed, *, accuracy, ece=None, validation=0.0):
        line = {"eval/accuracy": accuracy, "eval/nll": 2.5, "validation/accuracy": validation}
        run = {"metrics": [line], "eval": {"eval/ece": ece, "eval/ood/mnist/odin/auroc": 0.75}}
        path = tmp_path / PLAN / f"{row}-{seed}.json"
        path.write_text(json.dumps({"runs": {f"{row}-{seed}": run}}))

    return write


def test_a_recipe_has_mean_and_sample_standard_deviation_over_its_own_seeds(write_run):
    accuracies = [0.301, 0.312, 0.287]
    for seed, accuracy in enumerate(accuracies):
        write_run("sd_dropout-0.1", seed, accuracy=accuracy)
    write_run("ce", 0, accuracy=0.25, ece=0.1)
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in tables.plan_table(PLAN).splitlines()
    ]
    assert lines[0] == ["", "CE", "SD-Dropout, weight 0.1"]
    ce, selected = ({line[0]: line[column] for line in lines} for column in (1, 2))
    percent = 100 * np.array(accuracies)
    assert (ce["seeds"], selected["seeds"]) == ("1", "3")
    assert selected["accuracy %"] == f"{percent.mean():.2f} ± {percent.std(ddof=1):.2f}"
    assert ce["accuracy %"] == "25.00"
    assert selected["AUROC %, ODIN, MNIST"] == "75.0 ± 0.0"
    assert (ce["ECE %"], selected["ECE %"]) == ("10.0", "")  # null in the files
    assert "FGSM 2/255, accuracy %" not in ce  # no run has it


def test_methods_are_compared_at_their_selected_values_on_the_seeds_that_all_have(
    write_run, monkeypatch
):
    plan = Plan(
        rows={
            "ce": Row("weight decay 0", "", method="cross-entropy"),
            "sd-1": Row("weight 1", "", method="SD-Dropout"),
            "sd-3": Row("weight 3", "", method="SD-Dropout"),
            "byot": Row("BYOT", ""),
        },
        figures={"accuracy %": ("eval/accuracy", 100, 1)},
        evaluation=(),
        baseline="cross-entropy",
    )
    monkeypatch.setitem(PLANS, PLAN, plan)
    for seed, (ce, sd) in enumerate([(0.50, 0.52), (0.54, 0.58), (0.52, 0.58)]):
        write_run("ce", seed, accuracy=ce, validation=0.5)
        write_run("sd-3", seed, accuracy=sd, validation=0.6)
    write_run("sd-1", 0, accuracy=0.99, validation=0.4)  # the test set selects nothing
    write_run("sd-3", 3, accuracy=0.99, validation=0.6)  # cross-entropy lacks this seed
    lines = tables.compared_table(PLAN).splitlines()
    # Differences of 2, 4 and 6: standard error 2 / sqrt(3); Student's t of 2 degrees is 4.303.
    assert lines[2:] == [
        "| cross-entropy | weight decay 0 | 3 | 52.0 ± 2.0 |",
        "| SD-Dropout | weight 3 | 3 | 56.0 (+4.0 ± 5.0) |",
    ]


def test_a_table_replaces_the_text_between_its_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "tables", lambda: {"a": "| new |", "a-b": "| other |"})
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- a -->\nold\n<!-- end -->\nafter <!-- end -->\n")
    tables.write_tables(readme)
    assert readme.read_text() == "before\n<!-- a -->\n| new |\n<!-- end -->\nafter <!-- end -->\n"


def test_the_tables_of_the_pages_are_those_of_the_committed_files(root, tmp_path):
    texts = []
    for name in tables.PAGES:
        text, page = (root / name).read_text(), tmp_path / "page.md"
        page.write_text(text)
        tables.write_tables(page)
        assert page.read_text() == text
        texts.append(text)
    # Without results so far.
    unused = {"cifar100", "tpu-v5e-2x2"}
    for name in tables.tables().keys() - unused:
        assert f"<!-- {name} -->\n|" in "".join(texts)


def test_the_table_of_the_methods_has_the_time_of_a_step_of_each(tmp_path, monkeypatch):
    def write(name, **medians):
        objectives = {
            method: {"over_cross_entropy": {"median": x, "quartiles": [x - 0.1, x + 0.1]}}
            for method, x in medians.items()
        }
        (tmp_path / f"{name}.json").write_text(json.dumps({"objectives": objectives}))

    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    write("objectives-resnet18-64", sd_dropout=0.9, ddgsd=1.8, dml=1.5)
    write("objectives-resnet18-64-ddgsd", ddgsd=2.4)
    write("objectives-resnet18-128", sd_dropout=1.1)
    (tmp_path / "docs").mkdir()
    names = ("`cross_entropy`", "`sd_dropout.weight` > 0", "`ddgsd`", "`dml`", "`distill`")
    rows = "\n".join(f"| {name} | text | old |" for name in names[:-1])
    rows += f"\n| {names[-1]} | text |"
    (tmp_path / "docs" / "methods.md").write_text(
        f"x\n<!-- methods -->\n| a | b | c |\n| --- | --- | --- |\n{rows}\n<!-- end -->\n| y |\n"
    )
    assert tables.methods_table().splitlines() == [
        "| a | b | c |",
        "| --- | --- | --- |",
        "| `cross_entropy` | text | 1 |",
        "| `sd_dropout.weight` > 0 | text | 0.90 (0.80 to 1.00); 1.10 (1.00 to 1.20) |",
        "| `ddgsd` | text | 2.40 (2.30 to 2.50) |",
        "| `dml` | text | 1.50 (1.40 to 1.60) |",
        "| `distill` | text | not measured |",
    ]


def test_a_method_is_compared_with_cross_entropy_seed_by_seed():
    # Differences of 1 to 5: mean 3, standard error sqrt(2.5 / 5); Student's t of 4 degrees is 2.776.
    result = {
        "cross_entropy": {"accuracy": [70.0, 72.0, 74.0, 76.0, 78.0]},
        "sd_dropout": {"accuracy": [71.0, 74.0, 77.0, 80.0, 83.0]},
    }
    assert tables.difference(result, "cross_entropy", "accuracy", 1) == "74.0 ± 3.2"
    assert tables.difference(result, "sd_dropout", "accuracy", 2) == "77.00 (+3.00 ± 1.96)"
