"""Students that keep the spread of an ensemble, and ensembles of several runs."""

import dataclasses
import functools
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.metrics import roc_auc_score

import sdd_jax
from sdd_jax import config as configs
from sdd_jax import data, losses
from sdd_jax.devices import replicate
from sdd_jax.errors import InputError
from sdd_jax.evaluation import Evaluator
from sdd_jax.evaluation.checks import build
from sdd_jax.evaluation.evaluator import ensemble_predictions
from sdd_jax.experiment import load_experiment, load_setup
from sdd_jax.models import models
from sdd_jax.objectives import Batch, Clock, View, objectives
from sdd_jax.objectives import teachers as ensembles
from sdd_jax.prng import example_keys
from sdd_jax.runs import Checkpoints, load_trained_network, read_config
from sdd_jax.train import train_and_evaluate

IMAGES = np.random.default_rng(0).standard_normal((6, 8, 8, 1)).astype(np.float32)
LOGITS = jnp.asarray(np.random.default_rng(1).standard_normal((6, 10)), jnp.float32)
SECOND = jnp.asarray(np.random.default_rng(2).standard_normal((6, 10)), jnp.float32)
SLOW = pytest.mark.slow
SPREADS = ("dirichlet", "gaussian", "two_heads")


@pytest.fixture(autouse=True)
def few_masks(monkeypatch):
    """For the estimate of the floor, which is logged only."""
    monkeypatch.setattr(ensembles, "FLOOR_SAMPLES", 2)


# ------------------------------------------------------------------------------ the objectives


def network(seed, **options):
    model = models.build({"name": "mlp", "width": 16, "depth": 1} | options, num_classes=10)
    variables = jax.jit(model.init)(jax.random.key(seed), IMAGES)
    return SimpleNamespace(model=model, variables={"batch_stats": {}, **variables})


TEACHERS = [network(1, dropout_rate=0.4), network(2)]  # the second one without dropout


def objective(name, teachers=TEACHERS, **options):
    return objectives.build({"name": name, **options}, load_teachers=lambda: teachers)


def keys(stream):
    return example_keys(0, stream, jnp.int32(0), jnp.arange(6))


def masked(teacher, stream):
    apply = jax.jit(
        lambda variables, keys: teacher.model.apply(variables, IMAGES, dropout_keys=keys)
    )
    return np.asarray(apply(teacher.variables, keys(stream)))


def terms(built, step=0):
    """The terms of a batch, for a student with known outputs."""
    second = SECOND[:, 0] if built.spread == "two_heads" else SECOND

    def forward(images, *, dropout):
        assert dropout is None
        return View(None, LOGITS, None, {}, second_head=lambda features: second)

    constants = built.constants(IMAGES, jax.random.key(0))
    clock = Clock(jnp.int32(step), 10, 100)
    batch = Batch((IMAGES,), None, None, None, clock, constants=constants)
    output = built.loss(forward, batch, keys)
    same = np.argmax(samples(), axis=-1) == np.argmax(np.asarray(LOGITS), axis=-1)
    agreement = np.mean(same, axis=0)
    np.testing.assert_allclose(output.metrics["distill/agreement"], agreement, rtol=1e-6)
    return {name: (term.values, term.weight) for name, term in output.terms.items()}


@functools.cache
def samples():
    """Two masks of the first teacher, and its equal the second one, which has one posterior."""
    masks = [
        masked(TEACHERS[0], stream) for stream in ("teacher0", "teacher1")
    ]  # as in version 0.2
    return np.stack([*masks, *[masked(TEACHERS[1], "none")] * 2])


def test_several_teachers_count_equally_and_the_first_one_keeps_its_masks():
    values, _ = terms(objective("distill", teacher_samples=2))["distill"]
    expected = losses.dropout_distillation_loss(LOGITS, jnp.asarray(samples()), sample_axis=0)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_the_masks_of_two_teachers_differ():
    both = [TEACHERS[0], TEACHERS[0]]
    values, _ = terms_of_pair(both)
    first, second = (masked(TEACHERS[0], s) for s in ("teacher0", "teacher0/1"))
    assert not np.array_equal(first, second)
    expected = losses.dropout_distillation_loss(LOGITS, jnp.stack([first, second]), sample_axis=0)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def terms_of_pair(teachers):
    built = objective("distill", teachers)
    batch = Batch((IMAGES,), *[None] * 4, constants=built.constants(IMAGES, jax.random.key(0)))
    view = View(None, LOGITS, None, {})
    term = built.loss(lambda images, dropout: view, batch, keys).terms["distill"]
    return term.values, term.weight


@pytest.mark.parametrize(
    ("name", "options", "loss"),
    [
        ("distill_dirichlet", {}, losses.dirichlet_proxy_loss),
        ("distill_gaussian", {}, losses.logit_gaussian_loss),
        ("distill_two_heads", {"weight": 0.5}, losses.mutual_information_loss),
    ],
)
def test_the_term_is_the_loss_of_all_samples(name, options, loss):
    found = terms(objective(name, teacher_samples=2, **options))
    arguments = {
        "distill_dirichlet": (LOGITS,),
        "distill_gaussian": (LOGITS, SECOND),
        "distill_two_heads": (SECOND[:, 0], LOGITS),
    }[name]
    values, weight = found.popitem()[1]
    assert weight == options.get("weight", 1.0)
    np.testing.assert_allclose(
        values, loss(*arguments, jnp.asarray(samples()), sample_axis=0), rtol=1e-4
    )
    if name == "distill_two_heads":
        expected = losses.dropout_distillation_loss(LOGITS, jnp.asarray(samples()), sample_axis=0)
        np.testing.assert_allclose(found["distill"][0], expected, rtol=1e-5)


@pytest.mark.parametrize(("step", "temperature"), [(0, 5.0), (25, 3.0), (50, 1.0), (99, 1.0)])
def test_the_temperature_of_the_likelihood_falls_to_1_in_half_of_the_run(step, temperature):
    built = objective("distill_dirichlet", loss="nll", temperature=5.0, teacher_samples=2)
    values, _ = terms(built, step)["dirichlet"]
    expected = losses.dirichlet_nll_loss(
        LOGITS, jnp.asarray(samples()), temperature=temperature, sample_axis=0
    )
    np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_the_floor_of_an_ensemble_without_dropout_is_its_mutual_information():
    networks = [network(seed) for seed in range(3)]
    floor = objective("distill", networks).constants(IMAGES, jax.random.key(0))["floor"]
    logits = np.array([masked(n, "none") for n in networks], np.float64)
    probs = scipy.special.softmax(logits, axis=-1)
    entropies = scipy.special.entr(probs).sum(-1).mean(0)
    expected = np.mean(scipy.special.entr(probs.mean(0)).sum(-1) - entropies)
    np.testing.assert_allclose(floor, expected, rtol=1e-4)
    assert expected > 0.01


@pytest.mark.parametrize("spread", SPREADS)
def test_a_student_starts_as_the_first_teacher_with_a_second_head_of_zeros(spread):
    student = network(5, spread=spread).variables
    initial = objective(f"distill_{spread}").initialise(jax.random.key(0), student)["params"]
    second = initial.pop("second_classifier", None)
    jax.tree.map(np.testing.assert_array_equal, initial, TEACHERS[0].variables["params"])
    outputs = {"dirichlet": None, "gaussian": 10, "two_heads": 1}[spread]
    if outputs is None:
        assert second is None
    else:
        np.testing.assert_array_equal(second["kernel"], np.zeros((16, outputs)))


def test_unusable_teachers_and_options_are_refused():
    for name in ("distill", "distill_dirichlet", "distill_gaussian", "distill_two_heads"):
        with pytest.raises(InputError, match=f"'{name}' needs a teacher with dropout, or several"):
            objective(name, TEACHERS[1:])
    message = "config.objective.teacher_samples: must be 2 or more for proxy, got 1"
    with pytest.raises(InputError, match=message):
        objective("distill_dirichlet", TEACHERS[:1], teacher_samples=1)
    objective("distill_dirichlet", TEACHERS[:1], teacher_samples=1, loss="nll")
    with pytest.raises(InputError, match=r"temperature: must be at least 1, got 0.5"):
        objective("distill_dirichlet", temperature=0.5)


# -------------------------------------------------------------------------------------- runs


def config_of(**changes):
    config = configs.default()
    config.model = models.options("mlp", width=16, depth=1, dropout_rate=0.4)
    config.sd_dropout.weight = 0.0
    config.batch_size = 176
    config.duration = "3 epochs"
    config.eval_every, config.checkpoint_every = "3 epochs", "1 epochs"
    config.log_to = ()
    config.update_from_flattened_dict(changes)
    return config


def student_of(teachers, spread="none"):
    config = config_of(inputs="perturbed", teacher=",".join(map(str, teachers)))
    config.model.spread = spread
    name = "distill" if spread == "none" else f"distill_{spread}"
    config.objective = objectives.options(name)
    return config


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Two runs, of which the second has no dropout."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed, rate in enumerate((0.4, 0.0)):
        config = config_of(seed=seed, **{"model.dropout_rate": rate})
        train_and_evaluate(config, str(folder / str(seed)))
    return [folder / "0", folder / "1"]


@pytest.fixture(scope="module")
def student(teachers, tmp_path_factory):
    """``student(spread)``: the folder of its run."""
    folder = tmp_path_factory.mktemp("students")

    @functools.cache
    def run(spread):
        train_and_evaluate(student_of(teachers, spread), str(folder / spread))
        return folder / spread

    return run


@pytest.fixture(scope="module")
def images():
    return data.load().splits["test"].images


@SLOW
def test_a_killed_student_of_two_teachers_resumes_bit_for_bit(
    teachers, student, tmp_path, monkeypatch
):
    config, save = student_of(teachers, "two_heads"), Checkpoints.save

    def save_until_8(self, step, *arguments, **options):
        if step > 8:  # as if the process had been killed
            raise KeyboardInterrupt
        save(self, step, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_until_8)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config, str(tmp_path))
    assert sdd_jax.load(tmp_path).step == 8
    train_and_evaluate(config, str(tmp_path))
    resumed, whole = (sdd_jax.load(path) for path in (tmp_path, student("two_heads")))
    assert resumed.step == whole.step == 24
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole.variables)


@pytest.mark.parametrize("spread", [pytest.param("gaussian", marks=SLOW), "two_heads"])
def test_a_loaded_student_gives_its_spread(spread, student, images, tmp_path):
    run = sdd_jax.load(student(spread))
    prediction = run.uncertainty(images)
    logits, features = (jnp.asarray(x) for x in (run.logits(images), run.features(images)))
    second = run.variables["params"]["second_classifier"]
    assert np.abs(second["kernel"]).max() > 0  # trained
    outputs = features @ jnp.asarray(second["kernel"]) + jnp.asarray(second["bias"])[None]
    if spread == "two_heads":
        expected = sdd_jax.two_head_prediction(logits, outputs[:, 0])
        np.testing.assert_allclose(prediction.probs, run.predict(images), rtol=1e-4, atol=1e-6)
    else:
        expected = sdd_jax.logit_gaussian_prediction(logits, outputs, jax.random.key(0))
    for name in prediction._fields:
        ours, theirs = getattr(prediction, name), getattr(expected, name)
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-5, err_msg=name)
    run.save_pretrained(tmp_path)
    exported = sdd_jax.load(tmp_path).uncertainty(images[:5])
    np.testing.assert_allclose(
        exported.mutual_information, prediction.mutual_information[:5], rtol=1e-4, atol=1e-7
    )


def test_the_logits_of_a_dirichlet_student_are_its_spread():
    student = network(3, spread="dirichlet")
    logits, prediction = jax.jit(
        lambda v: [student.model.apply(v, IMAGES, method=m) for m in ("__call__", "prediction")]
    )(student.variables)
    alpha = np.exp(np.asarray(logits, np.float64))
    total = alpha.sum(-1, keepdims=True)
    digammas = scipy.special.digamma(alpha + 1) - scipy.special.digamma(total + 1)
    expected = scipy.special.entr(alpha / total).sum(-1) + np.sum(alpha / total * digammas, -1)
    np.testing.assert_allclose(prediction.mutual_information, expected, rtol=1e-4)


def test_a_run_without_a_spread_says_so_also_one_of_an_earlier_version(teachers, tmp_path, images):
    old = shutil.copytree(teachers[0], tmp_path / "old")
    record = json.loads((old / "config.json").read_text())
    assert record["config"]["model"].pop("spread") == "none"
    (old / "config.json").write_text(json.dumps(record))
    run = sdd_jax.load(old)
    np.testing.assert_array_equal(run.logits(images), sdd_jax.load(teachers[0]).logits(images))
    with pytest.raises(ValueError, match="the network has no spread"):
        run.uncertainty(images)
    load_experiment(student_of([old, teachers[1]]))  # still a teacher


def refused(config, message):
    with pytest.raises(InputError, match=message):
        load_experiment(config)


def test_a_spread_and_its_objective_go_together(teachers):
    config = student_of(teachers, "gaussian")
    config.model.spread = "none"
    refused(
        config, "^config.model.spread: must be gaussian for config.objective 'distill_gau.*none"
    )
    refused(
        config_of(**{"model.spread": "dirichlet"}),
        "^config.model.spread: must be none for config.objective 'cross_entropy', got 'dirichlet'",
    )
    refused(config_of(**{"model.spread": "normal"}), "^config.model.spread: must be one of none, ")


def test_teachers_that_cannot_be_used_are_refused(teachers):
    different = "^config.teacher: must be different workdirs, separated by commas, got "
    refused(student_of([teachers[0], teachers[0]]), different)
    refused(student_of([teachers[0], ""]), different)
    refused(student_of([teachers[0], "/nowhere"]), "^config.teacher: .*/nowhere")
    refused(student_of(teachers[1:]), "'distill' needs a teacher with dropout, or several teachers")


def test_a_network_that_is_no_classifier_has_no_spread():
    @models.register("test_that_is_no_classifier")
    def mine(*, num_classes):
        return SimpleNamespace()

    options = {"name": "test_that_is_no_classifier"}
    assert models.build(options, num_classes=2) == SimpleNamespace()
    with pytest.raises(InputError, match="config.model.spread: must be none for a network that is"):
        models.build(options | {"spread": "dirichlet"}, num_classes=2)


# --------------------------------------------------------------------------------- the checks


def evaluator_of(folder):
    setup = load_setup(configs.complete(read_config(folder)))
    return Evaluator(setup, replicate(load_trained_network(folder, setup.dataset).variables))


def ensemble(teachers, images, masks):
    """Posteriors of ``masks`` masks of the first teacher, and as often that of the second one."""
    evaluators = [evaluator_of(folder).with_images(images) for folder in teachers]
    first = [evaluators[0].sampled_logits(i) for i in range(masks)]
    logits = np.array([*first, *[evaluators[1].logits] * masks], np.float64)
    return scipy.special.softmax(logits, axis=-1)


def spread_of(probs):
    entropy = scipy.special.entr(probs.mean(0)).sum(-1)
    return entropy, entropy - scipy.special.entr(probs).sum(-1).mean(0)


@pytest.mark.parametrize("spread", [pytest.param("none", marks=SLOW), "two_heads"])
def test_the_spread_is_compared_with_that_of_the_ensemble(spread, teachers, student, images):
    evaluator = evaluator_of(student("two_heads"))
    model = evaluator.setup.model.clone(spread=spread)
    evaluator.setup = dataclasses.replace(evaluator.setup, model=model)
    result = build("spread", {"mc_samples": 5})(evaluator)
    values = {name.removeprefix("spread/"): value for name, value in result.metrics.items()}
    photos = data.resized(data.load(name="photos").splits["test"].images, (8, 8, 1))
    run, first = sdd_jax.load(student("two_heads")), sdd_jax.load(teachers[0])
    found = {}
    for side, x in (("in", images), ("out", photos)):
        entropy, information = spread_of(ensemble(teachers, x, 5))
        found[side] = {
            ("ensemble", "entropy"): entropy,
            ("ensemble", "mutual_information"): information,
            ("standard", "entropy"): scipy.special.entr(first.predict(x)).sum(-1),
            ("student", "entropy"): scipy.special.entr(run.predict(x)).sum(-1),
        }
        if spread != "none":
            information = run.uncertainty(x).mutual_information
            found[side]["student", "mutual_information"] = information
    target = found["in"]["ensemble", "mutual_information"]
    assert values["ensemble/mutual_information"] == pytest.approx(target.mean(), rel=1e-4)
    is_out = np.r_[np.zeros(len(images)), np.ones(len(photos))]
    auroc = {}
    for key, inside in found["in"].items():
        auroc[key] = roc_auc_score(is_out, np.r_[inside, found["out"][key]])
        name = f"photos/{key[0]}/{key[1]}/auroc"
        assert values[name] == pytest.approx(auroc[key], abs=1e-3), name
        if key[0] == "student":
            expected = scipy.stats.spearmanr(inside, target).statistic
            assert values[f"spearman/{key[1]}"] == pytest.approx(expected, abs=1e-3)
    assert ("spearman/mutual_information" in values) == (spread != "none")
    for measure in ("entropy", "mutual_information"):
        gain = auroc["ensemble", measure] - auroc["standard", "entropy"]
        name = f"photos/gain_kept/{measure}"
        if gain > 0.01 and ("student", measure) in auroc:
            kept = (auroc["student", measure] - auroc["standard", "entropy"]) / gain
            assert values[name] == pytest.approx(kept, abs=0.1)
        elif gain < -0.01:
            assert name not in values
    for name, groups in result.by_image.items():
        for group in groups:
            assert group.mean() == pytest.approx(result.metrics[name], rel=1e-6), name
    assert {line.metric for line in result.headline} <= set(result.by_image)
    assert len(result.plots) == (spread != "none")
    rows = [row[:2] for row in result.tables[0].rows]
    assert rows[1] == ["MC(5) of 2", "entropy"]


@SLOW
def test_the_three_way_table_of_two_teachers(teachers, student, images):
    evaluator = evaluator_of(student("gaussian"))
    result = build("distillation", {"mc_samples": 5})(evaluator)
    labels = evaluator.labels
    mean = ensemble(teachers, images, 5).mean(0)
    probs = sdd_jax.load(student("gaussian")).uncertainty(images).probs.astype(np.float64)
    divergence = scipy.special.rel_entr(mean, probs).sum(-1).mean()
    values = result.metrics
    error = np.mean(mean.argmax(-1) != labels)
    assert values["distillation/mc/error"] == pytest.approx(error)
    assert values["distillation/distilled/kl_from_mc"] == pytest.approx(divergence, rel=1e-3)
    standard = sdd_jax.load(teachers[0]).predict(images)
    error = np.mean(standard.argmax(-1) != labels)
    assert values["distillation/standard/error"] == pytest.approx(error)
    assert values["distillation/mc_error/10"] == values["distillation/mc/error"]
    assert [row[0] for row in result.tables[0].rows] == ["Standard", "MC(5) of 2", "Distilled"]


def test_a_deep_ensemble_is_one_pass_of_each_network(teachers):
    first, second = evaluator_of(teachers[1]), evaluator_of(teachers[1])
    second.variables = jax.tree.map(lambda x: 0.5 * x, second.variables)
    one, both = ensemble_predictions([first, second], 100)
    assert (one.num_samples, both.num_samples) == (1, 2)
    logits = np.array([first.logits, second.logits], np.float64)
    mean = scipy.special.softmax(logits, axis=-1).mean(0)
    np.testing.assert_allclose(np.exp(both.log_probs), mean, rtol=1e-9)


def test_checks_of_a_teacher_need_one(teachers):
    setup = evaluator_of(teachers[0]).setup
    assert build("spread", {}).requirement(setup) == "spread needs a run with a teacher"
    with pytest.raises(InputError, match="ood: must be different data sets, got "):
        build("spread", {"ood": ("photos,photos",)})
