"""Checks on trained runs, and the options and runs that they refuse."""

import dataclasses
import shutil

import numpy as np
import pytest
import scipy.special
from PIL import Image
from sklearn.metrics import roc_auc_score

from sdd_jax import data
from sdd_jax.config import complete, default
from sdd_jax.data.lazy_images import LazyImages
from sdd_jax.devices import replicate
from sdd_jax.errors import InputError
from sdd_jax.evaluation import Evaluator, corruptions, metrics
from sdd_jax.evaluation.checks import build, checks, default_options
from sdd_jax.evaluation.checks.distillation import gap_note
from sdd_jax.evaluation.report import Report, Section
from sdd_jax.evaluation.results import WARNING
from sdd_jax.experiment import load_setup
from sdd_jax.runs import load_trained_network, read_config


def evaluator_of(folder):
    setup = load_setup(complete(read_config(folder)))
    return Evaluator(setup, replicate(load_trained_network(folder, setup.dataset).variables))


@pytest.fixture(scope="module")
def ce(runs):
    return evaluator_of(runs["ce"])


@pytest.fixture(scope="module")
def sd_dropout(runs):
    return evaluator_of(runs["sd_dropout"])


def with_validation(evaluator, split):
    """The evaluator with another validation split, or with none."""
    dataset = evaluator.setup.dataset
    splits = {k: v for k, v in dataset.splits.items() if k != "validation"}
    splits |= {} if split is None else {"validation": split}
    dataset = dataclasses.replace(dataset, splits=splits)
    return dataclasses.replace(
        evaluator, setup=dataclasses.replace(evaluator.setup, dataset=dataset)
    )


def by_hand(evaluator, images):
    """Logits of the MLP, in NumPy."""
    params = evaluator.variables["params"]
    dataset = evaluator.setup.dataset
    x = ((images / 255.0 - dataset.mean) / dataset.std).reshape(len(images), -1)
    for layer in params["backbone"].values():
        x = np.maximum(x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])[None], 0)
    head = params["classifier"]
    return x @ np.asarray(head["kernel"]) + np.asarray(head["bias"])[None]


def nll(logits, labels):
    return -np.mean(scipy.special.log_softmax(logits, axis=-1)[np.arange(len(labels)), labels])


def test_temperature_is_fitted_on_the_validation_split_alone(ce):
    values = build("calibration", {})(ce).metrics
    validation = ce.setup.dataset.splits["validation"]
    logits = by_hand(ce, validation.images)
    grid = np.exp(np.linspace(np.log(0.1), np.log(10), 2001))
    best = grid[np.argmin([nll(logits / t, validation.labels) for t in grid])]
    assert values["calibration/temperature"] == pytest.approx(best, rel=0.01)
    test = by_hand(ce, ce.images)
    assert values["calibration/scaled/nll"] == pytest.approx(nll(test / best, ce.labels), rel=1e-3)
    assert values["nll"] == pytest.approx(nll(test, ce.labels), rel=1e-3)


def test_confidence_and_its_gap_to_the_accuracy_are_metrics(ce):
    values = build("calibration", {})(ce).metrics
    logits = by_hand(ce, ce.images)
    confidence = scipy.special.softmax(logits, axis=-1).max(-1).mean()
    accuracy = np.mean(logits.argmax(-1) == ce.labels)
    assert values["calibration/confidence"] == pytest.approx(confidence, abs=1e-5)
    assert values["calibration/gap"] == pytest.approx(accuracy - confidence, abs=1e-5)


def test_without_a_validation_split_no_temperature_is_fitted_and_a_note_says_so(ce):
    result = build("calibration", {})(with_validation(ce, None))
    assert not any("temperature" in name or "scaled" in name for name in result.metrics)
    (note,) = result.notes
    assert note.startswith("There is no validation split, so no temperature is fitted")
    assert "--config.dataset.validation=0.1" in note
    assert labels_of(with_validation(ce, None)) == [
        "accuracy, %", "NLL, raw, nats", "ECE, raw, %", "AURC",
    ]  # fmt: skip


def all_correct(evaluator):
    """The evaluator with 40 validation images that it classifies correctly."""
    correct = np.flatnonzero(evaluator.logits.argmax(-1) == evaluator.labels)[:40]
    return with_validation(evaluator, evaluator.setup.dataset.splits["test"].take(correct))


def test_a_note_explains_a_temperature_at_its_bound_and_its_figures_are_not_in_the_summary(ce):
    result = build("calibration", {})(all_correct(ce))
    assert result.metrics["calibration/temperature"] == 0.01
    assert result.metrics["calibration/scaled/nll"] > result.metrics["nll"]
    assert "all 40 validation images are classified correctly" in result.notes[0]
    assert "a larger dataset.validation" in result.notes[0]
    assert labels_of(all_correct(ce)) == labels_of(with_validation(ce, None))


def test_calibrators_are_fitted_on_the_validation_split_and_judged_on_the_test_split(ce):
    result = build("calibration", {})(ce)
    validation = dataclasses.replace(ce, split="validation")
    fitted = metrics.fit_isotonic(metrics.log_softmax(validation.logits), validation.labels)
    log_probs = metrics.isotonic(metrics.log_softmax(ce.logits), fitted)
    expected = metrics.compute(log_probs, ce.labels, "accuracy", "nll", "ece")
    for name, value in expected.items():
        assert result.metrics[f"calibration/isotonic/{name}"] == value
    (table,) = result.tables
    assert table.title.endswith(f"fitted on {len(validation.labels)} validation images")
    p = int(result.metrics["calibration/logit_norm/p"])
    names = ["raw", "temperature", "vector", "Dirichlet", "isotonic", f"{p}-norm of logits"]
    assert [row[0] for row in table.rows] == names
    by_norm = table.rows[-1]
    assert by_norm[1:5] == ["-"] * 4
    assert by_norm[5] == f"{1000 * result.metrics['calibration/logit_norm/aurc']:.2f}"
    (row,) = build("calibration", {})(with_validation(ce, None)).tables[0].rows
    assert row == table.rows[0]
    (row,) = build("calibration", {})(all_correct(ce)).tables[0].rows
    assert row == table.rows[0]


def test_dirichlet_scaling_is_left_out_with_many_classes(ce, monkeypatch):
    from sdd_jax.evaluation.checks import calibration

    monkeypatch.setattr(calibration, "MOST_CLASSES", 9)
    result = build("calibration", {})(ce)
    assert "Dirichlet" not in [row[0] for row in result.tables[0].rows]
    assert "Dirichlet scaling is left out with more than 9 classes." in result.notes


def labels_of(evaluator, names=("accuracy", "calibration")):
    """Labels of the summary of these checks."""
    sections = [Section(name, name, {"run": build(name, {})(evaluator)}) for name in names]
    return [row.label for row in Report({"run": {}}, sections).summary()]


def test_temperature_scaled_figures_come_first_and_raw_ones_beside_them(ce):
    pairs = (
        "NLL, temperature-scaled, nats", "NLL, raw, nats", "ECE, temperature-scaled, %",
        "ECE, raw, %", "fitted temperature", "AURC",
    )  # fmt: skip
    assert labels_of(ce) == ["accuracy, %", *pairs]
    assert labels_of(ce, ["calibration"]) == list(pairs)
    assert set(labels_of(ce, ["calibration", "accuracy"])) == {"accuracy, %", *pairs}
    headline = {line.label: line.metric for line in build("calibration", {})(ce).headline}
    assert headline["NLL, temperature-scaled, nats"] == "calibration/scaled/nll"
    assert headline["NLL, raw, nats"] == "nll"
    assert labels_of(ce, ["accuracy"]) == ["accuracy, %", "NLL, raw, nats"]


def test_a_temperature_that_makes_the_nll_worse_is_warned_about(ce):
    assert not any("makes the NLL worse" in note for note in warnings_of(softened(ce, 6)))
    wrong = np.flatnonzero(ce.logits.argmax(-1) != ce.labels)
    right = np.flatnonzero(ce.logits.argmax(-1) == ce.labels)[: 2 * len(wrong)]
    test = ce.setup.dataset.splits["test"]
    hard = with_validation(ce, test.take(np.concatenate([wrong, right])))
    result = build("calibration", {})(hard)
    raw, scaled = (result.metrics[name] for name in ("nll", "calibration/scaled/nll"))
    assert scaled > raw
    (note,) = [note for note in result.notes if "makes the NLL worse" in note]
    assert note.startswith(f"{WARNING}temperature scaling makes the NLL worse, {scaled:.3f} in ")
    assert f"in place of {raw:.3f}: " in note
    assert f"fitted on {3 * len(wrong)} validation images" in note


FAST_ATTACKS = {"pgd_steps": 2, "apgd_steps": 2, "square_queries": 5}


def contributions_equal_metrics(result):
    """Checks the contributions of a result: an entry for each metric of its summary with a direction."""
    judged = {line.metric for line in result.headline if line.higher_is_better is not None}
    assert judged <= set(result.by_image)
    for name, groups in result.by_image.items():
        for group in groups:
            np.testing.assert_allclose(group.mean(), result.metrics[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("accuracy", {}),
        ("calibration", {}),
        ("adversarial", {"epsilons": (8.0,), "max_images": 40} | FAST_ATTACKS),
        ("corruption", {"max_images": 40}),
        ("mc_dropout", {"mc_samples": 3}),
        ("ood", {}),
    ],
)
def test_every_metric_of_the_summary_comes_with_the_contributions_of_its_images(
    sd_dropout, name, options
):
    contributions_equal_metrics(build(name, options)(sd_dropout))


def test_the_risk_coverage_plot_shows_the_whole_curve_of_every_run():
    from matplotlib.figure import Figure

    from sdd_jax.evaluation.checks.calibration import draw_risk_coverage

    figure = Figure()
    styles = [{"color": "k", "linestyle": "-", "marker": "o"}] * 2
    curves = np.array([0.0, 0.0, 0.1]), np.array([0.0, 0.5, 0.6])
    draw_risk_coverage(figure, dict(zip("ab", zip(curves, styles, strict=True), strict=True)))
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert low < 0  # a curve at zero does not coincide with the frame
    assert high > 60
    assert axes.get_xlim() == (0, 100)


def test_the_reliability_plot_has_its_legend_off_the_axes_and_faint_bins_of_few_images():
    from matplotlib.figure import Figure

    from sdd_jax.evaluation.checks.calibration import draw_reliability

    bins = metrics.Bins(np.array([3.0, 40.0]), np.array([0.3, 0.8]), np.array([0.9, 0.7]))
    figure = Figure(layout="constrained")
    draw_reliability(figure, {"a": ({"raw": bins}, {})})
    (axes,) = figure.axes
    assert axes.get_legend() is None
    assert [len(legend.get_texts()) for legend in figure.legends] == [1]
    alphas = {tuple(c.get_offsets()[0]): c.get_alpha() for c in axes.collections}
    assert alphas[(30.0, 90.0)] < 0.3 < alphas[(80.0, 70.0)]


def softened(evaluator, factor):
    """The evaluator of the network whose logits are divided by a factor."""
    head = {
        name: x / np.float32(factor)
        for name, x in evaluator.variables["params"]["classifier"].items()
    }
    params = evaluator.variables["params"] | {"classifier": head}
    return dataclasses.replace(evaluator, variables=evaluator.variables | {"params": params})


def warnings_of(evaluator):
    notes = build("calibration", {})(evaluator).notes
    return [note.removeprefix(WARNING) for note in notes if note.startswith(WARNING)]


def test_an_underconfident_network_is_warned_about_with_its_figures_and_the_remedy(sd_dropout):
    evaluator = softened(sd_dropout, 6)
    logits = by_hand(sd_dropout, sd_dropout.images) / 6
    confidence = scipy.special.softmax(logits, axis=-1).max(-1).mean()
    accuracy = np.mean(logits.argmax(-1) == sd_dropout.labels)
    temperature = build("calibration", {})(sd_dropout).metrics["calibration/temperature"] / 6
    (warning,) = warnings_of(evaluator)
    for text in (
        f"underconfident: its mean confidence is {100 * confidence:.1f} %, its accuracy "
        f"{100 * accuracy:.1f} %.",
        "probabilities are too low",
        "the ranking of the classes and the accuracy are unaffected",
        f"Divide the logits by the fitted temperature, {temperature:.3g},",
        "compare runs by the temperature-scaled figures",
        "a smaller sd_dropout.weight",
    ):
        assert text in warning
    assert "\n" not in warning


def test_the_warning_of_an_overconfident_network_mirrors_it(sd_dropout):
    (warning,) = warnings_of(softened(sd_dropout, 0.05))
    assert "the network is overconfident: its mean confidence is " in warning
    assert "probabilities are too high" in warning
    assert "Divide the logits by the fitted temperature, " in warning
    assert "weight" not in warning


def test_a_network_without_a_fitted_temperature_is_warned_about_as_well(ce):
    for evaluator in (with_validation(softened(ce, 6), None), all_correct(softened(ce, 6))):
        (warning,) = warnings_of(evaluator)
        assert "underconfident" in warning
        assert "or compare runs by NLL or ECE, fit a temperature: train with a larger" in warning
        assert "weight" not in warning  # it was trained without SD-Dropout


def test_the_remedy_is_not_a_temperature_that_widens_the_gap(ce):
    """Validation labels that are often wrong want a temperature above 1."""
    evaluator = softened(ce, 6)
    validation = ce.setup.dataset.splits["validation"]
    wrong = np.where(
        np.arange(len(validation)) % 5, (validation.labels + 1) % 10, validation.labels
    )
    wrong = dataclasses.replace(validation, labels=wrong.astype(np.int32))
    worse_nll, warning = warnings_of(with_validation(evaluator, wrong))
    assert "makes the NLL worse" in worse_nll
    assert "underconfident" in warning
    assert "Divide" not in warning
    assert "does not correct this" in warning


@pytest.mark.parametrize(
    ("count", "correct", "expected"),
    [
        (4, 3, False),  # the gap of 0.15 is less than two standard errors, 0.5
        (400, 300, True),  # 0.05
        (400, 180, True),  # -0.15
        (100_000, 61_500, False),  # many standard errors, but only 0.015
        (1, 1, False),
    ],
)
def test_a_gap_that_is_small_or_within_chance_is_not_warned_about(linear, count, correct, expected):
    images = np.zeros((count, 1, 1, 1), np.uint8)
    labels = (np.arange(count) >= correct).astype(int)
    evaluator = linear(images, labels, bias=(np.log(1.5), 0.0), batch_size=count)  # confidence 0.6
    result = build("calibration", {})(evaluator)
    assert result.metrics["calibration/gap"] == pytest.approx(correct / count - 0.6, abs=1e-6)
    assert bool(warnings_of(evaluator)) == expected


def test_detection_is_that_of_the_resized_images_of_the_other_set(ce):
    values = build("ood", {})(ce).metrics
    photos = data.load(name="photos").splits["test"].images
    other = data.resized(photos, (8, 8, 1))
    assert other.shape == (260, 8, 8, 1)
    inside, outside = by_hand(ce, ce.images), by_hand(ce, other)
    is_inside = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    for name, score in (
        ("msp", lambda z: scipy.special.softmax(z, -1).max(-1)),
        ("energy", lambda z: scipy.special.logsumexp(z, -1)),
        ("max_logit", lambda z: z.max(-1)),
    ):
        expected = roc_auc_score(is_inside, np.r_[score(inside), score(outside)])
        assert values[f"ood/photos/{name}/auroc"] == pytest.approx(expected, abs=2e-4), name


def test_mc_dropout_of_an_sd_dropout_run_is_dropout_on_its_features(sd_dropout):
    result = build("mc_dropout", {"mc_samples": 30})(sd_dropout)
    assert "dropout 0.5 on the features" in result.notes[0]
    values, labels = result.metrics, sd_dropout.labels
    probs = [
        scipy.special.softmax(sd_dropout.sampled_logits(i, rate=0.5).astype(float), axis=-1)
        for i in range(30)
    ]
    assert not np.array_equal(probs[0], probs[1])
    for m in (1, 5, 30):
        mean = np.mean(probs[:m], axis=0)
        entropy = scipy.special.entr(mean).sum(-1)
        expected_entropy = np.mean([scipy.special.entr(p).sum(-1) for p in probs[:m]], axis=0)
        prefix = f"mc_dropout/{m}"
        assert values[f"{prefix}/accuracy"] == np.mean(mean.argmax(-1) == labels)
        assert values[f"{prefix}/nll"] == pytest.approx(nll(np.log(mean), labels))
        assert values[f"{prefix}/entropy"] == pytest.approx(entropy.mean())
        information = (entropy - expected_entropy).mean()
        assert values[f"{prefix}/mutual_information"] == pytest.approx(information, abs=1e-9)
    assert values["mc_dropout/30/mutual_information"] > 0.005


def test_mc_dropout_needs_a_run_with_dropout_or_a_rate(ce):
    assert "needs a run with dropout" in build("mc_dropout", {}).requirement(ce.setup)
    check = build("mc_dropout", {"mc_rate": 0.3, "mc_samples": 2})
    assert check.requirement(ce.setup) == ""
    assert "mc_dropout/2/accuracy" in check(ce).metrics


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.018, 0.031), "2.44 points (95 % interval 1.80 to 3.10)."),
        (
            (-0.003, 0.05),
            "2.44 points (95 % interval -0.30 to 5.00); the gap may be chance, and then its share "
            "says nothing.",
        ),
        (None, "2.44 points."),
    ],
)
def test_the_closed_share_stands_beside_the_interval_of_its_gap(interval, expected):
    values = {"standard/error": 0.2644, "mc/error": 0.24, "gap_closed": 0.148}
    assert gap_note(values, interval) == (
        f"Gap closed: 15 % of the way from Standard to MC in error, {expected}"
    )


def test_distillation_needs_a_teacher_that_can_be_loaded(ce):
    def load_teachers():
        raise InputError("must hold a run", field="config.teacher")

    check = build("distillation", {})
    assert check.requirement(ce.setup) == "distillation needs a run with a teacher"
    with pytest.raises(InputError, match="cannot be loaded: config.teacher: must hold a run"):
        check.requirement(dataclasses.replace(ce.setup, load_teachers=load_teachers))


def test_generated_corruptions_are_marked_and_counted(ce):
    result = build("corruption", {})(ce)
    names = corruptions.names(1)
    assert "saturate" not in names
    accuracy = np.array(
        [
            [result.metrics[f"corruption/generated/{name}/{s}/accuracy"] for s in range(1, 6)]
            for name in names
        ]
    )
    mean = result.metrics["corruption/generated/mean_accuracy"]
    assert mean == pytest.approx(accuracy.mean())
    assert accuracy[:, 4].mean() < accuracy[:, 0].mean()
    assert result.notes[0].startswith("Generated: 10 corruptions")
    assert all(name.startswith("corruption/generated/") for name in result.metrics)
    # Contrast by hand: the image shrinks towards its mean and is truncated to whole levels.
    images = ce.images / 255.0
    means = images.mean(axis=(1, 2), keepdims=True)
    shrunk = np.floor(np.clip((images - means) * 0.15 + means, 0, 1) * 255 + 1e-3)
    correct = np.mean(by_hand(ce, shrunk).argmax(-1) == ce.labels)
    assert accuracy[names.index("contrast"), 4] == pytest.approx(correct, abs=0.01)


def write_official(path, evaluator, names=("fog", "snow")):
    """Writes the official layout, five severities one after another; severity s darkens by 40 s."""
    images = evaluator.images.astype(int)
    stack = np.concatenate([np.maximum(images - 40 * s, 0) for s in range(1, 6)]).astype(np.uint8)
    for i, name in enumerate(names):
        np.save(path / f"{name}.npy", np.roll(stack, i, axis=2))
    np.save(path / "labels.npy", np.tile(evaluator.labels, 5).astype(np.uint8))
    return stack


def test_official_files_are_read_severity_by_severity(ce, tmp_path):
    stack = write_official(tmp_path, ce)
    result = build("corruption", {"corruption_dir": str(tmp_path)})(ce)
    for s, images in enumerate(np.split(stack, 5), start=1):
        correct = by_hand(ce, images).argmax(-1) == ce.labels
        assert result.metrics[f"corruption/official/fog/{s}/accuracy"] == correct.mean()
    assert result.notes == ("Official files: 2 corruptions of 19; the mean is over these alone.",)
    assert result.tables[0].rows[-1][0] == "mean"
    assert not any("generated" in name for name in result.metrics)


def write_folders(root, images, labels, names=("fog", "snow")):
    """Writes ImageNet-C's layout; severity s darkens by 20 s, and the classes are called a, b, ..."""
    for name in names:
        for severity in range(1, 6):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                folder = root / name / str(severity) / "abc"[label]
                folder.mkdir(parents=True, exist_ok=True)
                dark = np.maximum(image.astype(int) - 20 * severity, 0).astype(np.uint8)
                Image.fromarray(dark).save(folder / f"{i:02}.png")


@pytest.fixture
def coloured(linear):
    """The evaluator of a linear network on 20 colour images of three classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    kernel = rng.standard_normal((48, 3)) / 255
    return linear(images, np.arange(20) % 3, kernel, bias=(0.1, 0.0, 0.0))


def test_folders_of_imagenet_c_are_decoded_batch_by_batch(coloured, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (13, 4, 4, 3), dtype=np.uint8), np.arange(13) % 3
    write_folders(tmp_path, images, labels)
    check = build("corruption", {"corruption_dir": str(tmp_path)})
    monkeypatch.setattr(LazyImages, "__array__", lambda self, **kwargs: pytest.fail("decoded"))
    assert check.requirement(coloured.setup) == ""
    monkeypatch.undo()
    decoded, decode = [], LazyImages.__array__
    monkeypatch.setattr(
        LazyImages,
        "__array__",
        lambda self, **kw: [decoded.append(len(self)), decode(self, **kw)][1],
    )
    result = check(coloured)
    assert max(decoded) <= coloured.setup.batch_size
    kernel = np.array(coloured.setup.model.kernel)
    for severity in range(1, 6):
        dark = np.maximum(images.astype(int) - 20 * severity, 0).reshape(13, -1)
        correct = (dark @ kernel + [0.1, 0, 0]).argmax(-1) == labels
        for name in ("fog", "snow"):
            value = result.metrics[f"corruption/official/{name}/{severity}/accuracy"]
            assert value == pytest.approx(correct.mean())
    assert result.notes == ("Official files: 2 corruptions of 19; the mean is over these alone.",)
    contributions_equal_metrics(result)


def test_an_image_of_the_networks_size_is_not_cropped_and_another_one_is_resized():
    image = np.random.default_rng(0).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    as_it_is = LazyImages([image], 14, "images", resize=1.0)
    np.testing.assert_array_equal(np.asarray(as_it_is[:1])[0], image)
    wide = np.repeat(np.repeat(image, 2, axis=0), 4, axis=1)  # 28 x 56
    expected = Image.fromarray(wide).resize((28, 14), Image.Resampling.BILINEAR)
    found = LazyImages([wide], 14, "images", resize=1.0)[0]
    np.testing.assert_array_equal(found, np.asarray(expected)[:, 7:21])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: shutil.rmtree(d / "snow" / "4"), "snow/4 must be a folder of classes"),
        (lambda d: shutil.rmtree(d / "fog" / "1" / "b"), "fog/1: must be 3 folders, got 2"),
        (lambda d: (d / "snow/2/a/00.png").unlink(), "snow/2 must hold the same 5 images as fog"),
        (lambda d: (d / "snow/2/a").rename(d / "snow/2/z"), "snow/2 must hold the same 5 images"),
    ],
)
def test_folders_without_the_same_images_of_every_class_are_refused(
    coloured, tmp_path, spoil, message
):
    write_folders(tmp_path, coloured.images[:5], np.arange(5) % 3)
    check = build("corruption", {"corruption_dir": str(tmp_path)})
    assert check.requirement(coloured.setup) == ""
    spoil(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        check.requirement(coloured.setup)
    assert error.value.field.startswith("corruption_dir")


def test_folders_of_photographs_need_a_network_of_square_colour_images(ce, tmp_path):
    (tmp_path / "fog").mkdir()
    with pytest.raises(InputError, match="must be square colour images, to read folders, got"):
        build("corruption", {"corruption_dir": str(tmp_path)}).requirement(ce.setup)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "labels.npy").unlink(), "must hold NAME.npy and labels.npy files"),
        (lambda d: (d / "fog.npy").write_bytes(b"nonsense"), "fog.npy cannot be read"),
        (lambda d: np.save(d / "fog.npy", np.zeros((5, 8, 8, 1), np.uint8)), "fog.npy: must be"),
        (lambda d: np.save(d / "labels.npy", np.zeros(7, int)), "labels.npy: must be the labels"),
        (lambda d: np.save(d / "labels.npy", np.array([{}], object)), "labels.npy cannot be read"),
    ],
)
def test_a_folder_without_images_and_labels_of_the_run_is_refused(ce, tmp_path, spoil, message):
    write_official(tmp_path, ce)
    spoil(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        build("corruption", {"corruption_dir": str(tmp_path)}).requirement(ce.setup)
    assert error.value.field.startswith("corruption_dir")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mc_dropout", {"mc_samples": 0}, "mc_samples: must be in [1, 100000], got 0"),
        ("mc_dropout", {"mc_rate": 1.0}, "mc_rate: must be in [0, 1)"),
        ("ood", {"ood": ()}, "ood: must be a list that is not empty"),
        ("ood", {"ood": ("photos,a/photos",)}, "ood: must be different data sets"),
        ("ood", {"odin_temperature": 0.0}, "odin_temperature: must be greater than 0"),
        ("ood", {"odin_epsilon": -1.0}, "odin_epsilon: must be 0 or more"),
        ("adversarial", {"epsilons": (-1.0,)}, "epsilons: must be a list of numbers, each in"),
        ("adversarial", {"epsilons": ()}, "epsilons: must be a list that is not empty"),
        ("adversarial", {"pgd_steps": 10**6}, "pgd_steps: must be in [1, 100000]"),
        ("adversarial", {"max_images": -1}, "max_images: must be 0 or more"),
        ("adversarial", {"attacks": ("pgd",)}, "attacks: must be one of apgd_ce, apgd_dlr, square"),
        ("adversarial", {"attacks": ("square",) * 2}, "attacks: must be different attacks"),
    ],
)
def test_unusable_options_are_refused_before_anything_is_computed(name, options, message):
    with pytest.raises(InputError) as error:
        build(name, options)
    assert str(error.value).startswith(f"config.eval.{message}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits", "ood: must be another data set than the run's, got 'digits'"),
        ("npz:/nowhere.npz", "ood: 'npz:/nowhere.npz' cannot be used: .*no file"),
    ],
)
def test_other_sets_that_cannot_be_used_are_refused(ce, name, message):
    with pytest.raises(InputError, match=message):
        build("ood", {"ood": (name,)}).requirement(ce.setup)


def test_the_config_has_the_options_of_all_checks_and_an_unknown_check_is_refused():
    options = default().eval
    assert set(default_options()) | {"batch_size"} == set(options)
    assert options.odin_temperature == 1000
    with pytest.raises(InputError, match="--checks: must be one of accuracy, adversarial"):
        checks.get("nope")
