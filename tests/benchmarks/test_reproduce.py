"""A plan: its runs, their order, and its recipes."""

import argparse
import json

import numpy as np
import pytest

from benchmarks import measure, reproduce
from benchmarks.plans import PLANS, Plan, Row

PLAN = "cifar100-50-per-class"


@pytest.fixture
def tiny_plan(tmp_path, monkeypatch):
    """``tiny``: a plan of one row, on images in npz files; the arguments of its command line."""
    rng = np.random.default_rng(0)
    for name in ("digits", "others"):
        arrays = {}
        for split in ("train", "test"):
            arrays[f"{split}_images"] = rng.integers(0, 256, (176, 8, 8, 1), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.arange(176) % 3  # the digits themselves have ten classes
        np.savez(tmp_path / f"{name}.npz", **arrays)
    options = ("--config.duration=2 steps", "--config.model.width=8")
    plan = Plan(
        rows={"mlp": Row("MLP", "configs/digits.py:ce", options=options)},
        figures={"accuracy": ("eval/accuracy", 1, 4)},
        evaluation=("--checks=accuracy,ood",),
        ood=("others",),
    )
    monkeypatch.setitem(PLANS, "tiny", plan)
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    return argparse.Namespace(data_dir=str(tmp_path), runs=str(tmp_path / "runs"), machine="this")


@pytest.mark.slow
def test_a_run_is_trained_evaluated_and_recorded_once(tiny_plan, tmp_path, monkeypatch):
    run = reproduce.run("tiny", "mlp", 1, tiny_plan)
    text = (tmp_path / "results" / "tiny" / "mlp-1.json").read_text()
    assert json.loads(text)["runs"] == {"mlp-1": run}
    assert str(tmp_path) not in text
    assert run["command"].startswith(
        "python train.py --config=configs/digits.py:ce --config.seed=1"
    )
    assert run["metrics"][-1]["step"] == 2
    assert run["eval"]["eval/accuracy"] == run["metrics"][-1]["eval/accuracy"]
    assert 0 < run["eval"]["eval/ood/others/odin/auroc"] < 1
    config = json.loads((tmp_path / "runs/tiny/mlp/seed1/config.json").read_text())["config"]
    assert config["seed"] == 1
    assert config["dataset"]["name"] == f"npz:{tmp_path}/digits.npz"
    monkeypatch.setattr(reproduce, "call", None)
    assert reproduce.run("tiny", "mlp", 1, tiny_plan) == run


@pytest.mark.slow
def test_a_run_that_fails_ends_the_plan_with_its_status(tiny_plan, tmp_path):
    (tmp_path / "digits.npz").write_text("no arrays")
    with pytest.raises(SystemExit) as ended:
        reproduce.run("tiny", "mlp", 0, tiny_plan)
    assert ended.value.code == 2
    assert not (tmp_path / "results").exists()


def test_a_teacher_trains_once_for_the_students_of_all_seeds(tiny_plan, tmp_path, monkeypatch):
    calls = []
    row = Row("student", "configs/distill_digits.py", teacher="configs/digits.py:teacher")
    monkeypatch.setitem(PLANS, "tiny", Plan({"student": row}, {}, ()))
    monkeypatch.setattr(reproduce, "call", lambda script, *args: calls.append((script, *args)))
    monkeypatch.setattr(reproduce, "collect", lambda *_, **__: {"metrics": []})
    for seed in (0, 1):
        reproduce.run("tiny", "student", seed, tiny_plan)
    teacher = tmp_path / "runs/tiny/digits-teacher"
    first, second = calls[:3], calls[3:]
    assert first[0] == second[0]  # the second call of train.py finds a complete run
    assert first[0][1] == "--config=configs/digits.py:teacher"
    assert first[0][-1] == f"--workdir={teacher}"
    for seed, (_, student, evaluation) in enumerate((first, second)):
        assert {f"--config.teacher={teacher}", f"--config.seed={seed}"} <= set(student)
        assert student[-1] == evaluation[1] == f"--workdir={tmp_path}/runs/tiny/student/seed{seed}"


def test_the_candidate_with_the_best_validation_has_the_other_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    (tmp_path / PLAN).mkdir()
    for row, accuracy in {"0.02": 0.21, "0.1": 0.25, "1.0": 0.20}.items():
        run = {"metrics": [{"validation/accuracy": accuracy}]}
        path = tmp_path / PLAN / f"sd_dropout-{row}-0.json"
        path.write_text(json.dumps({"runs": {"": run}}))
    runs = list(reproduce.schedule(PLAN, list(PLANS[PLAN].rows), [0, 1]))
    assert runs[4:] == [("ce", 1), ("sd_dropout-0.1", 1)]
    assert [seed for _, seed in runs[:4]] == [0] * 4


@pytest.mark.parametrize("plan", PLANS)
def test_every_row_has_a_card_and_sets_fields_of_it(plan):
    for row in PLANS[plan].rows.values():
        for card in filter(None, (row.card, row.teacher)):
            config = measure.load_card(card)
            for option in row.options:
                field = option.removeprefix("--config.").partition("=")[0]
                assert field in dict(_fields(config.to_dict()))


def test_the_rows_of_the_papers_table_are_its_methods():
    methods = ("clean_student", "cs_kd", "ddgsd", "byot", "dml")
    for name, row in PLANS["cifar100"].rows.items():
        config = measure.load_card(row.card)
        method, _, combined = name.partition("-")
        expected = method if method in methods else "cross_entropy"
        weight = 0.1 if combined else float(method == "sd_dropout")
        assert (config.objective.name, config.sd_dropout.weight) == (expected, weight)


def _fields(section, prefix=""):
    for key, value in section.items():
        yield prefix + key, value
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{key}.")
