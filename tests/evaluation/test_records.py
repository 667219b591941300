"""Records of checks: a later evaluation replaces its own checks and keeps the others."""

import dataclasses
import json
import os
import threading

import numpy as np
import pytest

from sdd_jax.errors import InputError, WriteError
from sdd_jax.evaluation import records
from sdd_jax.evaluation.metrics import bootstrap_interval
from sdd_jax.evaluation.plots import Picture
from sdd_jax.evaluation.results import CheckResult, Headline, Table

TIME = "2026-01-02T03:04:05+00:00"


def write(folder, metrics_of, *, step=1, plots=None):
    """Writes a record for each check of ``{check: metrics}``, with the plots of ``{check: names}``."""
    pictures = {
        check: [
            Picture(name, "title", "caption", f"{name} {step}".encode(), "alt") for name in names
        ]
        for check, names in (dict.fromkeys(metrics_of, ()) | (plots or {})).items()
    }
    new = {
        check: records.record(
            CheckResult(
                metrics,
                headline=[Headline("x", "x, %", 100, 1, None)],
                by_image={"x": [np.arange(50) % 2]},
                tables=[Table("t", ["", "a"], [["r", "1"]])],
                notes=["note"],
            )
            if metrics
            else None,
            pictures[check],
            title=check.title(),
            step=step,
            time=TIME,
            checkpoint="latest",
            options={"rates": (0.5,)},
            runs={"other": 7},
        )
        for check, metrics in metrics_of.items()
    }
    with records.locked(folder):
        return records.write(folder, step, new, pictures)


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def files(folder):
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_records_come_back_as_they_were_written(tmp_path):
    folder = tmp_path / "eval"
    written = write(folder, {"a": {"a/x": 0.5, "a/n": 3, "a/y": np.nan}}, plots={"a": ["p"]})["a"]
    assert written.pictures(folder) == [Picture("p", "title", "caption", b"p 1", "alt")]
    (record,) = records.read(folder).values()
    assert record.metrics == {"a/x": 0.5, "a/n": 3, "a/y": None}
    assert (record.title, record.step, record.checkpoint) == ("A", 1, "latest")
    assert (record.time, record.runs) == (TIME, {"other": 7})
    assert record.options == {"rates": [0.5]}
    assert record.headline == [Headline("x", "x, %", 100, 1, None)]
    low, high = record.result.intervals["x"]
    assert (low, high) == bootstrap_interval([np.arange(50) % 2])
    assert record.tables == [Table("t", ["", "a"], [["r", "1"]])]
    assert record.plots == [("p", "title", "caption", "alt")]
    assert np.isnan(record.result.metrics["a/y"])
    assert record.result.notes == ["note"]
    assert metrics(folder) == {"step": 1, "eval/a/x": 0.5, "eval/a/n": 3, "eval/a/y": None}


def test_the_raw_metric_of_a_headline_is_kept_and_may_be_absent(tmp_path):
    line = Headline("scaled/x", "x, scaled", raw="x")
    new = {"a": records.record(CheckResult({"x": 1.0}, [line]), [], title="A", step=1, time=TIME)}
    with records.locked(tmp_path):
        records.write(tmp_path, 1, new, {"a": []})
    assert records.read(tmp_path)["a"].headline == [line]
    path = tmp_path / "checks.json"
    path.write_text(path.read_text().replace(',\n        "raw": "x"', ""))  # an older file
    assert records.read(tmp_path)["a"].headline == [Headline("scaled/x", "x, scaled")]


def test_a_record_without_intervals_is_read(tmp_path):
    write(tmp_path, {"a": {"x": 1.0}})
    path = tmp_path / "checks.json"
    records_ = json.loads(path.read_text())
    del records_["a"]["intervals"]  # an older file
    path.write_text(json.dumps(records_))
    assert records.read(tmp_path)["a"].result.intervals == {}


def test_plots_recorded_without_a_description_are_described_by_their_title(tmp_path):
    write(tmp_path, {"a": {"x": 1.0}}, plots={"a": ["p"]})
    path = tmp_path / "checks.json"
    records_ = json.loads(path.read_text())
    records_["a"]["plots"] = [["p", "title", "caption"]]  # an older file
    path.write_text(json.dumps(records_))
    (picture,) = records.read(tmp_path)["a"].pictures(tmp_path)
    assert picture.alt == "title"


def test_a_plot_for_print_is_written_beside_its_pixels_and_deleted_with_them(tmp_path):
    new = {"a": records.record(CheckResult({"x": 1.0}), [], title="A", step=1, time=TIME)}
    picture = Picture("p", "title", "caption", b"png", "alt", b"pdf")
    plotted = {"a": dataclasses.replace(new["a"], plots=[("p", "title", "caption", "alt")])}
    with records.locked(tmp_path):
        records.write(tmp_path, 1, plotted, {"a": [picture]})
        assert (tmp_path / "p.pdf").read_bytes() == b"pdf"
        records.write(tmp_path, 1, new, {"a": []})
    assert files(tmp_path) == {"checks.json", "metrics.json"}


def test_a_repeated_check_is_replaced_and_the_others_stay(tmp_path):
    write(tmp_path, {"a": {"nll": 1.0, "a/old": 1.0}, "b": {"nll": 2.0, "b/x": 2.0}}, step=10)
    merged = write(tmp_path, {"a": {"nll": 3.0, "a/new": 3.0}}, step=20)
    assert {check: record.step for check, record in merged.items()} == {"b": 10, "a": 20}
    expected = {"step": 20, "eval/nll": 3.0, "eval/a/new": 3.0, "eval/b/x": 2.0}
    assert metrics(tmp_path) == expected  # the latest value where two checks share a name


def test_plots_that_a_repeated_check_no_longer_makes_are_deleted(tmp_path):
    write(tmp_path, {"a": {"x": 1.0}, "b": {"y": 1.0}}, plots={"a": ["p", "q"], "b": ["r"]})
    write(tmp_path, {"a": {"x": 2.0}}, step=2, plots={"a": ["p"]})
    assert files(tmp_path) == {"checks.json", "metrics.json", "p.png", "r.png"}
    assert (tmp_path / "p.png").read_bytes() == b"p 2"
    (tmp_path / "r.png").unlink()
    assert records.read(tmp_path)["b"].pictures(tmp_path) == []


def test_a_check_that_only_compared_runs_have_does_not_replace_figures(tmp_path):
    write(tmp_path, {"a": {}}, plots={"a": ["p"]})
    assert "a" in records.read(tmp_path)
    write(tmp_path, {"a": {"x": 1.0}}, step=2, plots={"a": ["p"]})
    write(tmp_path, {"a": {}}, step=3, plots={"a": ["p"]})
    assert metrics(tmp_path) == {"step": 3, "eval/x": 1.0}
    assert (tmp_path / "p.png").read_bytes() == b"p 2"


@pytest.mark.parametrize("replaced", range(4))
def test_an_interrupted_write_keeps_the_earlier_records(tmp_path, monkeypatch, replaced):
    """After 0 to 3 of the 4 files: two plots, checks.json and metrics.json."""
    write(tmp_path, {"a": {"x": 1.0}, "b": {"y": 1.0}}, plots={"a": ["p", "q"], "b": ["r"]})
    replace, calls = os.replace, []

    def fails(source, target):
        if len(calls) == replaced:
            raise OSError("No space left on device")
        calls.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(WriteError, match="cannot be written: No space left"):
            write(tmp_path, {"a": {"x": 2.0}, "c": {}}, step=2, plots={"a": ["p"], "c": ["s"]})
    kept = records.read(tmp_path)
    assert kept["b"].metrics == {"y": 1.0}
    assert kept["a"].metrics == {"x": 2.0 if replaced == 3 else 1.0}
    for record in kept.values():
        assert len(record.pictures(tmp_path)) == len(record.plots)
    write(tmp_path, {"a": {"x": 3.0}}, step=3)
    assert metrics(tmp_path) == {"step": 3, "eval/y": 1.0, "eval/x": 3.0}


def test_evaluations_write_one_after_the_other(tmp_path):
    other = threading.Thread(target=write, args=(tmp_path, {"b": {"y": 1.0}}))
    with records.locked(tmp_path):
        earlier = records.read(tmp_path)
        other.start()
        other.join(timeout=0.3)
        assert other.is_alive()
        assert records.read(tmp_path) == earlier == {}
    other.join()
    write(tmp_path, {"a": {"x": 1.0}})
    assert set(records.read(tmp_path)) == {"a", "b"}


def test_metrics_and_plots_of_version_0_1_are_kept_check_by_check(tmp_path):
    old = {"step": 60, "eval/accuracy": 0.9, "eval/nll": 0.3, "eval/calibration/mce": None,
           "eval/mc_dropout/100/nll": 0.2, "eval/ood/photos/msp/auroc": 0.8}  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps(old))
    for name in ("reliability", "mc_dropout", "ood_photos_roc", "corruption"):
        (tmp_path / f"{name}.png").write_bytes(b"")
    legacy = records.read(tmp_path)
    assert {check: [plot[0] for plot in record.plots] for check, record in legacy.items()} == {
        "accuracy": [], "calibration": ["reliability"], "mc_dropout": ["mc_dropout"],
        "ood": ["ood_photos_roc"],
    }  # fmt: skip
    assert {record.step for record in legacy.values()} == {60}
    write(tmp_path, {"mc_dropout": {"mc_dropout/3/nll": 0.5}, "ood": {"ood/x": 1.0}}, step=80)
    del old["eval/mc_dropout/100/nll"], old["eval/ood/photos/msp/auroc"]
    new = {"step": 80, "eval/mc_dropout/3/nll": 0.5, "eval/ood/x": 1.0}
    assert metrics(tmp_path) == old | new
    assert files(tmp_path) == {"checks.json", "metrics.json", "reliability.png", "corruption.png"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("checks.json", "{"),
        ("checks.json", '{"a": {"step": 1}}'),
        ("checks.json", "[]"),
        ("metrics.json", '{"eval/accuracy": 1.0}'),
        ("metrics.json", '{"step": 1, "eval/accuracy": "x"}'),
    ],
)
def test_damaged_records_are_reported_and_not_replaced(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name} cannot be read: .*; remove it to start over"):
        write(tmp_path, {"a": {"x": 1.0}})
    assert (tmp_path / name).read_text() == text
    assert files(tmp_path) == {name}


def test_a_record_reaches_no_file_outside_its_folder(tmp_path):
    folder = tmp_path / "eval"
    write(folder, {"a": {"x": 1.0}}, plots={"a": ["p"]})
    path = folder / "checks.json"
    path.write_text(path.read_text().replace('"p"', '"../secret"'))
    with pytest.raises(InputError, match="'../secret' is not the name of a file"):
        records.read(folder)
