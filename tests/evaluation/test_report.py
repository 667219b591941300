"""From workdirs to metrics.json, plots and a report."""

import html.parser
import json
import re

import numpy as np
import pytest

from sdd_jax.errors import InputError
from sdd_jax.evaluation.findings import Findings, Headline, Plot, Table
from sdd_jax.evaluation.report import Report
from sdd_jax.evaluation.run import evaluate_workdir

FAST = {
    "eval.mc_samples": 3,
    "eval.pgd_steps": 2,
    "eval.max_images": 40,
    "eval.epsilons": (8.0,),
}


@pytest.fixture(scope="module")
def compared(runs):
    """The report of cross-entropy against SD-Dropout, all checks."""
    result = evaluate_workdir(
        str(runs["ce"]), ["all"], compare=[str(runs["sd_dropout"])], overrides=FAST
    )
    return result, runs


class Page(html.parser.HTMLParser):
    """Tags that are open at the end, addresses, and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [v for k, v in attributes if k in ("src", "href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_one_command_gives_figures_plots_and_a_page_without_a_network(compared):
    result, runs = compared
    folder = runs["ce"] / "eval"
    assert json.loads((folder / "metrics.json").read_text()) == result
    plots = {path.stem for path in folder.glob("*.png")}
    assert plots == {
        "adversarial", "corruption", "mc_dropout", "ood_photos_roc", "ood_photos_scores",
        "reliability", "risk_coverage",
    }  # fmt: skip
    page = Page((folder / "report.html").read_text())
    assert page.open == []
    assert len(page.addresses) == len(plots)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    text = " ".join(page.text)
    for expected in ("Out-of-distribution detection", "Generated: 10 corruptions", "difference"):
        assert expected in text
    assert "ce is left out: mc_dropout needs a run with dropout" in text


def test_the_runs_to_compare_with_have_their_own_figures(compared):
    result, runs = compared
    other = json.loads((runs["sd_dropout"] / "eval" / "metrics.json").read_text())
    alone = evaluate_workdir(str(runs["sd_dropout"]), ["accuracy", "adversarial"], overrides=FAST)
    assert {k: other[k] for k in alone} == alone
    assert other["eval/nll"] != result["eval/nll"]
    assert "eval/mc_dropout/3/accuracy" in other
    assert "eval/mc_dropout/3/accuracy" not in result


def test_the_headline_holds_both_runs_and_their_difference(compared, capsys):
    _, runs = compared
    evaluate_workdir(str(runs["ce"]), ["accuracy"], compare=[str(runs["sd_dropout"])])
    printed = capsys.readouterr().out
    values = [
        json.loads((runs[name] / "eval" / "metrics.json").read_text())["eval/accuracy"]
        for name in ("ce", "sd_dropout")
    ]
    difference = f"{100 * values[1]:.2f} ({100 * (values[1] - values[0]):+.2f})"
    row = next(line for line in printed.splitlines() if line.startswith("accuracy, %"))
    assert row.split() == f"accuracy, % {100 * values[0]:.2f} {difference}".split()


def test_what_cannot_be_compared_or_run_is_refused(runs, tmp_path):
    ce = str(runs["ce"])
    with pytest.raises(InputError, match="--compare: must be other runs"):
        evaluate_workdir(ce, compare=[ce])
    with pytest.raises(InputError, match="--workdir: must hold a run"):
        evaluate_workdir(ce, compare=[str(tmp_path)])
    with pytest.raises(InputError, match="--checks: mc_dropout needs a run with dropout"):
        evaluate_workdir(ce, ["accuracy", "mc_dropout"])
    with pytest.raises(InputError, match="--checks: must be one of"):
        evaluate_workdir(ce, ["accuracy", "nope"])


def draw(figure, runs):
    axes = figure.subplots()
    for name, (data, style) in runs.items():
        axes.plot(data, label=name, **style)


def made(names=("a", "b")):
    def findings(value):
        return Findings(
            {"x": value, "y": float("nan")},
            headline=[
                Headline("x", "x, %", 100, 1),
                Headline("x", "<b>", 1),
                Headline("y", "y", higher_is_better=False),
            ],
            plots=[Plot("p", "<i>title", "reading & more", draw, [1, value])],
            tables=[Table("t<", ["", "c"], [["r", "<script>"]])],
            notes=["<note>"],
        )

    return Report(
        runs={name: {"workdir": f"/x/{name}<"} for name in names},
        titles={"check": "Check <title>"},
        findings={"check": {name: findings(0.25 * (i + 1)) for i, name in enumerate(names)}},
        skipped={"check": {"<c>": "because <"}},
    )


def test_everything_from_outside_is_escaped(tmp_path):
    report = made(("<img src=x onerror=alert(1)>", "b&"))
    report.write(tmp_path)
    text = (tmp_path / "report.html").read_text()
    for bad in ("<img src=x", "<script>", "<i>title", "<note>", "<b>", "because <<"):
        assert bad not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", text)
    assert Page(text).open == []


def test_differences_are_judged_by_what_is_better():
    rows = {row["label"]: row for row in made().headline()}
    assert rows["y"]["first"] == "-"
    assert rows["y"]["others"][0] == {"value": "-", "difference": "-", "verdict": ""}
    line = Headline("x", "x", 100, 1)
    report = made()
    for higher, verdict in ((True, "better"), (False, "worse"), (None, "")):
        import dataclasses

        shown = dataclasses.replace(line, higher_is_better=higher)
        for found in report.findings["check"].values():
            found.headline[:] = [shown]
        (row,) = report.headline()
        assert row["first"] == "25.0"
        assert row["others"] == [{"value": "50.0", "difference": "+25.0", "verdict": verdict}]


def test_a_run_looks_the_same_in_a_plot_that_the_first_run_is_missing_from(tmp_path):
    colours = []

    def spy(figure, runs):
        colours.append({name: style["color"] for name, (_, style) in runs.items()})
        draw(figure, runs)

    from sdd_jax.evaluation import figures

    plot = Plot("p", "", "", spy, None)
    figures.save(plot, {"a": [1, 2], "b": [2, 3]}, ("a", "b"), tmp_path / "p.png")
    figures.save(plot, {"b": [2, 3]}, ("a", "b"), tmp_path / "q.png")
    assert colours[0]["b"] == colours[1]["b"] != colours[0]["a"]


def test_figures_that_are_no_numbers_are_null_in_the_json(runs, tmp_path, monkeypatch):
    from sdd_jax.evaluation.evaluate import Evaluation

    monkeypatch.setattr(
        Evaluation, "logits", property(lambda self: np.full((len(self.labels), 10), np.nan))
    )
    result = evaluate_workdir(str(runs["ce"]), ["accuracy"])
    written = json.loads((runs["ce"] / "eval" / "metrics.json").read_text())
    assert np.isnan(result["eval/nll"])
    assert written["eval/nll"] is None
    assert written["eval/accuracy"] == 0


def test_a_table_is_aligned_for_the_terminal():
    text = Table("T", ["", "one"], [["a", "1.0"], ["long", "-"]]).text()
    assert text == "T\n      one\na     1.0\nlong    -"
