"""The table of a plan: from which files, and with which numbers."""

import importlib.util
import json

import numpy as np
import pytest

from benchmarks import reproduce

PLAN = "cifar100-50-per-class"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """``results(row, seed, **figures)`` writes a run's file."""
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    (tmp_path / PLAN).mkdir()

    def write(row, seed, *, accuracy, validation=0.2):
        line = {"eval/accuracy": accuracy, "validation/accuracy": validation, "eval/nll": 2.5}
        of_run = {"metrics": [line], "eval": {"eval/ece": None, "eval/ood/mnist/odin/auroc": 0.75}}
        path = tmp_path / PLAN / f"{row}-{seed}.json"
        path.write_text(json.dumps({"runs": {f"{row}-{seed}": of_run}}))

    return write


def test_a_row_has_mean_and_sample_standard_deviation_of_its_own_seeds(results):
    accuracies = [0.301, 0.312, 0.287]
    for seed, accuracy in enumerate(accuracies):
        results("sd_dropout-0.1", seed, accuracy=accuracy)
    results("ce", 0, accuracy=0.25)
    head, _, *rows = reproduce.table(PLAN).splitlines()
    cells = {row.split("|")[1].strip(): [c.strip() for c in row.split("|")[2:-1]] for row in rows}
    assert list(cells) == ["CE", "SD-Dropout, weight 0.1"]
    headings = [c.strip() for c in head.split("|")[2:-1]]
    named = dict(zip(headings, cells["SD-Dropout, weight 0.1"], strict=True))
    assert named["seeds"] == "3"
    percent = 100 * np.array(accuracies)
    assert named["accuracy %"] == f"{percent.mean():.2f} ± {percent.std(ddof=1):.2f}"
    assert named["ECE %"] == ""  # null in the files
    assert named["AUROC %, ODIN, MNIST"] == "75.0 ± 0.0"
    assert cells["CE"][:3] == ["1", "20.00", "25.00"]


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


@pytest.mark.parametrize("plan", reproduce.PLANS)
def test_every_row_has_a_card_and_options_of_it(root, plan):
    for row in reproduce.PLANS[plan].rows.values():
        for card in filter(None, (row.card, row.teacher)):
            path, _, argument = card.partition(":")
            spec = importlib.util.spec_from_file_location("card", root / path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            config = module.get_config(*filter(None, [argument]))
            for option in row.options:
                field = option.removeprefix("--config.").partition("=")[0]
                assert field in dict(_fields(config.to_dict()))


def _fields(section, prefix=""):
    for key, value in section.items():
        yield prefix + key, value
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{key}.")
