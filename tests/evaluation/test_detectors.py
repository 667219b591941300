"""Out-of-distribution detectors on features, against pytorch-ood, scikit-learn and NumPy."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from sklearn.covariance import EmpiricalCovariance

from sdd_jax.data import Dataset, Split
from sdd_jax.errors import InputError
from sdd_jax.evaluation import attacks, detectors, evaluator, metrics
from sdd_jax.evaluation.checks import build
from sdd_jax.evaluation.metrics import nearest_neighbours

PEER = json.loads((Path(__file__).parent / "peers" / "ood_detectors.json").read_text())
TRAIN, FEATURES, KERNEL, BIAS, LABELS = (
    np.array(PEER["inputs"][name]) for name in ("train", "features", "kernel", "bias", "labels")
)
LOGITS = FEATURES @ KERNEL + BIAS
MOMENTS = metrics.feature_moments([(TRAIN, LABELS)], num_classes=4)
OPTIONS = PEER["options"]
RNG = np.random.default_rng(0)


def energy(features):
    return metrics.negative_energy(features @ KERNEL + BIAS)


def odin():
    def logits_fn(x):
        kernel, bias = (jnp.asarray(array, jnp.float32) for array in (KERNEL, BIAS))
        return jnp.matmul(x, kernel, precision="highest") + bias[None]

    @jax.jit
    def moved_logits(x):
        return logits_fn(attacks.odin_inputs(logits_fn, x, jnp.float32(0.05), temperature=10.0))

    logits = moved_logits(jnp.asarray(FEATURES, jnp.float32))
    return metrics.maximum_softmax_probability(logits, temperature=10.0)


def vim():
    fitted = metrics.fit_virtual_logit(MOMENTS, TRAIN, KERNEL, BIAS, dim=OPTIONS["dim"])
    return metrics.virtual_logit(FEATURES, LOGITS, fitted)


# Our scores in the convention of pytorch-ood 0.4.0: high for outliers, MSP and ODIN as probabilities,
# GEN as a mean, Mahalanobis with the sum over N examples in place of the covariance, and half of it.
OURS = {
    "msp": lambda: -np.exp(metrics.maximum_softmax_probability(LOGITS)),
    "odin": lambda: -np.exp(odin()),
    "max_logit": lambda: -metrics.maximum_logit(LOGITS),
    "energy": lambda: -metrics.negative_energy(LOGITS),
    "gen": lambda: -metrics.negative_generalized_entropy(LOGITS, num_probabilities=3) / 3,
    "knn": lambda: -metrics.negative_neighbour_distance(FEATURES, TRAIN, k=OPTIONS["k"]),
    "mahalanobis": lambda: -metrics.mahalanobis(FEATURES, MOMENTS) / (2 * len(TRAIN)),
    "relative_mahalanobis": lambda: -metrics.relative_mahalanobis(FEATURES, MOMENTS) / len(TRAIN),
    "vim": lambda: -vim(),
    "react": lambda: (
        -energy(
            metrics.react(FEATURES, threshold=np.percentile(TRAIN, 100 * OPTIONS["percentile"]))
        )
    ),
    "ash": lambda: -energy(metrics.ash_s(FEATURES, percentile=100 * OPTIONS["percentile"])),
}


@pytest.mark.parametrize("name", OURS)
def test_scores_are_those_of_pytorch_ood(name):
    # Mahalanobis: its ridge of 1e-6; all others: its float32
    np.testing.assert_allclose(OURS[name](), PEER["outlier_scores"][name], rtol=1e-4, atol=1e-5)


def test_every_detector_is_compared_with_its_peer():
    assert set(OURS) == set(PEER["outlier_scores"]) == set(build("ood", {}).ood_detectors)


@pytest.mark.parametrize("sizes", [(80,), (1,) * 80, (3, 50, 0, 27)])
def test_moments_do_not_depend_on_the_batches(sizes):
    order = RNG.permutation(80)
    features, labels = TRAIN[order] + 1e6 * (LABELS[order] == 2)[:, None], LABELS[order]
    ends = np.cumsum(sizes)[:-1]
    batches = zip(np.split(features, ends), np.split(labels, ends), strict=True)
    moments = metrics.feature_moments(batches, num_classes=6)
    np.testing.assert_array_equal(moments.counts, np.bincount(labels, minlength=6))
    means = np.stack([features[labels == c].mean(0) for c in range(4)])
    np.testing.assert_allclose(moments.class_means[:4], means)
    within = np.cov((features - means[labels]).T, bias=True)
    np.testing.assert_allclose(moments.within, within, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(moments.mean, features.mean(0))
    np.testing.assert_allclose(moments.covariance, np.cov(features.T, bias=True))


@pytest.mark.parametrize("count", [5, 200])
def test_mahalanobis_takes_scikit_learns_pseudo_inverse_where_features_are_dependent(count):
    features = RNG.standard_normal((count, 6))
    features = np.concatenate([features, features @ RNG.standard_normal((6, 3)), 0 * features], 1)
    labels, others = np.arange(count) % 2, 2 * RNG.standard_normal((9, 15))
    means = [features[labels == c].mean(0) for c in (0, 1)]
    covariances = [
        EmpiricalCovariance(assume_centered=True).fit(features - shift)
        for shift in (np.stack(means)[labels], features.mean(0))
    ]
    distances = [covariances[0].mahalanobis(others - mean) for mean in means]
    background = covariances[1].mahalanobis(others - features.mean(0))
    moments = metrics.feature_moments([(features, labels)], num_classes=3)  # one class is empty
    expected = -np.min(distances, axis=0)
    np.testing.assert_allclose(metrics.mahalanobis(others, moments), expected, rtol=1e-6)
    np.testing.assert_allclose(
        metrics.relative_mahalanobis(others, moments), expected + background, rtol=1e-6
    )


def test_the_kth_neighbour_is_that_of_all_distances_in_any_number_of_chunks(monkeypatch):
    bank, features = RNG.standard_normal((33, 5)), RNG.standard_normal((12, 5)).astype(np.float32)
    unit_bank, unit = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, features))
    distances = np.sort(np.linalg.norm(unit[:, None] - unit_bank, axis=-1), axis=1)
    for chunk, k in ((4, 5), (33, 5), (33, 33)):
        monkeypatch.setattr(nearest_neighbours, "CHUNK", chunk)
        scores = metrics.negative_neighbour_distance(features, bank, k=k)
        np.testing.assert_allclose(scores, -distances[:, k - 1], rtol=1e-6)


def test_a_near_duplicate_keeps_its_small_distance():
    bank = RNG.standard_normal((20, 8))
    direction = np.linalg.qr(bank[:2].T)[0][:, 1]  # orthogonal to the first row
    features = bank[:1] / np.linalg.norm(bank[0]) + 1e-6 * direction
    scores = metrics.negative_neighbour_distance(features, bank, k=1)
    np.testing.assert_allclose(scores, -1e-6, rtol=1e-4)


def test_generalised_entropy_tells_saturated_predictions_apart():
    scores = metrics.negative_generalized_entropy([[40.0, 0.0], [60.0, 0.0]], gamma=0.1)
    p = np.exp(-np.array([40.0, 60.0]))
    np.testing.assert_allclose(scores, -2 * p**0.1)


def test_the_virtual_logit_has_the_mean_of_the_largest_logits_and_an_origin_without_logits():
    fitted = metrics.fit_virtual_logit(MOMENTS, TRAIN, KERNEL, BIAS)
    assert fitted.residual.shape == (8, 4)  # half of the features
    np.testing.assert_allclose(fitted.origin @ KERNEL + BIAS, 0, atol=1e-12)
    logits = TRAIN @ KERNEL + BIAS
    norms = metrics.negative_energy(logits) - metrics.virtual_logit(TRAIN, logits, fitted)
    np.testing.assert_allclose(norms.mean(), logits.max(-1).mean())
    second_moment = (TRAIN - fitted.origin).T @ (TRAIN - fitted.origin) / len(TRAIN)
    left = np.trace(fitted.residual.T @ second_moment @ fitted.residual)
    np.testing.assert_allclose(left, np.linalg.eigvalsh(second_moment)[:4].sum())


def test_features_that_are_not_finite_or_zero_neither_raise_nor_warn():
    features = np.array([[np.inf] * 8, [0.0] * 8])
    bad = metrics.feature_moments([(np.full((4, 8), np.inf), np.arange(4))], num_classes=4)
    for score in (metrics.mahalanobis, metrics.relative_mahalanobis):
        assert np.isnan(score(features, MOMENTS)).tolist() == [True, False]
        assert np.isnan(score(features, bad)).all()
    fitted = metrics.fit_virtual_logit(bad, TRAIN, KERNEL, BIAS)
    assert np.isnan(metrics.virtual_logit(FEATURES, LOGITS, fitted)).all()
    bank = TRAIN[TRAIN.any(axis=1)]
    scores = metrics.negative_neighbour_distance(features, bank, k=1)
    np.testing.assert_array_equal(scores.round(12), [np.nan, -1])
    assert np.isnan(metrics.negative_neighbour_distance(features, features, k=1)).all()
    np.testing.assert_array_equal(metrics.ash_s(features)[1], np.zeros(8))
    assert np.isnan(metrics.negative_generalized_entropy([[np.nan, 0.0]])).all()
    assert metrics.negative_neighbour_distance(np.empty((0, 8)), TRAIN).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.feature_moments([], 2), "at least one example"),
        (lambda: metrics.feature_moments([(TRAIN, LABELS)], 3), r"integers in \[0, 3\), got int64"),
        (lambda: metrics.feature_moments([(TRAIN, LABELS[1:])], 4), r"\(80, 8\) and \(79,\)"),
        (
            lambda: metrics.negative_neighbour_distance(FEATURES, TRAIN, k=81),
            r"k must be in \[1, 80\], the size of the bank, got 81",
        ),
        (lambda: metrics.negative_neighbour_distance(FEATURES, TRAIN[0]), r"\(12, 8\) and \(8,\)"),
        (lambda: metrics.ash_s(FEATURES, percentile=100), "percentile must be in"),
        (
            lambda: metrics.fit_virtual_logit(MOMENTS, TRAIN, KERNEL, BIAS, dim=8),
            r"dim must be in \[0, 8\), got 8",
        ),
        (lambda: metrics.negative_generalized_entropy(LOGITS, gamma=0), "gamma must be"),
        (
            lambda: metrics.negative_generalized_entropy(LOGITS, num_probabilities=0),
            "num_probabilities must be 1 or more, got 0",
        ),
    ],
)
def test_unusable_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def pixels(linear):
    """``(evaluator, others)``: features are the pixels; another data set is called "other"."""
    rng = np.random.default_rng(3)
    labels = np.arange(37) % 3
    images = (30 * rng.standard_normal((37, 2, 2, 1)) + 60 + 60 * labels[:, None, None, None]).clip(
        0, 255
    )
    others = rng.integers(0, 256, (23, 2, 2, 1), dtype=np.uint8)
    split = Split(others, np.zeros(23, np.int32))
    ones = np.ones(1, np.float32)
    other = Dataset("other", 1, {"train": split, "test": split}, ones, ones)
    kernel, bias = rng.standard_normal((4, 3)) / 100, (0.5, -0.5, 0.0)
    made = linear(
        images.astype(np.uint8), labels, kernel, bias=bias, load_dataset=lambda name: other
    )
    return made, others


def flat(images):
    return images.reshape(len(images), -1).astype(float)


def test_the_check_fits_detectors_to_the_training_split_alone(pixels):
    made, others = pixels
    train = made.setup.dataset.splits["train"].take(np.arange(20))
    dataset = dataclasses.replace(
        made.setup.dataset, splits=made.setup.dataset.splits | {"train": train}
    )
    made = dataclasses.replace(made, setup=dataclasses.replace(made.setup, dataset=dataset))
    chosen = ("knn", "mahalanobis", "react")
    values = build("ood", {"ood": ("other",), "ood_detectors": chosen})(made).metrics
    bank, inside, outside = map(flat, (train.images, made.images, others))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, inside, outside)]
    knn = [-np.linalg.norm(x[:, None] - unit[0], axis=-1).max(1) for x in unit[1:]]  # k is 20
    means = np.stack([bank[train.labels == c].mean(0) for c in range(3)])
    covariance = EmpiricalCovariance(assume_centered=True).fit(bank - means[train.labels])
    mahalanobis = [
        -np.min([covariance.mahalanobis(x - mean) for mean in means], 0) for x in (inside, outside)
    ]
    kernel = np.array(made.setup.model.kernel)
    clipped = [np.minimum(x, np.percentile(bank, 90)) for x in (inside, outside)]
    react = [scipy.special.logsumexp(x @ kernel + [0.5, -0.5, 0], -1) for x in clipped]
    for name, scores in {"knn": knn, "mahalanobis": mahalanobis, "react": react}.items():
        for metric, value in metrics.detection(*scores).items():
            assert values[f"ood/other/{name}/{metric}"] == pytest.approx(value, abs=1e-3), name


def test_training_features_are_streamed_and_the_bank_is_a_seeded_subset(pixels, monkeypatch):
    made, _ = pixels
    monkeypatch.setattr(evaluator, "BATCHES_OF_FEATURES", 1)
    monkeypatch.setattr(detectors, "BANK", 11)
    training = detectors.Training(made)
    features = flat(made.images)
    assert [len(part) for part in made.feature_batches(made.images)] == [8, 8, 8, 8, 5]
    np.testing.assert_allclose(training.moments.mean, features.mean(0), rtol=1e-5)
    assert training.bank.shape == (11, 4)
    nearest = np.abs(training.bank[:, None] - features).sum(-1)
    assert len(set(nearest.argmin(1).tolist())) == 11
    assert nearest.min(1).max() < 1e-3
    np.testing.assert_array_equal(training.bank, detectors.Training(made).bank)
    (note, _) = build("ood", {"ood": ("other",), "ood_detectors": ("vim",)})(made).notes
    assert "fitted on 37 training images; " in note
    assert "11 of them, chosen by the seed" in note


def test_detectors_of_logits_leave_the_training_split_unread(pixels, monkeypatch):
    made, _ = pixels
    monkeypatch.setattr(type(made), "feature_batches", None)
    chosen = ("msp", "odin", "energy", "max_logit", "gen")
    result = build("ood", {"ood": ("other",), "ood_detectors": chosen})(made)
    assert [row[0] for row in result.tables[0].rows] == [
        "MSP",
        "ODIN",
        "Energy",
        "Max logit",
        "GEN",
    ]
    assert {name.split("/")[2] for name in result.metrics} == set(chosen)
    assert not any("training" in note for note in result.notes)


def test_near_and_far_sets_have_their_means_in_one_table(linear):
    rng = np.random.default_rng(4)
    images = rng.integers(0, 99, (30, 2, 2, 1), dtype=np.uint8)
    ones = np.ones(1, np.float32)

    def load(name):
        scale = {"a": 1.2, "b": 1.5, "c": 2.5}[name]
        split = Split((scale * images).astype(np.uint8), np.zeros(30, np.int32))
        return Dataset(name, 1, {"train": split, "test": split}, ones, ones)

    made = linear(images, np.arange(30) % 2, bias=(0.0, 1.0), load_dataset=load)
    options = {"ood_near": ("a,b",), "ood": ("c",), "ood_detectors": ("mahalanobis", "msp")}
    result = build("ood", options)(made)
    (table,) = result.tables
    assert [row[1] for row in table.rows[::2]] == ["near (mean)", "far (mean)", "a", "b", "c"]
    assert table.header == ["detector", "against", "AUROC", "AUPR-in", "AUPR-out", "FPR95"]
    for metric in ("auroc", "aupr_in", "aupr_out", "fpr95"):
        near, far, a, b, c = (
            result.metrics[f"ood/{group}/mahalanobis/{metric}"] for group in ("near", "far", *"abc")
        )
        assert near == pytest.approx((a + b) / 2)
        assert far == c
    far = result.metrics["ood/far/mahalanobis/auroc"]
    assert table.rows[2][:3] == ["Mahalanobis", "far (mean)", f"{100 * far:.1f}"]
    labels = [line.label for line in result.headline]
    assert labels == [f"AUROC against {group} (mean), MSP, %" for group in ("near", "far")]


def test_the_interval_of_a_mean_over_sets_is_that_of_resampled_images(linear):
    """The difference of two detectors in place of two runs."""
    rng = np.random.default_rng(5)
    images = rng.integers(0, 200, (60, 2, 2, 1), dtype=np.uint8)
    others = {name: rng.integers(90, 250, (25, 2, 2, 1), dtype=np.uint8) for name in "abc"}
    ones = np.ones(1, np.float32)

    def load(name):
        split = Split(others[name], np.zeros(25, np.int32))
        return Dataset(name, 1, {"train": split, "test": split}, ones, ones)

    kernel = rng.standard_normal((4, 2)) / 100
    made = linear(images, np.arange(60) % 2, kernel, bias=(0.0, 1.0), load_dataset=load)
    chosen = ("energy", "mahalanobis")
    check = build("ood", {"ood_near": ("a", "b"), "ood": ("c",), "ood_detectors": chosen})
    by_image = check(made).by_image
    far, c = ([by_image[f"ood/{name}/{d}/auroc"] for d in chosen] for name in ("far", "c"))
    assert metrics.paired_interval(*far) == metrics.paired_interval(*c)
    near = [by_image[f"ood/near/{d}/auroc"] for d in chosen]
    low, high = metrics.paired_interval(*near)

    def scores(pixels):
        z = flat(pixels) @ kernel + [0, 1]
        return {
            "energy": scipy.special.logsumexp(z, -1),
            "mahalanobis": metrics.mahalanobis(flat(pixels), moments),
        }

    moments = metrics.feature_moments([(flat(images), np.arange(60) % 2)], 2)
    inside, *outside = (scores(pixels) for pixels in (images, others["a"], others["b"]))
    wins = [
        (inside["mahalanobis"][:, None] > one["mahalanobis"]).astype(float)
        - (inside["energy"][:, None] > one["energy"])
        for one in outside
    ]

    def mean_difference(rows, *columns):
        return np.mean(
            [w[np.ix_(rows, part)].mean() for w, part in zip(wins, columns, strict=True)]
        )

    whole = mean_difference(np.arange(60), np.arange(25), np.arange(25))
    sizes = (60, 25, 25)
    resampled = [mean_difference(*(rng.integers(0, n, n) for n in sizes)) for _ in range(1000)]
    assert near[1][0].mean() - near[0][0].mean() == pytest.approx(whole, abs=1e-3)
    assert (low + high) / 2 == pytest.approx(whole, abs=(high - low) / 20)
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(resampled), rel=0.1)


def test_a_detector_outside_the_package_is_chosen_by_its_name(pixels):
    made, others = pixels

    @detectors.detectors.register("first_pixel_in_test")
    def first_pixel(training):
        threshold = training.bank[:, 0].mean()
        return detectors.Detector("First pixel", lambda outputs: outputs.features[:, 0] - threshold)

    result = build("ood", {"ood": ("other",), "ood_detectors": ("first_pixel_in_test",)})(made)
    expected = metrics.detection(flat(made.images)[:, 0], flat(others)[:, 0])["auroc"]
    assert result.metrics["ood/other/first_pixel_in_test/auroc"] == pytest.approx(
        expected, abs=1e-3
    )
    assert [line.label for line in result.headline] == ["AUROC against other, First pixel, %"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ood_detectors": ("msp", "nope")}, "ood_detectors: must be one of ash, energy, .*'nope'"),
        ({"ood_detectors": ()}, "ood_detectors: must be a list that is not empty"),
        ({"ood_detectors": ("msp", "msp")}, "ood_detectors: must be different detectors"),
        ({"ood_near": ("a/photos",)}, "ood_near: must be data sets that differ .* those of ood"),
        ({"ood_near": ("npz:/far.npz",)}, "ood_near: must be data sets .* none called near or far"),
        ({"ood_near": ("a",), "ood": ("b", "c/b")}, "ood: must be different data sets"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(InputError, match=f"config.eval.{message}"):
        build("ood", options)


def test_a_near_set_that_cannot_be_loaded_is_named_with_its_field(pixels):
    made, _ = pixels
    with pytest.raises(InputError, match="ood_near: must be another data set than the run's"):
        build("ood", {"ood_near": ("fake",)}).requirement(made.setup)
