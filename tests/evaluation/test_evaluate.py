"""From workdirs to records, metrics, plots and a report."""

import base64
import csv
import io
import json
import shutil

import matplotlib.image
import numpy as np
import pytest

from sdd_jax.errors import InputError, WriteError
from sdd_jax.evaluate import evaluate_workdir
from sdd_jax.evaluation import Evaluator

FAST = {
    "eval.mc_samples": 3,
    "eval.pgd_steps": 2,
    "eval.apgd_steps": 2,
    "eval.square_queries": 5,
    "eval.max_images": 40,
    "eval.epsilons": (8.0,),
}
PLOTS = {
    "adversarial", "corruption", "mc_dropout", "ood_photos_roc", "ood_photos_scores", "reliability",
    "risk_coverage",
}  # fmt: skip


SUMMARY = "Summary [95 % interval over the test images]"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def metrics(run):
    return json.loads((run / "eval" / "metrics.json").read_text())


def plots(run):
    return {path.stem for path in (run / "eval").glob("*.png")}


@pytest.fixture(scope="module")
def compared(runs):
    """Cross-entropy against SD-Dropout, all checks: the result and the workdirs."""
    before = contents(runs["sd_dropout"])
    result = evaluate_workdir(
        str(runs["ce"]), ["all"], compare=[str(runs["sd_dropout"])], overrides=FAST
    )
    assert contents(runs["sd_dropout"]) == before  # a compared run is read, never written
    return result, runs


@pytest.fixture
def evaluated(compared, tmp_path):
    """A copy of the cross-entropy run with the results of ``compared``."""
    return shutil.copytree(compared[1]["ce"], tmp_path / "ce")


def test_one_command_writes_metrics_plots_records_and_a_page(compared):
    result, runs = compared
    assert metrics(runs["ce"]) == result
    assert result["step"] == 96
    assert plots(runs["ce"]) == PLOTS
    page = (runs["ce"] / "eval" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(PLOTS)
    for text in ("Out-of-distribution detection", "Generated: 10 corruptions", "difference"):
        assert text in page
    assert "Not available for ce: mc_dropout needs a run with dropout" in page
    assert "earlier evaluation" not in page
    checks = json.loads((runs["ce"] / "eval" / "checks.json").read_text())
    assert checks["adversarial"]["options"] == {
        "epsilons": [8.0], "pgd_steps": 2, "apgd_steps": 2, "square_queries": 5, "max_images": 40,
        "attacks": ["apgd_ce", "apgd_dlr", "square"],
    }  # fmt: skip
    assert checks["adversarial"]["runs"] == {"sd_dropout": 96}
    assert "eval/mc_dropout/3/accuracy" not in result


def test_the_results_hold_every_plot_as_pdf_and_the_tables(compared):
    result, runs = compared
    folder = runs["ce"] / "eval"
    assert {path.stem for path in folder.glob("*.pdf")} == PLOTS
    tables = {path.name for path in folder.iterdir() if path.suffix in (".csv", ".tex")}
    names = ("summary", "adversarial", "calibration", "corruption", "ood")
    assert tables == {f"{name}{suffix}" for name in names for suffix in (".csv", ".tex")}
    header, accuracy, *_ = csv.reader((folder / "summary.csv").read_text().splitlines())
    assert header == [
        "metric", "ce", "ce low", "ce high", "sd_dropout", "sd_dropout low", "sd_dropout high",
        "sd_dropout - ce", "low", "high",
    ]  # fmt: skip
    assert accuracy[0] == "accuracy, %"
    assert float(accuracy[1]) == pytest.approx(100 * result["eval/accuracy"], rel=1e-5)
    for value, low, high in ((1, 2, 3), (4, 5, 6), (7, 8, 9)):
        assert float(accuracy[low]) < float(accuracy[value]) < float(accuracy[high])


def test_the_page_states_the_facts_of_the_runs(compared):
    _, runs = compared
    page = (runs["ce"] / "eval" / "report.html").read_text()
    commit = json.loads((runs["ce"] / "config.json").read_text())["commit"] or "-"
    for fact in ("step 96", "digits: 1,293 train, 360 test, 144 validation images", commit[:12]):
        assert f">{fact}" in page
    for name in ("seed", "evaluated"):
        assert f'<th scope="row">{name}</th>' in page


def test_tensorboard_shows_the_plots_of_the_run_alone_at_the_step_of_its_checkpoint(
    compared, evaluated, event_file
):
    _, runs = compared
    shown, drawn = {}, {}
    for folder in (evaluated, runs["ce"]):
        if folder == evaluated:
            shutil.rmtree(folder / "tensorboard" / "eval")
            evaluate_workdir(str(folder), ["calibration"], checkpoint=48)
        (path,) = (folder / "tensorboard" / "eval").glob("events*")
        for event in event_file(path):
            for value in event.summary.value:
                shown.setdefault(value.tag, []).append(event.step)
                drawn[value.tag, event.step] = matplotlib.image.imread(
                    io.BytesIO(value.image.encoded_image_string)
                )
    own = PLOTS - {"mc_dropout"}  # of the compared run only
    assert shown.keys() == {f"eval/{plot}" for plot in own}
    assert shown["eval/reliability"] == [48, 96]
    assert shown["eval/adversarial"] == [96]
    alone = matplotlib.image.imread(evaluated / "eval" / "reliability.png")[..., :3]
    np.testing.assert_array_equal(drawn["eval/reliability", 48], alone)
    assert drawn["eval/reliability", 96].shape == alone.shape  # one panel


def test_a_writer_that_cannot_be_used_is_a_warning_and_none_gets_no_plots(
    evaluated, monkeypatch, caplog
):
    before = contents(evaluated / "tensorboard")
    evaluate_workdir(str(evaluated), ["calibration"], overrides={"log_to": ()})
    assert caplog.text == ""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = evaluate_workdir(str(evaluated), ["calibration"])
    assert (
        "the plots are not sent to tensorboard: config.log_to: 'tensorboard' needs" in caplog.text
    )
    assert metrics(evaluated).items() >= result.items()
    assert contents(evaluated / "tensorboard") == before


def test_a_later_evaluation_keeps_the_results_of_other_checks(compared, evaluated):
    result, _ = compared
    later = evaluate_workdir(str(evaluated), checkpoint="48")
    assert later["step"] == 48
    assert set(later) < set(result)
    assert metrics(evaluated) == result | later
    assert metrics(evaluated)["eval/nll"] != result["eval/nll"]
    assert plots(evaluated) == PLOTS
    page = (evaluated / "eval" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(PLOTS)
    assert page.count("From an earlier evaluation: step 96, 20") == 4
    assert "UTC, compared with sd_dropout." in page
    assert "FGSM accuracy at 8/255, % (step 96)" in page
    assert "PGD-2" in page
    assert "worst-case accuracy at 8/255, % (step 96)" in page
    steps = json.loads((evaluated / "eval" / "checks.json").read_text())
    assert {check: record["step"] for check, record in steps.items()} == {
        "accuracy": 48, "calibration": 48, "adversarial": 96, "corruption": 96, "mc_dropout": 96,
        "ood": 96,
    }  # fmt: skip


def test_a_check_with_other_options_replaces_its_metrics_and_plots(evaluated, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    arrays = {f"{split}_images": images for split in ("train", "test")}
    labels = {f"{split}_labels": np.arange(20) % 2 for split in ("train", "test")}
    np.savez(tmp_path / "noise.npz", **arrays, **labels)
    ood = {"eval.ood": (f"npz:{tmp_path}/noise.npz",)}
    result = evaluate_workdir(str(evaluated), ["ood"], overrides=ood)
    assert "eval/ood/noise/msp/auroc" in result
    assert not any("photos" in name for name in metrics(evaluated))
    assert "eval/adversarial/pgd/8/accuracy" in metrics(evaluated)
    assert plots(evaluated) == {plot.replace("photos", "noise") for plot in PLOTS}


def test_a_run_is_evaluated_alone_as_in_a_comparison(compared, capsys, tmp_path):
    result, runs = compared
    other = shutil.copytree(runs["sd_dropout"], tmp_path / "other")
    alone = evaluate_workdir(str(other), ["accuracy", "adversarial"], overrides=FAST)
    capsys.readouterr()
    evaluate_workdir(str(other), ["accuracy"], compare=[str(runs["ce"])])
    row = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy, %")
    )
    ours, theirs = (100 * values["eval/accuracy"] for values in (alone, result))
    assert [row.split()[i] for i in (2, 5)] == [f"{ours:.2f}", f"{theirs:.2f}"]
    assert {name: metrics(other)[name] for name in alone} == alone


def test_an_underconfident_run_is_warned_about_in_terminal_records_and_page(
    runs, monkeypatch, tmp_path, capsys
):
    def logits(self):
        return self.logits_of(self.images) / (6 if self.setup.sd_dropout_rate else 1)

    monkeypatch.setattr(Evaluator, "logits", property(logits))
    folders = [str(runs["sd_dropout"]), str(runs["ce"])]
    evaluate_workdir(folders[0], compare=folders[1:], output=str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    (warning,) = [line for line in lines if line.startswith("Warning: sd_dropout: ")]
    (note,) = json.loads((tmp_path / "checks.json").read_text())["calibration"]["notes"]
    assert warning == note.replace("Warning: ", "Warning: sd_dropout: ")
    page = (tmp_path / "report.html").read_text()
    assert page.index(note.removeprefix("Warning: ")) < page.index('<h2 id="summary">')
    rows = [line[:30].strip() for line in lines[lines.index(SUMMARY) + 2 :]][:5]
    assert rows == [
        "accuracy, %", "NLL, temperature-scaled, nats", "NLL, raw, nats",
        "ECE, temperature-scaled, %", "ECE, raw, %",
    ]  # fmt: skip
    positions = [page.index(f'<th scope="row">{label} ') for label in rows]
    assert positions == sorted(positions)


def test_runs_and_checks_that_cannot_be_evaluated_are_refused(runs, tmp_path):
    ce = str(runs["ce"])
    with pytest.raises(InputError, match="--compare: must be other runs"):
        evaluate_workdir(ce, compare=[ce])
    with pytest.raises(InputError, match="--compare: must hold a run"):
        evaluate_workdir(ce, compare=[str(tmp_path)])
    with pytest.raises(InputError, match="--workdir: must hold a run"):
        evaluate_workdir(str(tmp_path))
    with pytest.raises(InputError, match="--checks: mc_dropout needs a run with dropout"):
        evaluate_workdir(ce, ["accuracy", "mc_dropout"])
    with pytest.raises(InputError, match="--checks: must be one of"):
        evaluate_workdir(ce, ["accuracy", "nope"])
    with pytest.raises(
        InputError, match="config.eval.ood: must be another data set than the run's"
    ):
        evaluate_workdir(ce, ["ood"], overrides={"eval.ood": ("digits",)})
    with pytest.raises(InputError, match="config.eval.pgd_steps: must be in"):
        evaluate_workdir(ce, ["adversarial"], overrides={"eval.pgd_steps": 0})


def test_metrics_that_are_not_finite_are_null_in_the_json(evaluated, monkeypatch):
    monkeypatch.setattr(
        Evaluator, "logits", property(lambda self: np.full((len(self.labels), 10), np.nan))
    )
    result = evaluate_workdir(str(evaluated), ["accuracy"])
    assert np.isnan(result["eval/nll"])
    assert metrics(evaluated)["eval/nll"] is None
    assert metrics(evaluated)["eval/accuracy"] == 0
    assert "nan" in (evaluated / "eval" / "report.html").read_text()


def test_a_run_that_cannot_be_written_is_evaluated_into_another_folder(runs, tmp_path):
    run = shutil.copytree(runs["ce"], tmp_path / "ce", ignore=shutil.ignore_patterns("eval"))
    before = contents(run)
    output = tmp_path / "results" / "of_ce"
    result = evaluate_workdir(str(run), output=str(output))
    assert contents(run) == before
    assert {p.name for p in run.iterdir()} == {p.name for p in runs["ce"].iterdir()} - {"eval"}
    assert json.loads((output / "metrics.json").read_text()) == result
    assert (output / "report.html").exists()
    again = evaluate_workdir(str(run), ["accuracy"], output=str(output))
    assert json.loads((output / "metrics.json").read_text()) == result | again  # merged by check


def test_links_in_a_workdir_lead_to_no_file_outside(evaluated, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    folder = evaluated / "eval"
    names = (
        "metrics.json",
        "checks.json",
        "report.html",
        "reliability.png",
        "metrics.json.partial",
    )
    for name in names:
        content = (folder / name).read_bytes() if (folder / name).exists() else b""
        (folder / name).unlink(missing_ok=True)
        if name == "checks.json":
            (tmp_path / "checks").write_bytes(content)
        target = tmp_path / "checks" if name == "checks.json" else secret
        (folder / name).symlink_to(target)
    checks = (tmp_path / "checks").read_bytes()
    evaluate_workdir(str(evaluated), ["accuracy"])  # calibration's plot is read for the report
    assert secret.read_bytes() == b"mine"
    assert (tmp_path / "checks").read_bytes() == checks
    assert base64.b64encode(b"mine").decode() not in (folder / "report.html").read_text()
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path)
    with pytest.raises(
        InputError, match="--workdir: .*eval is a link; choose a folder with --output"
    ):
        evaluate_workdir(str(evaluated))
    folder.unlink()
    folder.mkdir()
    (folder / ".lock").symlink_to(tmp_path / "created")
    with pytest.raises(WriteError, match="lock cannot be written"):
        evaluate_workdir(str(evaluated), ["accuracy"])
    assert not (tmp_path / "created").exists()


def test_other_data_than_those_of_the_run_are_reported(runs, tmp_path, caplog):
    run = shutil.copytree(runs["ce"], tmp_path / "ce")
    path = run / "config.json"
    record = json.loads(path.read_text())
    evaluate_workdir(str(run), ["accuracy"])
    assert caplog.text == ""
    record["data"]["train"]["examples"] += 1
    path.write_text(json.dumps(record))
    evaluate_workdir(str(run), ["accuracy"])
    assert len(caplog.records) == 1
    assert "ce was trained on other data (data.train.examples: " in caplog.text
    del record["data"]  # as in version 0.1
    path.write_text(json.dumps(record))
    evaluate_workdir(str(run), ["accuracy"])
    assert len(caplog.records) == 1


def test_files_that_a_run_imports_are_executed_on_request_only(runs, harmful, tmp_path):
    run = shutil.copytree(runs["ce"], tmp_path / "ce")
    record = json.loads((run / "config.json").read_text())
    record["config"]["imports"] = [str(harmful)]
    (run / "config.json").write_text(json.dumps(record))
    for arguments in ((str(run), ()), (str(runs["ce"]), (str(run),))):
        field = "--compare" if arguments[1] else "--workdir"
        with pytest.raises(InputError, match=f"{field}: .*harmful.py, .* --trust_imports"):
            evaluate_workdir(arguments[0], compare=arguments[1])
    assert not (tmp_path / "executed").exists()
    evaluate_workdir(str(run), ["accuracy"], trust_imports=True)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("field", ["--workdir", "--compare", "--output"])
def test_remote_folders_are_refused(runs, field):
    folders = {"--workdir": str(runs["ce"]), "--compare": "", "--output": None}
    folders[field] = "s3://bucket/run"
    with pytest.raises(
        InputError, match=f"{field}: must be on a local .*disk, or gs://.*, got 's3://bucket/run'"
    ):
        evaluate_workdir(
            folders["--workdir"],
            compare=[folders["--compare"]] if folders["--compare"] else [],
            output=folders["--output"],
        )
