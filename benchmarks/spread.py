"""How much of an ensemble's spread its student keeps in one pass.

    python -m benchmarks.spread
    python -m benchmarks.spread --study mnist --data-dir DIR  # mnist.npz and cifar10.npz

Protocol, fixed before the first run. Two teachers of each seed: one network with dropout, under 100
masks, and an ensemble of networks without dropout. Five students: of the mean alone (distill), with
a second head for the mutual information, with a Dirichlet distribution (by the proxy loss, and by
the likelihood), and with a Gaussian of the logits. All are trained as their recipe card says, on
perturbed training images, for the same number of epochs. The learning rate of each is one of three,
which the validation split chooses at the first seed: the one with the lowest KL divergence of the
student from the ensemble's mean. Neither labels nor other data sets choose anything. The test split
is evaluated once, by the checks distillation and spread. Teachers and students are trained without
the validation split, a tenth of the training images. One rule came later, when the likelihood had
diverged: a student that does so at every rate has no row. MNIST has a small budget: few training
images and epochs, one learning rate, one kind of teacher.
"""

import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from benchmarks.measure import load_card, parser, write
from sdd_jax.config import complete_record
from sdd_jax.devices import replicate
from sdd_jax.evaluation import Evaluator
from sdd_jax.evaluation.checks import build
from sdd_jax.evaluation.checks.ood import label_of
from sdd_jax.experiment import load_setup
from sdd_jax.runs import load_trained_network, read_config
from sdd_jax.train import NonFiniteLossError, train_and_evaluate

DIVERGED = 10.0  # nats from the ensemble; the networks that have been trained are within 1
STUDENTS = {  # name here: words of the card, changed options of its objective
    "distill": ("", {}),
    "two_heads": ("two_heads", {}),
    "dirichlet_proxy": ("dirichlet", {}),
    "dirichlet_nll": ("dirichlet", {"loss": "nll"}),
    "gaussian": ("gaussian", {}),
}


@dataclasses.dataclass(frozen=True)
class Study:
    """A data set, its cards and its budget.

    Attributes:
      what: description.
      teacher: card of a teacher.
      student: card of a student; the word for its spread is added.
      options: fields of every run.
      teacher_options: fields of the teachers.
      student_options: fields of the students.
      learning_rates: the candidates.
      ood: data sets to detect.
      teachers: kinds of teachers.
      networks: number of networks in an ensemble.
      students: names of students.
    """

    what: str
    teacher: str
    student: str
    learning_rates: tuple[float, ...]
    ood: tuple[str, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    teacher_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    student_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    teachers: tuple[str, ...] = ("dropout", "ensemble")
    networks: int = 5
    students: tuple[str, ...] = tuple(STUDENTS)


STUDIES = {
    "digits": Study(
        what="The embedded digits (360 test images), MLP of 2 x 128, 90 epochs",
        teacher="configs/distill_digits.py:teacher",
        student="configs/distill_digits.py",
        learning_rates=(0.05, 0.01, 0.002),
        ood=("photos",),
    ),
    "mnist": Study(
        what="3,000 training images of MNIST (10,000 test images), LeNet with dropout before the last "
        "layer, a short schedule at one learning rate, 0.02: teachers 12 epochs, students 8",
        teacher="configs/lenet_mnist.py",
        student="configs/distill_lenet_mnist.py",
        learning_rates=(0.02,),
        ood=("photos", "npz:cifar10.npz"),
        options={
            "dataset.name": "npz:mnist.npz",
            "dataset.examples_per_class": 300,
            "eval_every": "10 epochs",
        },
        teacher_options={
            "optimizer.learning_rate": 0.02,
            "schedule.milestones": ("9 epochs",),
            "duration": "12 epochs",
        },
        student_options={"schedule.milestones": ("6 epochs",), "duration": "8 epochs"},
        teachers=("dropout",),
        students=("distill", "two_heads", "dirichlet_proxy", "gaussian"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Bench:
    """Runs of a study in a folder."""

    study: Study
    folder: pathlib.Path
    data_dir: str

    def config(self, card: str, seed: int, fields: Mapping[str, Any]) -> ConfigDict:
        """The config of a card with the fields of the study."""
        config = load_card(card)
        config.seed = seed
        config.dataset.validation = 0.1
        config.dataset.data_dir = self.data_dir
        config.eval.ood = self.study.ood
        for field, value in {**self.study.options, **fields}.items():
            section, _, key = field.rpartition(".")
            (config[section] if section else config)[key] = value
        return config

    def train(self, name: str, config: ConfigDict) -> pathlib.Path:
        """Trains a run, unless it is finished."""
        workdir = self.folder / name
        train_and_evaluate(config, str(workdir))
        return workdir

    def teachers(self, kind: str, seed: int) -> str:
        """The field ``teacher`` of the students of one kind of teacher, which are trained first."""
        count, fields = (
            (1, {}) if kind == "dropout" else (self.study.networks, {"model.dropout_rate": 0.0})
        )
        fields = {**self.study.teacher_options, **fields}
        workdirs = [
            self.train(
                f"{kind}-{seed}-{i}",
                self.config(self.study.teacher, 100 * seed + i, fields),
            )
            for i in range(count)
        ]
        return ",".join(map(str, workdirs))

    def student(self, kind: str, name: str, seed: int, learning_rate: float) -> pathlib.Path:
        """A trained student."""
        words, options = STUDENTS[name]
        fields = dict(self.study.student_options) | {
            "teacher": self.teachers(kind, seed),
            "optimizer.learning_rate": learning_rate,
        }
        card = f"{self.study.student}:{words}" if words else self.study.student
        config = self.config(card, seed, fields)
        config.objective.update(options)
        return self.train(f"{kind}-{name}-{seed}-{learning_rate:g}", config)

    def evaluate(self, workdir: pathlib.Path, check: str, split: str) -> dict[str, float]:
        """The metrics of a check on a split."""
        config = complete_record(read_config(workdir))
        setup = load_setup(config)
        network = load_trained_network(workdir, setup.dataset)
        evaluator = Evaluator(setup, replicate(network.variables), split)
        return dict(build(check, config.eval.to_dict())(evaluator).metrics)

    def chosen(self, kind: str, name: str, seed: int) -> float | None:
        """The learning rate that the validation split chooses; None if the student diverges at each."""

        def divergence(rate: float) -> float:
            try:
                workdir = self.student(kind, name, seed, rate)
            except NonFiniteLossError as error:
                print(kind, name, rate, error, flush=True)
                return math.inf
            found = self.evaluate(workdir, "distillation", "validation")
            value = found["distillation/distilled/kl_from_mc"]
            print(kind, name, rate, round(value, 4), flush=True)
            return value

        found = {rate: divergence(rate) for rate in self.study.learning_rates}
        best = min(found, key=lambda rate: found[rate])
        return best if found[best] < DIVERGED else None

    def figures(self, kind: str, name: str, rate: float, seeds: int) -> dict[str, list[float]]:
        """The figures of a student on the test split, seed by seed."""
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            workdir = self.student(kind, name, seed, rate)
            for check in ("distillation", "spread"):
                for metric, value in self.evaluate(workdir, check, "test").items():
                    if "mc_error" not in metric and "milliseconds" not in metric:
                        found.setdefault(metric, []).append(round(float(value), 6))
        return found

    def results(self, seeds: int) -> dict[str, Any]:
        """The figures of all students, by teacher, student and seed."""
        results: dict[str, Any] = {}
        for kind in self.study.teachers:
            for name in self.study.students:
                rate = self.chosen(kind, name, 0)
                if rate is None:
                    continue
                try:
                    found = self.figures(kind, name, rate, seeds)
                except NonFiniteLossError as error:
                    print(kind, name, rate, error, flush=True)
                    continue
                results.setdefault(kind, {})[name] = {"learning_rate": rate, **found}
                print(kind, name, rate, found, flush=True)
        return results


def main() -> None:
    """Trains, evaluates, prints and writes the result file."""
    args = parser(__doc__, study="digits", seeds=3, data_dir="", runs="").parse_args()
    study = STUDIES[args.study]
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(study, pathlib.Path(args.runs or temporary), args.data_dir)
        results = bench.results(args.seeds)
    write(
        args,
        f"spread-{args.study}",
        f"python -m benchmarks.spread --study {args.study} --seeds {args.seeds}",
        f"{study.what}; students of an ensemble's mean and spread, {args.seeds} seeds, figures seed by "
        "seed",
        networks=study.networks,
        ood=[label_of(name) for name in study.ood],
        results=results,
    )


if __name__ == "__main__":
    main()
