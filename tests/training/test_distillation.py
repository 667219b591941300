"""Dropout Distillation: the loss of a step, and runs of teacher and student with their table."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from sdd_jax import config as configs
from sdd_jax import losses
from sdd_jax.errors import InputError
from sdd_jax.evaluate import evaluate_workdir
from sdd_jax.evaluation import Evaluator
from sdd_jax.experiment import load_experiment, load_setup
from sdd_jax.models import models
from sdd_jax.objectives import Batch, View, objectives
from sdd_jax.prng import example_keys
from sdd_jax.runs import load_trained_network, read_metrics
from sdd_jax.train import train_and_evaluate

IMAGES = np.random.default_rng(0).standard_normal((6, 8, 8, 1)).astype(np.float32)
LOGITS = np.random.default_rng(1).standard_normal((6, 10)).astype(np.float32)


# ------------------------------------------------------------------------------ the objective


def network(**options):
    options = {"name": "mlp", "width": 16, "dropout_rate": 0.4} | options
    model = models.build(options, num_classes=10)
    variables = jax.jit(model.init)(jax.random.key(1), IMAGES)
    return SimpleNamespace(model=model, variables={"batch_stats": {}, **variables})


def distill(teacher, **options):
    return objectives.build({"name": "distill", **options}, load_teachers=lambda: [teacher])


@pytest.mark.parametrize("divergence", ["kl", "brier", "reverse_kl"])
def test_the_term_is_the_loss_against_fresh_masks_of_the_teacher(divergence):
    teacher, streams = network(), []
    objective = distill(teacher, divergence=divergence, teacher_samples=3)

    def forward(images, *, batch_stats=None, dropout="dropout"):
        np.testing.assert_array_equal(images, IMAGES)
        assert dropout is None
        return View(None, jnp.asarray(LOGITS), None, {})

    def keys(stream):
        streams.append(stream)
        return example_keys(0, stream, jnp.int32(0), jnp.arange(6))

    constants = objective.constants(IMAGES, jax.random.key(0))
    output = objective.loss(forward, Batch((IMAGES,), *[None] * 4, constants=constants), keys)
    assert len(set(streams)) == 3
    samples = [
        teacher.model.apply(teacher.variables, IMAGES, dropout_keys=keys(stream))
        for stream in list(streams)
    ]
    assert not np.array_equal(samples[0], samples[1])
    expected = losses.dropout_distillation_loss(
        LOGITS, jnp.stack(samples), divergence=divergence, sample_axis=0
    )
    np.testing.assert_allclose(output.terms["distill"].values, expected, rtol=1e-5)
    agreement = np.mean([np.argmax(z, -1) == np.argmax(LOGITS, -1) for z in samples], axis=0)
    np.testing.assert_allclose(output.metrics["distill/agreement"], agreement, rtol=1e-6)
    if divergence == "kl":
        floor = output.metrics["distill/floor"]
        np.testing.assert_array_equal(floor, np.full(6, constants["floor"]))
    else:
        assert "distill/floor" not in output.metrics


def test_the_floor_is_the_mean_mutual_information_of_100_masks():
    teacher, key = network(), jax.random.key(3)
    constants = distill(teacher).constants(IMAGES, key)
    sampled = jax.jit(
        lambda key: teacher.model.apply(
            teacher.variables, IMAGES, dropout_keys=jax.random.split(key, 6)
        )
    )
    logits = np.array([sampled(key) for key in jax.random.split(key, 100)], np.float64)
    probs = scipy.special.softmax(logits, axis=-1)
    entropies = scipy.special.entr(probs).sum(-1).mean(0)
    expected = np.mean(scipy.special.entr(probs.mean(0)).sum(-1) - entropies)
    assert expected > 0.01
    np.testing.assert_allclose(constants["floor"], expected, rtol=1e-4)
    assert constants["teachers"] == (teacher.variables,)


def test_layers_of_another_shape_are_redrawn_and_the_others_copied():
    teacher = network()
    student = jax.tree.map(np.array, teacher.variables)
    student["params"]["classifier"]["kernel"] = np.zeros((8, 10), np.float32)
    initial = distill(teacher).initialise(jax.random.key(0), student)
    ours, theirs = initial["params"], teacher.variables["params"]
    assert ours["classifier"]["kernel"].shape == (8, 10)
    assert abs(np.std(ours["classifier"]["kernel"]) - 0.01) < 0.003
    assert 0 < np.abs(ours["classifier"]["bias"]).max() < 0.1  # the whole layer is redrawn
    jax.tree.map(np.testing.assert_array_equal, ours["backbone"], theirs["backbone"])
    assert distill(teacher, init="scratch").initialise is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "mse"}, "divergence: must be one of kl, brier, reverse_kl, got 'mse'"),
        ({"teacher_samples": 0}, r"teacher_samples: must be in \[1, 1000\], got 0"),
        ({"init": "random"}, "init: must be one of teacher, scratch, got 'random'"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(InputError, match=f"^config.objective.{message}$"):
        distill(network(), **options)


def test_a_teacher_without_dropout_or_of_another_kind_is_refused():
    with pytest.raises(
        InputError, match="^config.objective: 'distill' needs a teacher with dropout"
    ):
        distill(network(dropout_rate=0.0))
    with pytest.raises(
        InputError, match="'distill' with init='teacher' needs the teacher's network"
    ):
        distill(network()).initialise(jax.random.key(0), network(depth=3).variables)


# -------------------------------------------------------------------------------------- runs


def config_of(**changes):
    config = configs.default()
    config.model = models.options("mlp", width=32, depth=2, dropout_rate=0.4)
    config.sd_dropout.weight = 0.0
    config.batch_size = 176
    config.duration = "12 epochs"
    config.eval_every = "6 epochs"
    config.eval.mc_samples = 20
    config.update(changes)
    return config


def student_of(teacher, **changes):
    config = config_of(teacher=str(teacher), inputs="perturbed", **changes)
    config.objective = objectives.options("distill")
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    train_and_evaluate(config_of(), str(folder))
    return folder


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    train_and_evaluate(student_of(teacher), str(folder))
    return folder


def test_the_student_starts_as_the_teacher(teacher):
    experiment = load_experiment(student_of(teacher))
    trained = load_trained_network(teacher, experiment.setup.dataset)
    params = experiment.create_state().params
    jax.tree.map(np.testing.assert_array_equal, params, trained.variables["params"])


def test_the_loss_falls_to_the_floor_and_the_student_to_the_ensemble(student):
    lines = [line for line in read_metrics(student) if "train/distill" in line]
    floor, *others = {line["train/distill/floor"] for line in lines}
    assert not others
    first, last = (line["train/distill"] - floor for line in (lines[0], lines[-1]))
    assert floor > 0.05
    assert last < 0.6 * first
    assert last > -0.05
    assert "train/accuracy" not in lines[0]  # it looks at no labels


def test_the_three_way_table_and_its_curve(student, teacher, capsys):
    result = evaluate_workdir(str(student), ["accuracy", "distillation"])
    figures = {k.removeprefix("eval/").removeprefix("distillation/"): v for k, v in result.items()}
    # The student is nearer to the ensemble than the teacher without dropout is.
    assert figures["distilled/kl_from_mc"] < 0.5 * figures["standard/kl_from_mc"]
    assert figures["mc/kl_from_mc"] == 0
    assert figures["distilled/error"] == pytest.approx(1 - figures["accuracy"])
    standard = evaluate_workdir(str(teacher), ["accuracy", "calibration"])
    assert figures["standard/error"] == pytest.approx(1 - standard["eval/accuracy"])
    assert figures["standard/ece"] == pytest.approx(standard["eval/ece"])
    assert figures["mc_error/20"] == figures["mc/error"]
    gap = figures["standard/error"] - figures["mc/error"]
    if gap > 0:
        closed = (figures["standard/error"] - figures["distilled/error"]) / gap
        assert figures["gap_closed"] == pytest.approx(closed)
    else:
        assert "gap_closed" not in figures
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("Standard", "MC(20)", "Gap closed"))
    assert (student / "eval" / "mc_error.png").stat().st_size > 10_000


@pytest.mark.parametrize("depth", [1, 2])  # dropout before the head alone, or inside as well
def test_sampled_logits_are_those_of_the_network_by_hand(depth, monkeypatch):
    config = config_of()
    config.model.depth = depth
    setup = load_setup(configs.complete(config))
    trained = network(width=32, depth=depth)
    evaluator = Evaluator(setup, {}).with_network(trained)
    streamed, stream = [], Evaluator.stream

    def record(self, program, *arrays):
        streamed.append(arrays[0].shape)
        return stream(self, program, *arrays)

    monkeypatch.setattr(Evaluator, "stream", record)
    keys = example_keys(0, "mc_dropout", jnp.int32(3), jnp.arange(360))
    dataset = setup.dataset
    images = (dataset.splits["test"].images / np.float32(255) - dataset.mean) / dataset.std
    expected = trained.model.apply(trained.variables, images, dropout_keys=keys)
    evaluator.sampled_logits(0)
    np.testing.assert_allclose(evaluator.sampled_logits(3), expected, rtol=1e-3, atol=1e-4)
    whole, features = (360, 8, 8, 1), (360, 32)
    assert streamed == ([whole, features, features] if depth == 1 else [whole, whole])


def test_unlabelled_inputs_are_those_of_the_other_set(teacher, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "other.npz"
    images = rng.integers(0, 256, (400, 8, 8, 1), dtype=np.uint8)
    labels = np.zeros(400, int)
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    config = student_of(teacher)
    config.inputs = f"unlabelled:npz:{path}"
    experiment = load_experiment(config)
    np.testing.assert_array_equal(experiment.engine.resident["images"], images)
    assert (
        len(experiment.setup.dataset.splits["test"]) == 360
    )  # evaluated on the teacher's own data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": ""}, "config.teacher: must be the workdir of a finished run, got ''"),
        ({"teacher": "/nowhere"}, "config.teacher: "),
        (
            {"dataset.validation": 0.1},
            "config.teacher: .* was trained with config.dataset.validation",
        ),
        ({"inputs": "noisy"}, "config.inputs: must be train, perturbed or unlabelled:NAME"),
        (
            {"model.depth": 3},
            "config.model: 'distill' with init='teacher' needs the teacher's network",
        ),
        ({"objective.name": "cross_entropy"}, "config.teacher: must be empty, .* has no teacher"),
    ],
)
def test_a_teacher_that_is_missing_or_does_not_fit_is_refused(teacher, tmp_path, changes, message):
    config = student_of(teacher)
    for field, value in changes.items():
        section, _, key = field.rpartition(".")
        (config[section] if section else config)[key] = value
    if config.objective.name != "distill":
        config.objective = objectives.options(config.objective.name)
    with pytest.raises(InputError, match=f"^{message}"):
        train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_other_misuse_of_a_teacher_is_refused(teacher):
    with pytest.raises(InputError, match="config.objective 'cross_entropy' needs labels"):
        load_experiment(config_of(inputs="unlabelled:digits"))
    with pytest.raises(InputError, match="--checks: distillation needs a run with a teacher"):
        evaluate_workdir(str(teacher), ["distillation"])
