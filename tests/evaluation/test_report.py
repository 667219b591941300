"""The report as a page and as text."""

import dataclasses
import html.parser
import re

import pytest

from sdd_jax.evaluation.plots import pictures
from sdd_jax.evaluation.report import Report, Section
from sdd_jax.evaluation.results import WARNING, CheckResult, Headline, Plot, Table


class Page(html.parser.HTMLParser):
    """Tags that are open at the end, addresses, and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [v for k, v in attributes if k in ("src", "href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def draw(figure, runs):
    axes = figure.subplots()
    for name, (data, style) in runs.items():
        axes.plot(data, label=name, **style)


HEADLINE = (Headline("x", "x, %", 100, 1),)


def report(runs=("a", "b"), headline=HEADLINE, **section):
    results = {
        run: CheckResult(
            {"x": 0.25 * (i + 1), "y": float("nan")},
            headline=headline,
            plots=[Plot("p", "<i>title", "caption & more", draw, [1, i])],
            tables=[Table("t<", ["", "c"], [["r", "<script>"]])],
            notes=["<note>"],
        )
        for i, run in enumerate(runs)
    }
    section = {"skipped": {"<c>": "because <"}, "pictures": pictures(results, runs)} | section
    facts = {run: {"workdir": f"/x/{run}<"} for run in runs}
    return Report(facts, [Section("check", "Check <title>", results, **section)])


def test_the_page_needs_no_other_file_and_escapes_text_from_outside():
    runs = ("<img src=x onerror=alert(1)>", "b&")
    text = report(runs, [Headline("x", "<b>")], source="<u>").html()
    for markup in ("<img src=x", "<script>", "<i>title", "<note>", "<b>", "because <<", "<u>"):
        assert markup not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"<script|https?://", text)
    page = Page(text)
    assert page.open == []
    assert [address[:22] for address in page.addresses] == ["data:image/png;base64,"]
    assert 'width="576"' in text  # 6 inches


def test_a_section_from_an_earlier_evaluation_says_its_step():
    earlier = report(source="From an earlier evaluation: step 7.", step="step 7")
    assert "From an earlier evaluation: step 7." in Page(earlier.html()).text
    assert earlier.summary()[0]["label"] == "x, % (step 7)"


@pytest.mark.parametrize(
    ("higher_is_better", "better", "verdict"),
    [(True, "higher", "better"), (False, "lower", "worse"), (None, "", "")],
)
def test_differences_are_judged_by_the_better_direction(higher_is_better, better, verdict):
    (row,) = report(headline=[Headline("x", "x", 100, 1, higher_is_better)]).summary()
    cell = {"value": "50.0", "difference": "+25.0", "verdict": verdict}
    assert row == {
        "label": "x", "better": better, "beside": False, "first": "25.0", "others": [cell]
    }  # fmt: skip


def test_values_that_are_equal_missing_or_not_numbers_have_no_direction():
    same, nan = report(headline=[Headline("x", "x", 0.01), Headline("y", "y")]).summary()
    assert same["others"][0]["verdict"] == "same"
    assert nan["first"] == "-"
    assert nan["others"][0] == {"value": "-", "difference": "-", "verdict": ""}
    full = report()
    (section,) = full.sections
    only_b = dataclasses.replace(section, results={"b": section.results["b"]})
    (row,) = Report(full.runs, [only_b]).summary()
    assert (row["first"], row["others"][0]["difference"]) == ("-", "-")


NLL, ECE, SCALED_NLL, SCALED_ECE = (
    Headline("nll", "NLL, raw", higher_is_better=False),
    Headline("ece", "ECE, raw", higher_is_better=False),
    Headline("s/nll", "NLL, scaled", higher_is_better=False, raw="nll"),
    Headline("s/ece", "ECE, scaled", higher_is_better=False, raw="ece"),
)


def two_checks(first=("a", "b"), second=("a", "b"), **attributes):
    """Accuracy and NLL in one check, the pairs of raw and scaled figures in another."""
    raw, scaled = {"nll": 2.0, "ece": 0.2}, {"s/nll": 1.0, "s/ece": 0.1}
    accuracy = CheckResult({"accuracy": 0.5, "nll": 2.0}, [Headline("accuracy", "accuracy"), NLL])
    pairs = {
        "a": CheckResult(raw | scaled, [ECE, NLL, SCALED_ECE, SCALED_NLL]),
        "b": CheckResult(raw | scaled, [ECE, NLL]),  # its scaled figures are not for the summary
    }
    return [
        Section("accuracy", "Accuracy", dict.fromkeys(first, accuracy)),
        Section("pairs", "Pairs", {run: pairs[run] for run in second}, **attributes),
    ]


def rows_of(sections):
    return [
        (row["label"], row["beside"], row["first"], row["others"][0]["value"])
        for row in Report({"a": {}, "b": {}}, sections).summary()
    ]


def test_a_raw_figure_stands_below_its_scaled_one_wherever_the_two_were_computed():
    expected = [
        ("accuracy", False, "0.50", "0.50"),
        ("NLL, scaled", False, "1.00", "-"),
        ("NLL, raw", True, "2.00", "2.00"),
        ("ECE, scaled", False, "0.10", "-"),
        ("ECE, raw", True, "0.20", "0.20"),
    ]
    assert rows_of(two_checks()) == expected
    assert sorted(rows_of(two_checks()[::-1])) == sorted(expected)
    page = Report({"a": {}, "b": {}}, two_checks()).html()
    assert page.count('<tr class="beside">') == 2
    assert page.index("NLL, scaled") < page.index("NLL, raw") < page.index("ECE, scaled")


def test_a_metric_of_two_checks_at_one_step_is_one_row_with_the_values_of_both():
    sections = two_checks(second=("a",), source="From an earlier evaluation.")
    assert ("NLL, raw", True, "2.00", "2.00") in rows_of(sections)
    other_step = two_checks(second=("a",), step="step 7")
    assert [row[:2] for row in rows_of(other_step)] == [
        ("accuracy", False),
        ("NLL, raw", False),
        ("ECE, scaled (step 7)", False),
        ("ECE, raw (step 7)", True),
        ("NLL, scaled (step 7)", False),
        ("NLL, raw (step 7)", True),
    ]


def test_warnings_stand_above_the_summary_with_their_run_and_step():
    results = {
        "a": CheckResult({"x": 1.0}, HEADLINE, notes=["Just a note."]),
        "b": CheckResult({"x": 1.0}, HEADLINE, notes=[f"{WARNING}it is <soft>.", "Just a note."]),
    }
    report = Report({"a": {}, "b": {}}, [Section("check", "Check", results)])
    assert report.text().startswith("Just a note.\n\nWarning: b: it is <soft>.\n\nSummary\n")
    text = report.html()
    assert '<p class="warning"><strong>Warning:</strong> b: it is &lt;soft&gt;.</p>' in text
    assert text.count("&lt;soft&gt;") == 1
    assert text.index("&lt;soft&gt;") < text.index("<h2>Summary</h2>")
    alone = Report({"b": {}}, [Section("check", "", {"b": results["b"]}, step="step 7")])
    assert "Warning: step 7: it is <soft>." in alone.text().splitlines()


def test_a_run_looks_the_same_in_a_plot_that_the_first_run_is_missing_from():
    colours = []

    def spy(figure, runs):
        colours.append({name: style["color"] for name, (_, style) in runs.items()})
        draw(figure, runs)

    result = CheckResult({}, plots=[Plot("p", "", "", spy, [1, 2])])
    pictures({"a": result, "b": result}, ("a", "b"))
    pictures({"b": result}, ("a", "b"))
    assert colours[0]["b"] == colours[1]["b"] != colours[0]["a"]


def test_a_table_is_aligned_for_the_terminal():
    text = Table("T", ["", "one"], [["a", "1.0"], ["long", "-"]]).text()
    assert text == "T\n      one\na     1.0\nlong    -"
