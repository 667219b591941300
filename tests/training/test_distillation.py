"""Dropout Distillation from the command line's point of view: teacher, student, table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax import data, losses
from sdd_jax import experiment as experiments
from sdd_jax.errors import InputError
from sdd_jax.evaluate import evaluate_workdir
from sdd_jax.models import models
from sdd_jax.objectives import objectives
from sdd_jax.runs.trained_network import load_trained
from sdd_jax.training import loop


def config_of(**changes):
    from sdd_jax import config as base

    config = base.default()
    config.model = models.options("mlp", width=32, depth=2, dropout_rate=0.4)
    config.sd_dropout.weight = 0.0
    config.optimizer.learning_rate = 0.1
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
    loop.train_and_evaluate(config_of(), str(folder))
    return folder


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    loop.train_and_evaluate(student_of(teacher), str(folder))
    return folder


def test_the_student_starts_as_the_teacher(teacher):
    experiment = experiments.load_experiment(student_of(teacher))
    trained = load_trained(str(teacher), experiment.dataset)
    state = experiment.create_state()
    jax.tree.map(np.testing.assert_array_equal, state.params, trained.variables["params"])


def test_layers_of_another_shape_are_redrawn_and_the_others_copied(teacher):
    config = student_of(teacher)
    config.model.width = 12  # every layer touched
    params = experiments.load_experiment(config).create_state().params
    kernels = np.concatenate([x.ravel() for x in jax.tree.leaves(params)])
    assert abs(kernels.std() - 0.01) < 0.002

    from sdd_jax.objectives.distill import _from_teacher

    trained = load_trained(str(teacher), data.load(config.dataset)).variables
    narrow = jax.tree.map(np.array, trained)
    narrow["params"]["classifier"]["kernel"] = np.zeros((8, 10), np.float32)
    made = _from_teacher(trained)(jax.random.key(0), narrow)["params"]
    assert made["classifier"]["kernel"].shape == (8, 10)
    assert 0 < np.abs(made["classifier"]["bias"]).max() < 0.1  # the whole layer is redrawn
    np.testing.assert_array_equal(
        made["backbone"]["Dense_0"]["kernel"], trained["params"]["backbone"]["Dense_0"]["kernel"]
    )


def test_the_loss_falls_to_the_floor_and_the_student_to_the_ensemble(student):
    lines = [line for line in loop.read_metrics(student) if "train/distill" in line]
    floors = {line["train/distill/floor"] for line in lines}
    assert len(floors) == 1
    (floor,) = floors
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
    assert "Standard" in printed
    assert "MC(20)" in printed
    assert "Gap closed" in printed
    assert (student / "eval" / "mc_error.png").stat().st_size > 10_000


def test_monte_carlo_samples_of_the_table_are_those_of_the_network_by_hand(teacher):
    from sdd_jax.evaluation import Evaluator
    from sdd_jax.prng import example_keys

    subject = experiments.load_subject(config_of())
    trained = load_trained(str(teacher), subject.dataset)
    evaluation = Evaluator(subject, {}).of(trained)
    images = subject.dataset.splits["test"].images[:8]
    keys = example_keys(0, "mc_dropout", jnp.int32(3), jnp.arange(8))
    expected = trained.model.apply(trained.variables, subject.normalise(images), dropout_keys=keys)
    np.testing.assert_allclose(evaluation.sampled_logits(3)[:8], expected, rtol=1e-4, atol=1e-5)


def test_with_dropout_before_the_head_alone_the_backbone_runs_once(tmp_path):
    config = config_of(duration="1 epochs", eval_every="1 epochs")
    config.model = models.options("mlp", width=16, depth=1, dropout_rate=0.5)
    loop.train_and_evaluate(config, str(tmp_path))
    from sdd_jax.evaluation import Evaluator
    from sdd_jax.prng import example_keys

    subject = experiments.load_subject(config)
    evaluation = Evaluator(subject, {}).of(load_trained(str(tmp_path), subject.dataset))
    keys = example_keys(0, "mc_dropout", jnp.int32(2), jnp.asarray(evaluation.position))
    images = subject.normalise(evaluation.images)
    direct = subject.model.apply(evaluation.variables, images, dropout_keys=keys)
    streamed = []
    stream = evaluation.stream
    evaluation.stream = lambda program, *arrays: (
        streamed.append(arrays[0]) or stream(program, *arrays)
    )
    evaluation.sampled_logits(0)
    np.testing.assert_allclose(evaluation.sampled_logits(2), direct, rtol=1e-4, atol=1e-5)
    assert [array.shape for array in streamed] == [(360, 8, 8, 1), (360, 16), (360, 16)]


def test_the_step_trains_on_the_distillation_loss_of_the_teachers_masks(teacher):
    from sdd_jax.objectives import Batch, View
    from sdd_jax.prng import example_keys

    config = student_of(teacher)
    config.objective.teacher_samples = 2
    objective = experiments.load_experiment(config).objective
    images = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
    logits = jax.random.normal(jax.random.key(1), (6, 10))

    def forward(given, *, batch_stats=None, dropout="dropout"):
        assert dropout is None
        return View(None, logits, None, {})

    def keys(stream):
        return example_keys(0, stream, jnp.int32(0), jnp.arange(6))

    batch = Batch((images,), None, None, None, None, objective.constants)
    output = objective.loss(forward, batch, keys)
    trained = load_trained(str(teacher), data.load(config.dataset))
    samples = jnp.stack(
        [
            trained.model.apply(trained.variables, images, dropout_keys=keys(f"teacher{i}"))
            for i in range(2)
        ]
    )
    assert not np.array_equal(samples[0], samples[1])
    expected = losses.dropout_distillation_loss(logits, samples, sample_axis=0)
    np.testing.assert_allclose(output.terms["distill"].values, expected, rtol=1e-5)


def test_unlabelled_inputs_are_those_of_the_other_set(teacher, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "other.npz"
    images = rng.integers(0, 256, (400, 8, 8, 1), dtype=np.uint8)
    labels = np.zeros(400, int)
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    config = student_of(teacher)
    config.inputs = f"unlabelled:npz:{path}"
    experiment = experiments.load_experiment(config)
    np.testing.assert_array_equal(experiment.engine.resident["images"], images)
    assert len(experiment.dataset.splits["test"]) == 360  # evaluated on the teacher's own data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": ""}, "config.teacher: must be the workdir of a finished run, got ''"),
        ({"teacher": "/nowhere"}, "config.teacher: must hold a run, there is no /nowhere"),
        ({"objective.divergence": "mse"}, "config.objective.divergence: must be one of kl"),
        ({"objective.teacher_samples": 0}, "config.objective.teacher_samples: must be at least 1"),
        ({"objective.init": "random"}, "config.objective.init: must be teacher or scratch"),
        ({"dataset.validation": 0.1}, "was trained with config.dataset.validation 0.0, this run"),
        ({"inputs": "noisy"}, "config.inputs: must be train, perturbed or unlabelled:NAME"),
        ({"model.depth": 3}, "config.model: must be the teacher's network, possibly narrower"),
    ],
)
def test_a_teacher_that_is_missing_or_does_not_fit_is_refused(teacher, tmp_path, changes, message):
    config = student_of(teacher)
    for field, value in changes.items():
        section, _, key = field.rpartition(".")
        (config[section] if section else config)[key] = value
    with pytest.raises(InputError, match=message):
        loop.train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_other_misuse_of_a_teacher_is_refused(teacher, tmp_path):
    with pytest.raises(InputError, match="config.objective 'cross_entropy' has no teacher"):
        experiments.load_experiment(config_of(teacher=str(teacher)))
    with pytest.raises(InputError, match="config.objective 'cross_entropy' needs labels"):
        experiments.load_experiment(config_of(inputs="unlabelled:digits"))
    with pytest.raises(InputError, match="--checks: distillation needs a run with config.teacher"):
        evaluate_workdir(str(teacher), ["distillation"])
    config = config_of(duration="1 epochs", eval_every="1 epochs")
    config.model.dropout_rate = 0.0
    loop.train_and_evaluate(config, str(tmp_path / "plain"))
    with pytest.raises(InputError, match="config.teacher: must be a network with dropout"):
        experiments.load_experiment(student_of(tmp_path / "plain"))
