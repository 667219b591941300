"""The report as a page and as text."""

import csv
import dataclasses
import html.parser
import re

import numpy as np
import pytest

from sdd_jax.evaluation.metrics import bootstrap_interval, paired_interval
from sdd_jax.evaluation.plots import pictures
from sdd_jax.evaluation.report import Report, Section
from sdd_jax.evaluation.results import WARNING, CheckResult, Headline, Plot, Table


class Page(html.parser.HTMLParser):
    """Tags that are open at the end, addresses, and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.text, self.tags = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [v for k, v in attributes if k in ("src", "href")]
        self.tags.append((tag, dict(attributes)))
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
            plots=[Plot("p", "<i>title", "caption & more", draw, [1, i], f"{i} <seen>")],
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
    for markup in (
        "<img src=x", "<script>", "<i>title", "<note>", "<b>", "because <<", "<u>", "<seen>",
    ):  # fmt: skip
        assert markup not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"<script|https?://", text)
    page = Page(text)
    assert page.open == []
    assert [address[:22] for address in page.addresses] == [
        "#summary", "#check", "data:image/png;base64,"
    ]  # fmt: skip
    assert 'width="576"' in text  # 6 inches


def test_a_section_from_an_earlier_evaluation_says_its_step():
    earlier = report(source="From an earlier evaluation: step 7.", step="step 7")
    assert "From an earlier evaluation: step 7." in Page(earlier.html()).text
    assert earlier.summary()[0].label == "x, % (step 7)"


def compared(first, other, *, higher_is_better=True, metric="x"):
    """The report of two runs with these contributions to their one metric."""
    line = Headline(metric, "x, %", 100, 1, higher_is_better)
    results = {
        run: CheckResult({metric: np.mean(values)}, [line], by_image={metric: [values]})
        for run, values in (("a", np.asarray(first)), ("b_1", np.asarray(other)))
    }
    return Report({"a": {}, "b_1": {}}, [Section("check", "Check", results)])


def right(count):
    return np.arange(360) < count


@pytest.mark.parametrize(
    ("higher_is_better", "better", "verdict"),
    [(True, "higher", "better"), (False, "lower", "worse"), (None, "", "")],
)
def test_differences_are_judged_by_the_better_direction(higher_is_better, better, verdict):
    (row,) = compared(right(180), right(270), higher_is_better=higher_is_better).summary()
    assert (row.label, row.better, row.beside) == ("x, %", better, False)
    assert [value for value, _ in row.cells] == ["50.0", "75.0"]
    (cell,) = row.others
    assert (cell.shown_difference, cell.verdict) == ("+25.0", verdict)
    (lower,) = compared(right(270), right(180), higher_is_better=False).summary()
    assert lower.others[0].verdict == "better"


def test_a_difference_whose_interval_includes_zero_is_called_unclear():
    """One image of 360 is no difference; the page colours only what is one."""
    one, many = compared(right(350), right(351)), compared(right(340), right(355))
    for report, verdict in ((one, "unclear"), (many, "better")):
        (row,) = report.summary()
        (cell,) = row.others
        assert cell.verdict == verdict
        assert re.fullmatch(r"\[[+-]\d\.\d, \+\d\.\d\]", cell.shown_interval)
        shown = re.search(r'<span class="difference (\w+)">(.*?)</span>', report.html())
        assert shown[1] == verdict
        assert shown[2].endswith(f" {verdict}")
        assert cell.shown_interval.replace("-", "\u2212") in report.html()
        assert report.text().endswith(f"{cell.shown_interval} {verdict}")
    no_direction = compared(right(350), right(351), higher_is_better=None).summary()
    assert no_direction[0].others[0].verdict == "unclear"


def test_every_value_of_the_summary_has_its_interval():
    report = compared(right(340), right(355))
    (row,) = report.summary()
    (low, high), (low_b, high_b) = (bootstrap_interval([right(count)]) for count in (340, 355))
    expected = [f"94.4 [{100 * low:.1f}, {100 * high:.1f}]"]
    expected.append(f"98.6 [{100 * low_b:.1f}, {100 * high_b:.1f}]")
    assert row.shown == expected
    text = report.text()
    assert "Summary [95 % interval over the test images]" in text
    page = Page(report.html()).text
    for shown in expected:
        assert shown in text
        assert shown in page
    assert "bootstrap interval" in page
    _, values = csv.reader(report.files()["summary.csv"].splitlines())
    np.testing.assert_allclose([float(x) / 100 for x in values[2:4]], (low, high), rtol=1e-5)


def test_intervals_stay_within_the_range_of_the_metric():
    """Of a sum over two groups, as for an AUROC, and of a metric near zero."""
    rng = np.random.default_rng(0)
    near_one = [1 - rng.random(40) / 50, 1 - rng.random(30) / 50]
    near_zero = [rng.normal(0.001, 0.1, 50)]
    result = CheckResult(
        {"auroc": 0.99, "aurc": 0.001},
        [Headline("auroc", "AUROC, %", 100), Headline("aurc", "AURC", 1, 4, False)],
        by_image={"auroc": [x + 0.0098 for x in near_one], "aurc": near_zero},
    )
    assert bootstrap_interval(near_zero)[0] < 0
    assert result.intervals["aurc"][0] == 0
    assert result.intervals["auroc"][1] <= 1


def test_a_recorded_interval_is_shown():
    result = CheckResult({"x": 0.5}, HEADLINE, recorded={"x": (0.25, 0.75)})
    (row,) = Report({"a": {}}, [Section("check", "Check", {"a": result})]).summary()
    assert row.shown == ["50.0 [25.0, 75.0]"]


def test_a_difference_without_the_values_of_the_images_is_shown_without_a_verdict():
    (row,) = report().summary()
    assert row.others[0].text() == "+25.0"
    assert 'class="difference unclear">+25.0 </span>' in report().html()
    other_images = compared(right(180), np.ones(300))
    assert other_images.summary()[0].others[0].text() == "+50.0"


def test_page_and_terminal_say_which_run_is_relative_to_which():
    two = compared(right(340), right(355))
    relation = "Difference, b_1 minus a [95 % interval over the test images]"
    assert f"{relation}; unclear: it includes zero" in two.text()
    assert re.fullmatch(r"x, % +\+4.2 \[\+2.\d, \+6.\d\] better", two.text().splitlines()[-1])
    text = Page(two.html()).text
    assert "its difference from a (the run minus a)" in text
    assert "do not account for the variation between seeds" in text
    assert "Difference, each run minus a" in report(("a", "b", "c")).text()
    assert "Difference" not in report(("a",)).text()
    assert "its difference from" not in report(("a",)).html()


def test_values_that_are_missing_or_not_numbers_have_no_difference():
    (nan,) = report(headline=[Headline("y", "y")]).summary()
    assert (nan.shown, nan.others[0].text(), nan.others[0].verdict) == (["-", "-"], "-", "")
    full = report()
    (section,) = full.sections
    only_b = dataclasses.replace(section, results={"b": section.results["b"]})
    (row,) = Report(full.runs, [only_b]).summary()
    assert (row.shown[0], row.others[0].text()) == ("-", "-")


def test_headers_have_a_scope_and_pictures_a_description_of_what_is_seen():
    page = Page(report().html())
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert {attributes["scope"] for attributes in headers} == {"row", "col"}
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["alt"] == "<i>title. a: 0 <seen>; b: 1 <seen>."
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {"summary", "check"} <= ids  # the targets of the contents


def test_a_page_of_several_runs_names_the_run_at_each_value_for_narrow_screens():
    page = Page(report().html())
    named = [attributes["data-run"] for tag, attributes in page.tags if "data-run" in attributes]
    assert {"a", "b"} == set(named)
    # No table scrolls out of sight; plots of several panels do, and say so.
    assert re.findall(r"([^{}]*)\{[^{}]*overflow-x", report().html()) == [" .panels "]


def test_a_plot_of_several_panels_scrolls_on_a_phone_and_one_of_one_panel_fits():
    for panels in (False, True):
        results = {
            run: CheckResult({}, plots=[Plot("p", "Title", "", draw, [1, 2], panels=panels)])
            for run in ("a", "b")
        }
        page = Page(report(pictures=pictures(results, results)).html())
        scrolled = [a for _, a in page.tags if a.get("class") == "panels"]
        assert scrolled == panels * [
            {"class": "panels", "tabindex": "0", "role": "group", "aria-label": "Title"}
        ]
    assert "The plot continues to the right." in report().html()


def test_a_difference_that_rounds_to_zero_is_not_negative():
    assert Headline("x", "", digits=1).show(-0.04, signed=True) == "+0.0"
    assert Headline("x", "", digits=1).show(-0.04) == "0.0"
    assert Headline("x", "", digits=1).show(-0.06) == "-0.1"


def test_facts_that_all_runs_share_are_stated_once():
    runs = {run: {"seed": "seven", "rate": f"rate of {run}"} for run in ("a", "b")}
    text = Page(Report(runs, []).html()).text
    assert [text.count(fact) for fact in ("seven", "rate of a", "rate of b")] == [1, 1, 1]


def test_tables_come_as_csv_with_all_digits_and_as_latex():
    files, (line,) = compared(right(340), right(355)).files(), HEADLINE
    assert set(files) == {"report.html", "summary.csv", "summary.tex"}
    header, row = csv.reader(files["summary.csv"].splitlines())
    assert header == [
        "metric", "a", "a low", "a high", "b_1", "b_1 low", "b_1 high", "b_1 - a", "low", "high"
    ]  # fmt: skip
    assert [row[i] for i in (0, 1, 4, 7)] == ["x, %", "94.4444", "98.6111", "4.16667"]
    assert float(row[8]) < 4.16667 < float(row[9])
    of_a, of_b = (line.show_interval(bootstrap_interval([right(n)])) for n in (340, 355))
    low, high = (100 * end for end in paired_interval([right(340)], [right(355)]))
    assert files["summary.tex"].splitlines()[1:] == [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r" & a & b\_1 & b\_1 - a \\",
        r"\midrule",
        rf"x, \% & 94.4 {of_a} & 98.6 {of_b} & $+4.2$ [${low:+.1f}$, ${high:+.1f}$] better \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_the_tables_of_a_check_are_files_with_all_runs():
    files = report().files()
    assert files["check.csv"] == "run,,c\na,r,<script>\nb,r,<script>\n"
    assert r"a & r & <script> \\" in files["check.tex"]
    assert report(("a",)).files()["check.csv"] == ",c\nr,<script>\n"


def test_latex_is_escaped():
    text = Table("T", ["", "50% & x_1"], [["a\\b~^", "-0.5"], ["#{}$", "-"]]).latex()
    assert r" & 50\% \& x\_1 \\" in text
    assert r"a\textbackslash{}b\textasciitilde{}\textasciicircum{} & $-0.5$ \\" in text
    assert r"\#\{\}\$ & - \\" in text


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
        (row.label, row.beside, *row.shown)
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
    assert text.index("&lt;soft&gt;") < text.index('<h2 id="summary">Summary</h2>')
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


def drawn_panels(count, **options):
    """Number of runs in each call of the drawing function, and the size of the picture in inches."""
    calls = []

    def spy(figure, runs):
        calls.append(len(runs))
        draw(figure, runs)

    runs = [f"run {i}" for i in range(count)]
    plot = Plot("p", "", "", spy, [1, 2], size=(4, 3), **options)
    (picture,) = pictures({run: CheckResult({}, plots=[plot]) for run in runs}, runs)
    size = [int.from_bytes(picture.png[i : i + 4], "big") / 150 for i in (16, 20)]
    return calls, size


def test_more_than_four_runs_are_drawn_in_small_multiples():
    assert drawn_panels(4) == ([4], [4, 3])
    assert drawn_panels(6) == ([1] * 6, [12, 6])
    assert drawn_panels(2, panels=True) == ([1] * 2, [8, 3])
    assert drawn_panels(1, panels=True) == ([1], [4, 3])


def test_small_multiples_have_the_same_limits_unless_a_plot_says_otherwise():
    for shared in (True, False):
        figures = []

        def spy(figure, runs, figures=figures):
            figures.append(figure)
            draw(figure, runs)

        results = {
            run: CheckResult({}, plots=[
                Plot("p", "", "", spy, data, panels=True, shared_axes=shared)
            ])
            for run, data in (("a", [0, 1]), ("b", [5, 9]))
        }  # fmt: skip
        pictures(results, results)
        limits = [figure.axes[0].get_ylim() for figure in figures]
        assert (limits[0] == limits[1]) == shared
        if shared:
            assert limits[0][0] <= 0
            assert limits[0][1] >= 9


def test_a_picture_comes_as_pixels_and_as_a_pdf_that_is_the_same_every_time():
    result = {"a": CheckResult({}, plots=[Plot("p", "", "", draw, [1, 2])])}
    first, second = (pictures(result, ["a"])[0] for _ in range(2))
    assert first.pdf.startswith(b"%PDF")
    assert first == second
    assert b"/Type3" not in first.pdf  # fonts that journals refuse


def test_a_table_is_aligned_for_the_terminal():
    text = Table("T", ["", "one"], [["a", "1.0"], ["long", "-"]]).text()
    assert text == "T\n      one\na     1.0\nlong    -"
