"""Five hundred random configs: each trains to finite metrics or is refused in one line.

Each config starts out valid, with a random network, objective, schedule and engine; then up to three of
its fields get hostile values: another type, another sign, nan, infinity, huge numbers, odd strings,
unknown names. A recipe card can put any of these into its ``ConfigDict``; overrides on the command line
are tested in ``tests/test_cli.py``.

Values that are allowed but too expensive are excluded: networks of a million units, a million masks,
years of training. Fields that determine memory or time get only small or impossible numbers.

``SDD_JAX_FAULTS_SEED=7`` draws 500 other configs.
"""

import collections
import contextlib
import faulthandler
import json
import math
import os
import pathlib
import re
import shutil
import signal
import sys
import time
import traceback

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from ml_collections import ConfigDict

from sdd_jax import config as configs
from sdd_jax.errors import InputError
from sdd_jax.models import models
from sdd_jax.objectives import objectives
from sdd_jax.train import NonFiniteLossError, train_and_evaluate
from sdd_jax.training.optimizers import optimizers

EXAMPLES = 500
SECONDS = 600  # timeout of a config; the slowest network compiles for two minutes
TRAIN, TEST = 32, 16  # images

# name: height, width, channels, labels
DATA = {
    "grey": (8, 8, 1, (0, 1, 2, 3)),
    "colour": (12, 12, 3, (0, 1, 2)),
    "gap": (8, 8, 1, (0, 2, 3)),  # a class without images
    "strip": (12, 4, 3, (0, 1)),
    "one": (8, 8, 1, (0,)),
    "large": (16, 16, 1, (0, 1, 2, 3)),  # the smallest size for LeNet
}

# name: sampling weight (low if slow to compile), small options, number of stages (None: the depth).
NETWORKS = {
    "mlp": (400, {}, None),
    "quick": (16, {"hidden": 4}, 0),
    "nin": (8, {"width": 6}, 0),
    "all_conv": (12, {}, 0),
    "lenet": (12, {}, 0),
    "lenet_all": (12, {}, 0),
    "vit_tiny": (8, {"width": 6, "depth": 1}, 0),
    "vit_small": (4, {"width": 6, "depth": 1}, 0),
    "resnet18": (4, {}, 4),
    "wide_resnet16_4": (3, {}, 3),
    "resnet34": (1, {}, 4),
    "resnet50": (1, {}, 4),
    "resnet101": (1, {}, 4),
    "resnet152": (1, {}, 4),
    "wide_resnet40_2": (1, {}, 3),
    "wide_resnet28_10": (1, {}, 3),
    "densenet121": (1, {}, 4),
}
STRIPS = ("mlp", "all_conv", "resnet18", "resnet34", "wide_resnet16_4")  # accept 12x4 pixels

# Fields that determine the cost of a run do not get the ABSURD values.
COSTLY = re.compile(
    r"config\.(model\.(width|depth|hidden)|dataset\.(num_classes|image_size)|duration"
    r"|sd_dropout\.num_samples|objective\.teacher_samples|engine\.(workers|prefetch))"
)
ABSURD = ["10000 steps", 10**6]
HOSTILE = [
    None, True, False, 0, 1, -1, -7, 0.0, -0.5, 0.3, 1.0, 1.5, 2.5, 1e-300, 1e38, 1e300, -1e300,
    math.nan, math.inf, -math.inf, 10**6, 2**32, 2**63, 10**30, -(10**30), 10**400,
    "", " ", "x", "7", "1e-3", "None", "-3 steps", "0 steps", "1.5 steps", "nan epochs",
    "10000 steps", "9" * 20 + " steps", "9" * 400 + " epochs", "٣ steps",
    "a\nb", "\0", "\ud800", "\u202eépée 🦆" * 20, "x" * 5000, "~nobody-of-this-name/x", "../up",
    "npz:", "npz:grey.npz/x", "npz:nowhere.npz", "npz:\0", "a:b:c", "unlabelled:\ud800",
    (), (1,), (0.5, math.nan), (0.5,) * 5, ("a",), ("0 steps", "0 steps"), ("\0.py",), ("",),
    ("x" * 5000 + ".py",), ("~nobody-of-this-name/x.py",), ((1, 2), (3, 4)), [[]], [None],
    {}, {"a": 1}, {"name": "x"}, {"name": None}, {"name": ["mlp"]}, {"self": 1}, {1: 2},
    {"name": "mlp", "depth": 2**31 - 1}, b"bytes", 1j,
]  # fmt: skip
FOLDERS = ["", "a\nb", "\0", "\ud800", "ünï/🦆", "x" * 5000, "~nobody-of-this-name/x", "grey.npz/x"]
NEW_FIELDS = ["nope", "", "self", "name", "function", "épée", "a b", "x" * 300]


class Hang(BaseException):
    """Timeout; a BaseException, so that no ``except Exception`` catches it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Working directory with npz data sets and the run of a teacher trained on ``grey``."""
    folder = tmp_path_factory.mktemp("random_configs")
    rng = np.random.default_rng(0)
    for name, (height, width, channels, labels) in DATA.items():
        arrays = {}
        for split, size in (("train", TRAIN), ("test", TEST)):
            targets = np.resize(np.array(labels), size)
            shape = (size, height, width, channels) if channels > 1 else (size, height, width)
            noise = rng.integers(0, 100, shape) + 30 * targets.reshape(-1, *[1] * (len(shape) - 1))
            arrays |= {f"{split}_images": noise.astype(np.uint8), f"{split}_labels": targets}
        np.savez(folder / f"{name}.npz", **arrays)
    teacher = configs.default()
    teacher.dataset.name = "npz:grey.npz"
    teacher.dataset.data_dir = str(folder)
    teacher.model = models.options("mlp", width=5, depth=2, dropout_rate=0.3)
    teacher.batch_size, teacher.duration = 16, "2 epochs"
    train_and_evaluate(teacher, str(folder / "teacher"))
    return folder


# --------------------------------------------------------------------------------- valid configs


def durations(pick, *more):
    return pick.choice(["1 steps", "2 steps", " 3 step", "1 epochs", "1.5 epochs", *more])


def rates(pick):
    return pick.choice([0.0, 0.1, 0.3, 0.5, 0.9])


def valid_config(pick):
    """Nested dictionary with most of the fields and compatible values."""
    (network,) = pick.choices(list(NETWORKS), [weight for weight, *_ in NETWORKS.values()])
    objective = pick.choice(_objectives_for(network))
    distilled = objective.startswith("distill")
    data, dataset = valid_dataset(pick, network, objective)
    model = valid_network(pick, network, objective)
    per_class = dataset["examples_per_class"]
    batch_sizes = ([4] if data in ("one", "strip") else [8, 16]) if per_class else [4, 8, 16, 24]
    config = {
        "seed": pick.choice([0, 1, 12345, 2**31, 2**32 - 1]),
        "imports": pick.choice([(), (), (), ["json"]]),
        "dataset": dataset,
        "inputs": pick.choice(["train", "perturbed"] + ["unlabelled:npz:grey.npz"] * distilled),
        "augment": {"pad": pick.choice([0, 0, 1, 2]), "flip": pick.choice([True, False])},
        "model": model,
        "objective": valid_objective(pick, objective),
        "teacher": "teacher" if distilled else "",
        "sd_dropout": valid_sd_dropout(pick, _num_stages(model)),
        "optimizer": valid_optimizer(pick),
        "schedule": pick.choice([step_schedule, cosine_schedule])(pick),
        "batch_size": pick.choice(batch_sizes),
        "duration": durations(pick),
        "log_every": durations(pick, "100 steps"),
        "eval_every": durations(pick, "100 epochs"),
        "checkpoint_every": durations(pick, "100 epochs"),
        "keep_checkpoints": pick.choice([1, 2, 1000]),
        "engine": valid_engine(pick, dataset["image_size"]),
        "steps_per_call": pick.choice([0, 0, 0, 0, 0, 1, 2, 1000]),
        "eval": valid_evaluation(pick),
    }
    required = ("dataset", "model", "objective", "teacher", "batch_size", "duration", "engine")
    return {key: value for key, value in config.items() if key in required or pick.random() < 0.9}


def _objectives_for(network):
    """BYOT needs several stages; distillation needs a network that accepts the teacher's images."""
    few_stages = _num_stages({"name": network, "depth": 2}) < 2
    excluded = ("byot",) * few_stages + ("distill",) * network.startswith("lenet")
    return [name for name in objectives.names() if not name.startswith(excluded)]


def _num_stages(model):
    stages = NETWORKS[model["name"]][2]
    return model["depth"] if stages is None else stages


def valid_dataset(pick, network, objective):
    """Name in ``DATA`` and the matching ``config.dataset``."""
    default = configs.default().dataset.to_dict()
    is_lenet = network.startswith("lenet")
    if objective.startswith("distill"):  # the teacher's data set
        return "grey", default | {"name": "npz:grey.npz"}
    names = ["grey", "colour", "gap", "large"]
    names += ["one"] * (objective != "tf_kd") + ["strip"] * (network in STRIPS)
    name = "large" if is_lenet else pick.choice(names)
    image_size = 0 if is_lenet else pick.choice([0, 0, 0, 0, 0, 8])
    channels = 3 if image_size else DATA[name][2]
    if image_size or pick.random() < 0.3:
        default |= {"mean": (0.5,) * channels, "std": [0.25] * channels}
    return name, default | {
        "name": f"npz:{name}.npz",
        "num_classes": pick.choice([0, 0, max(DATA[name][3]) + 1, 7]),
        "validation": pick.choice([0.0, 0.0, 0.25]),
        "examples_per_class": pick.choice([0, 0, 0, 6]),
        "image_size": image_size,
    }


def valid_network(pick, name, objective):
    options = {"width": pick.randint(2, 6)} | NETWORKS[name][1]
    defaults = models.options(name)
    if name == "mlp":
        options["depth"] = 2 if objective.startswith(("distill", "byot")) else pick.randint(1, 3)
    options["dropout_rate"] = pick.choice([0.2, 0.5] + [0.0] * (objective != "r_drop"))
    options["dtype"] = pick.choice(["float32", "float32", "bfloat16"])
    if "stem" in defaults and name != "densenet121":  # its imagenet stem needs more pixels
        options["stem"] = pick.choice(["cifar", "imagenet"])
    if "block_dropout_rate" in defaults:
        options["block_dropout_rate"] = pick.choice([0.0, 0.3])
    if objective.startswith("distill_"):
        options["spread"] = objective.removeprefix("distill_")
    return models.options(name, **options)


def valid_objective(pick, name):
    values = {
        "weight": [0, 0.5, 2.0],
        "temperature": [1, 4.0],
        "alpha": [0.0, 0.3, 1.0],
        "smoothing": [0.0, 0.2, 1.0],
        "dropout_rate": [0.0, 0.5],
        "feature_weight": [0.0, 1e-3],
        "label_weight": [0.0, 0.5, 1.0],
        "correct": [0.9, 0.99],
        "gradient": ["both", "forward", "reverse"],
        "divergence": ["kl", "brier", "reverse_kl"],
        "teacher_samples": [1, 2],
    }
    options = objectives.options(name)
    options |= {o: pick.choice(values[o]) for o in options if o in values and pick.random() < 0.5}
    if name == "distill_dirichlet":
        options["teacher_samples"] = pick.choice([2, 3])
    # "scratch" works for any network.
    return options | ({"init": "scratch"} if name.startswith("distill") else {})


def valid_sd_dropout(pick, stages):
    options = {"weight": pick.choice([0, 0, 0.1, 1.0])}
    if pick.random() < 0.3:
        return options
    options |= {
        "rate": rates(pick),
        "random_rate": pick.choice([(), (), (0.1, 0.5), [0.0, 0.9]]),
        "temperature": pick.choice([1, 3.0, 10.0]),
        "num_samples": pick.choice([2, 2, 3]),
        "gradient": pick.choice(["both", "forward", "reverse"]),
        "position": pick.randint(0, stages),
        "ramp": pick.choice([0.0, 0.5, 1]),
        "gradient_cosine": pick.random() < 0.2,
    }
    if pick.random() < 0.2:
        options |= {"exclusive": True, "num_samples": 2, "rate": 0.5, "random_rate": ()}
    return options


def valid_optimizer(pick):
    name = pick.choice(["sgd", "sgd", "sgd", *optimizers.names()])
    values = {
        "learning_rate": [1e-4, 0.01, 0.05] + [1] * (name == "sgd"),
        "momentum": [0.0, 0.5, 0.9],
        "nesterov": [True, False],
        "weight_decay": [0, 1e-4, 0.01],
        "decay": ["coupled", "decoupled"],
        "weight_decay_mask": ["all", "kernels"],
        "clip_norm": [0.0, 1.0],
        "ema": [0.0, 0.9],
    }
    options = optimizers.options(name)
    del options["name"]
    return {"name": name} | {key: pick.choice(values[key]) for key in options if key in values}


def cosine_schedule(pick):
    return {"name": "cosine", "warmup": pick.choice(["0 steps", "1 steps", "0.5 epochs"])}


def step_schedule(pick):
    milestones = [(), ("1 steps",), ["1 steps", "2 steps"], ("0 steps", "5 epochs")]
    return {
        "name": "step",
        "milestones": pick.choice(milestones),
        "factor": pick.choice([0.1, 2]),
        "warmup": pick.choice(["0 steps", "2 steps"]),
    }


def valid_engine(pick, image_size):
    if not image_size and pick.random() < 0.7:
        return {"name": "resident"}
    return {
        "name": "streamed",
        "workers": pick.choice([1, 2]),
        "processes": pick.random() < 0.02,  # slow to start
        "prefetch": pick.choice([1, 2]),
    }


def valid_evaluation(pick):
    values = {
        "ood": [("photos",), ["digits", "photos"]],
        "odin_temperature": [1, 1000.0],
        "epsilons": [(1.0,), [0, 8]],
        "pgd_steps": [1, 20],
        "max_images": [0, 10],
        "mc_samples": [1, 100],
        "mc_rate": [0.0, 0.5],
    }
    options = {key: pick.choice(v) for key, v in values.items() if pick.random() < 0.5}
    return {"batch_size": pick.choice([1, 5, 1000])} | options


# ----------------------------------------------------------------------------------- hostile values


@st.composite
def cases(draw):
    """A config, its workdir (None for a new one), and the names of its hostile fields.

    Hypothesis draws only the seed: most of its examples are small mutations of earlier ones, which would
    cover few networks and fields.
    """
    pick = draw(st.randoms(use_true_random=True))
    config, workdir, hostile = valid_config(pick), None, []
    fields = list(_fields(config, "config"))
    for _ in range(pick.choice([0] * 8 + [1] * 8 + [2] * 3 + [3])):
        kind = pick.choice(["value"] * 12 + ["new", "workdir"])
        if kind == "workdir":
            workdir = pick.choice(FOLDERS)
            hostile.append("--workdir")
            continue
        parent, key, path = pick.choice(fields)
        if kind == "new":
            key = pick.choice(NEW_FIELDS)
            path = f"{path.rpartition('.')[0]}.{key}"
        allowed = [v for v in HOSTILE if not (COSTLY.fullmatch(path) and v in ABSURD)]
        same_type = [v for v in allowed if type(v) is type(parent.get(key))]
        parent[key] = pick.choice(same_type if same_type and pick.random() < 0.6 else allowed)
        hostile.append(path)
    return config, workdir, hostile


def _fields(section, path):
    """Yields the parent dictionary, key and full name of every field and section."""
    for key, value in section.items():
        yield section, key, f"{path}.{key}"
        if isinstance(value, dict):
            yield from _fields(value, f"{path}.{key}")


# ---------------------------------------------------------------------------------------- outcomes


class Outcomes:
    """Counts of the outcomes, and messages of the configs that neither trained nor were refused."""

    def __init__(self):
        self.trained = collections.Counter()
        self.refused = collections.Counter()
        self.number = self.stopped = self.hostile_trained = 0
        self.failures = []

    def run(self, case):
        config, workdir, hostile = case
        workdir = f"run{self.number}" if workdir is None else workdir
        self.number += 1
        try:
            with _alarm():
                result = train_and_evaluate(ConfigDict(config), workdir)
                _check_run(result, workdir)
        except InputError as error:
            self._refused(str(error), config, hostile)
        except NonFiniteLossError as error:
            self.stopped += 1
            if len(str(error).splitlines()) != 1 or not hostile:
                self._failed(error, config, hostile)
        except (Exception, Hang) as error:
            self._failed(error, config, hostile)
        else:
            self.trained[config.get("objective", {"name": "default"})["name"]] += 1
            self.hostile_trained += bool(hostile)
        shutil.rmtree(f"run{self.number - 1}", ignore_errors=True)
        if self.number % 100 == 0:
            jax.clear_caches()  # compiled programs are most of the memory

    def _refused(self, message, config, hostile):
        field = re.search(r"config\.\w*[\w.]*|--workdir", message)
        if field:
            self.refused[field[0].rstrip(".")[:60]] += 1
        if not field or len(message.splitlines()) != 1 or len(message) > 2000 or not hostile:
            self._failed(message, config, hostile)

    def _failed(self, error, config, hostile):
        if isinstance(error, BaseException):
            error = "".join(traceback.format_exception(error)[-3:])
        failure = f"{', '.join(hostile) or 'a valid config'}: {error[-3000:]}\n{config!r:.3000}"
        self.failures.append(failure.encode(errors="backslashreplace").decode())
        print(f"config {self.number}: {self.failures[-1]}")  # before the suite ends


@contextlib.contextmanager
def _alarm():
    """Interrupts a hanging config: raises in Python code, ends the process in native code."""

    def raise_hang(*_):
        raise Hang(f"still running after {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, raise_hang)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(SECONDS + 60, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _check_run(result, workdir):
    """Asserts that the run wrote finite metrics and a checkpoint of its last step."""
    folder = pathlib.Path(os.path.expanduser(workdir))
    assert 0 <= result["eval/accuracy"] <= 1
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    invalid = {name: value for name, value in (last | result).items() if not math.isfinite(value)}
    assert not invalid
    assert "train/loss" in last
    assert (folder / "checkpoints" / str(last["step"])).is_dir()


def _summary(outcomes, seconds):
    return {
        "what": "Random configs, up to three fields of each with a hostile value",
        "seed": os.environ.get("SDD_JAX_FAULTS_SEED", "derandomized"),
        "configs": outcomes.number,
        "trained": sum(outcomes.trained.values()),
        "of these with a hostile value that is allowed": outcomes.hostile_trained,
        "refused": sum(outcomes.refused.values()),
        "loss not finite": outcomes.stopped,
        "failures": len(outcomes.failures),
        "trained by objective": dict(outcomes.trained.most_common()),
        "refused by field": dict(outcomes.refused.most_common(25)),
        "seconds": round(seconds),
        "processor seconds": round(time.process_time()),
    }


def test_random_configs_train_or_are_refused_in_one_line(folder, monkeypatch, report):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
    outcomes, started, seed = Outcomes(), time.monotonic(), os.environ.get("SDD_JAX_FAULTS_SEED")

    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases())
    def run_case(case):
        outcomes.run(case)

    if seed is not None:
        run_case = hypothesis.seed(int(seed))(run_case)
    run_case()
    summary = _summary(outcomes, time.monotonic() - started)
    print(json.dumps(summary, indent=2))
    for name, value in summary.items():
        report("random_configs", name, value)
    assert not outcomes.failures, "\n\n".join(outcomes.failures)
    assert outcomes.number == EXAMPLES
    assert summary["trained"] >= 0.4 * EXAMPLES
    assert summary["refused"] >= 0.2 * EXAMPLES
