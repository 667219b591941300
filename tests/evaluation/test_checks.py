"""Checks on trained runs, and what they refuse."""

import numpy as np
import pytest
import scipy.special
from sklearn.metrics import roc_auc_score

from sdd_jax import data
from sdd_jax.errors import InputError
from sdd_jax.evaluation import corruptions
from sdd_jax.evaluation.checks import build, checks, default_options
from sdd_jax.evaluation.evaluate import Evaluation
from sdd_jax.experiment import load_subject
from sdd_jax.parallel import replicate
from sdd_jax.trained import load_trained
from sdd_jax.training.workdir import read_config


def evaluation_of(folder):
    subject = load_subject(read_config(folder))
    return Evaluation(subject, replicate(load_trained(str(folder), subject.dataset).variables))


@pytest.fixture(scope="module")
def ce(runs):
    return evaluation_of(runs["ce"])


@pytest.fixture(scope="module")
def sd_dropout(runs):
    return evaluation_of(runs["sd_dropout"])


def by_hand(evaluation, images):
    """Logits of the MLP, in numpy."""
    params = evaluation.variables["params"]
    dataset = evaluation.subject.dataset
    x = ((images / 255.0 - dataset.mean) / dataset.std).reshape(len(images), -1)
    layers = [*params["backbone"].values()]
    for layer in layers:
        x = np.maximum(x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)
    return x @ np.asarray(params["classifier"]["kernel"]) + np.asarray(params["classifier"]["bias"])


def test_temperature_is_fitted_on_the_validation_split_alone(ce):
    found = build("calibration", {})(ce).metrics
    validation = ce.subject.dataset.splits["validation"]
    logits = by_hand(ce, validation.images)

    def nll(temperature):
        log_probs = scipy.special.log_softmax(logits / temperature, axis=-1)
        return -np.mean(log_probs[np.arange(len(logits)), validation.labels])

    grid = np.exp(np.linspace(np.log(0.1), np.log(10), 2001))
    best = grid[np.argmin([nll(t) for t in grid])]
    assert found["calibration/temperature"] == pytest.approx(best, rel=0.01)
    scaled = scipy.special.log_softmax(by_hand(ce, ce.images) / best, axis=-1)
    expected = -np.mean(scaled[np.arange(len(scaled)), ce.labels])
    assert found["calibration/scaled/nll"] == pytest.approx(expected, rel=1e-3)
    assert found["nll"] == pytest.approx(
        -np.mean(
            scipy.special.log_softmax(by_hand(ce, ce.images), axis=-1)[
                np.arange(len(ce.labels)), ce.labels
            ]
        ),
        rel=1e-3,
    )


def test_without_a_validation_split_no_temperature_is_fitted_and_the_report_says_so(ce):
    import dataclasses

    splits = {k: v for k, v in ce.subject.dataset.splits.items() if k != "validation"}
    dataset = dataclasses.replace(ce.subject.dataset, splits=splits)
    subject = dataclasses.replace(ce.subject, dataset=dataset)
    found = build("calibration", {})(dataclasses.replace(ce, subject=subject))
    assert not any("temperature" in name or "scaled" in name for name in found.metrics)
    assert found.notes == ["No validation split, so no temperature was fitted."]


def test_a_temperature_at_its_bound_is_explained(ce):
    import dataclasses

    right = np.flatnonzero(ce.logits.argmax(-1) == ce.labels)[:40]
    splits = {**ce.subject.dataset.splits}
    splits["validation"] = splits["test"].take(right)
    dataset = dataclasses.replace(ce.subject.dataset, splits=splits)
    subject = dataclasses.replace(ce.subject, dataset=dataset)
    found = build("calibration", {})(dataclasses.replace(ce, subject=subject))
    assert found.metrics["calibration/temperature"] == 0.01
    assert "all 40 validation images are classified right" in found.notes[0]


def test_detection_is_that_of_the_other_sets_resized_images(ce):
    found = build("ood", {})(ce).metrics
    photos = data.load(
        {"name": "photos", "data_dir": "", "cache_dir": "", "num_classes": 0, "validation": 0.0,
         "mean": (), "std": ()}
    ).splits["test"].images  # fmt: skip
    other = data.resized(photos, (8, 8, 1))
    assert other.shape == (260, 8, 8, 1)
    inside, outside = by_hand(ce, ce.images), by_hand(ce, other)
    truth = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    for name, score in (
        ("msp", lambda z: scipy.special.softmax(z, -1).max(-1)),
        ("energy", lambda z: scipy.special.logsumexp(z, -1)),
        ("max_logit", lambda z: z.max(-1)),
    ):
        expected = roc_auc_score(truth, np.r_[score(inside), score(outside)])
        assert found[f"ood/photos/{name}/auroc"] == pytest.approx(expected, abs=2e-4), name
    assert 0.5 < found["ood/photos/odin/auroc"] <= 1


def test_odin_without_movement_is_the_softmax_at_its_temperature(ce):
    options = {"odin_epsilon": 0.0, "odin_temperature": 1.0}
    found = build("ood", options)(ce).metrics
    assert found["ood/photos/odin/auroc"] == pytest.approx(found["ood/photos/msp/auroc"], abs=1e-4)


def test_mc_dropout_of_an_sd_dropout_run_is_dropout_on_its_features(sd_dropout):
    found = build("mc_dropout", {"mc_samples": 30})(sd_dropout)
    assert "dropout 0.5 on the features" in found.notes[0]
    metrics = found.metrics
    probs = [
        scipy.special.softmax(sd_dropout.sampled_logits(i, rate=0.5).astype(float), axis=-1)
        for i in range(30)
    ]
    assert not np.array_equal(probs[0], probs[1])
    for m in (1, 5, 30):
        mean = np.mean(probs[:m], axis=0)
        entropy = scipy.special.entr(mean).sum(-1)
        expected = np.mean([scipy.special.entr(p).sum(-1) for p in probs[:m]], axis=0)
        labels = sd_dropout.labels
        assert metrics[f"mc_dropout/{m}/accuracy"] == np.mean(mean.argmax(-1) == labels)
        nll = -np.mean(np.log(mean[np.arange(len(labels)), labels]))
        assert metrics[f"mc_dropout/{m}/nll"] == pytest.approx(nll)
        assert metrics[f"mc_dropout/{m}/entropy"] == pytest.approx(entropy.mean())
        information = np.maximum(entropy - expected, 0).mean()
        assert metrics[f"mc_dropout/{m}/mutual_information"] == pytest.approx(information, abs=1e-9)
    assert metrics["mc_dropout/1/mutual_information"] < 1e-9
    assert metrics["mc_dropout/30/mutual_information"] > 0.005


def test_mc_dropout_takes_another_rate_and_refuses_where_there_is_none(ce):
    assert "needs a run with dropout" in build("mc_dropout", {}).requirement(ce.subject)
    some = build("mc_dropout", {"mc_rate": 0.3, "mc_samples": 2})
    assert some.requirement(ce.subject) == ""
    assert "mc_dropout/2/accuracy" in some(ce).metrics


def test_generated_corruptions_are_marked_and_counted(ce):
    found = build("corruption", {})(ce)
    names = corruptions.names(1)
    assert "saturate" not in names
    accuracy = {
        name: [found.metrics[f"corruption/generated/{name}/{s}/accuracy"] for s in range(1, 6)]
        for name in names
    }
    assert found.metrics["corruption/generated/mean_accuracy"] == pytest.approx(
        np.mean(list(accuracy.values()))
    )
    assert np.mean([a[4] for a in accuracy.values()]) < np.mean([a[0] for a in accuracy.values()])
    assert found.notes[0].startswith("Generated: 10 corruptions")
    assert all(name.startswith("corruption/generated/") for name in found.metrics)
    # contrast by hand: floor of the mean-preserving shrinkage
    images = ce.images / 255.0
    means = images.mean(axis=(1, 2), keepdims=True)
    shrunk = np.floor(np.clip((images - means) * 0.15 + means, 0, 1) * 255 + 1e-3)
    right = np.mean(by_hand(ce, shrunk).argmax(-1) == ce.labels)
    assert accuracy["contrast"][4] == pytest.approx(right, abs=0.01)


def made_folder(path, evaluation, names=("fog", "snow")):
    """In the official layout: five severities, one after another; severity s darkens by 40 s."""
    images = evaluation.images.astype(int)
    stack = np.concatenate([np.maximum(images - 40 * s, 0) for s in range(1, 6)]).astype(np.uint8)
    for i, name in enumerate(names):
        np.save(path / f"{name}.npy", np.roll(stack, i, axis=2))
    np.save(path / "labels.npy", np.tile(evaluation.labels, 5).astype(np.uint8))
    return stack


def test_official_files_are_read_severity_by_severity(ce, tmp_path):
    stack = made_folder(tmp_path, ce)
    found = build("corruption", {"corruption_dir": str(tmp_path)})(ce)
    count = len(ce.labels)
    for s in range(5):
        part = stack[s * count : (s + 1) * count]
        right = by_hand(ce, part).argmax(-1) == ce.labels
        assert found.metrics[f"corruption/official/fog/{s + 1}/accuracy"] == right.mean()
    assert found.notes == ("Official files: 2 corruptions of 19: the mean is over these alone.",)
    assert found.tables[0].rows[-1][0] == "mean"
    assert not any("generated" in name for name in found.metrics)


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
def test_a_folder_that_is_not_what_it_must_be_is_refused(ce, tmp_path, spoil, message):
    made_folder(tmp_path, ce)
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        build("corruption", {"corruption_dir": str(tmp_path)}).requirement(ce.subject)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mc_dropout", {"mc_samples": 0}, "config.eval.mc_samples: must be at least 1, got 0"),
        ("mc_dropout", {"mc_rate": 1.0}, "config.eval.mc_rate: must be in"),
        ("ood", {"ood": ()}, "config.eval.ood: must be names of data sets"),
        ("ood", {"ood": ("photos,photos",)}, "config.eval.ood: must be names of data sets, each"),
        ("ood", {"odin_temperature": 0.0}, "config.eval.odin_temperature: must be greater than 0"),
        ("ood", {"odin_epsilon": -1.0}, "config.eval.odin_epsilon: must be 0 or more"),
        ("adversarial", {"epsilons": (-1.0,)}, "config.eval.epsilons: must be numbers in"),
        ("adversarial", {"epsilons": ()}, "config.eval.epsilons: must be numbers in"),
        ("adversarial", {"pgd_steps": 0}, "config.eval.pgd_steps: must be at least 1"),
        ("adversarial", {"max_images": -1}, "config.eval.max_images: must be 0 or more"),
    ],
)
def test_unusable_options_are_refused_before_anything_is_computed(name, options, message):
    with pytest.raises(InputError, match=message):
        build(name, options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits", "config.eval.ood: must be other data sets than config.dataset.name"),
        ("npz:/nowhere.npz", "config.eval.ood: 'npz:/nowhere.npz' cannot be used: .* no file"),
    ],
)
def test_other_sets_that_cannot_be_used_are_refused(ce, name, message):
    with pytest.raises(InputError, match=message):
        build("ood", {"ood": (name,)}).requirement(ce.subject)


def test_options_of_all_checks_are_in_the_config_and_an_unknown_check_is_refused():
    from sdd_jax import config as base

    options = base.default().eval
    assert set(default_options()) | {"batch_size"} == set(options)
    assert options.odin_temperature == 1000
    with pytest.raises(InputError, match="--checks: must be one of accuracy, adversarial"):
        checks.get("nope")
