"""Few-shot intent classification: what SD-Dropout does for a small text classifier, in a few minutes.

    python examples/intents.py --data data_full.json             # CLINC150, 10 examples of each intent
    python examples/intents.py --data banking77/ --shots 5       # a folder with train.csv and test.csv
    python examples/intents.py --data data_full.json --encoder transformer --seeds 5

CLINC150 (Larson et al., 2019; CC BY 3.0): ``data_full.json`` of https://github.com/clinc/oos-eval.
Banking77 (Casanueva et al., 2020; CC BY 4.0): ``train.csv`` and ``test.csv``, with the header
``text,category``.

This is a program of its own, in flax.nnx and optax, that imports losses and metrics from sdd_jax.

Protocol, the same for all methods:

* A seed draws the examples of each intent, the initial parameters, the order and the masks. All seeds
  train at once, under ``vmap``, on all CPU cores.
* The network: an encoder and a linear head. The encoder is one hidden layer of ReLUs on the uni- and
  bigrams of a question, or a transformer layer on its words. AdamW, a cosine to zero. Each
  encoder's learning rate, number of epochs and width were chosen for cross-entropy, on CLINC150's
  validation split with 10 shots.
* Each method has one number to choose, from six values: that with the highest accuracy on validation,
  mean over seeds. Cross-entropy chooses the weight decay, and the others add to that. CLINC150 has a
  validation split; of Banking77, a fifth of each intent's training examples is held out before any are
  drawn.
* The test split is evaluated at the chosen value. NLL, ECE and confidences are those after temperature
  scaling, fitted on validation; ``nll_raw`` and ``ece_raw`` in the JSON file are those before. AUROC is
  that of the confidences against questions out of scope.
"""

import argparse
import collections
import csv
import functools
import itertools
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy import stats

import sdd_jax
from sdd_jax.evaluation import metrics

RATE, TEMPERATURE = 0.5, 3.0
HEADS = 4  # of the transformer
STEPS_PER_EPOCH = 10


# ---------------------------------------------------------------------------------------- data


class Intents(NamedTuple):
    """Questions and their intents by split; ``out_of_scope`` has questions of none of them."""

    names: list[str]
    train: list[tuple[str, int]]
    validation: list[tuple[str, int]]
    test: list[tuple[str, int]]
    out_of_scope: list[tuple[str, int]]


def read(path: pathlib.Path) -> Intents:
    """Reads CLINC150's JSON file, or the folder of Banking77's two CSV files."""
    if path.is_dir():
        rows = {split: _rows(path / f"{split}.csv") for split in ("train", "test")}
        rows |= {"val": [], "oos_test": []}
    else:
        rows = json.loads(path.read_text(encoding="utf-8"))
    names = sorted({intent for _, intent in rows["train"]})
    index = {name: i for i, name in enumerate(names)}
    train, validation, test = (
        [(text, index[intent]) for text, intent in rows[split]]
        for split in ("train", "val", "test")
    )
    if not validation:
        order = np.random.default_rng(0).permutation(len(train))
        seen, held_out = collections.Counter(), set()
        sizes = collections.Counter(label for _, label in train)
        for i in order:
            label = train[i][1]
            seen[label] += 1
            if seen[label] <= sizes[label] // 5:
                held_out.add(i)
        validation = [train[i] for i in sorted(held_out)]
        train = [example for i, example in enumerate(train) if i not in held_out]
    return Intents(names, train, validation, test, [(text, -1) for text, _ in rows["oos_test"]])


def _rows(path: pathlib.Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


def draw(examples: list[tuple[str, int]], shots: int, seed: int) -> list[tuple[str, int]]:
    """Draws ``shots`` examples of each intent."""
    rng, drawn, taken = np.random.default_rng(seed), [], collections.Counter()
    for i in rng.permutation(len(examples)):
        text, label = examples[i]
        if taken[label] < shots:
            taken[label] += 1
            drawn.append((text, label))
    if fewest := [label for label, n in taken.items() if n < shots]:
        raise SystemExit(f"error: --shots: must be at most {taken[fewest[0]]} here, got {shots}")
    return drawn


def words(text: str) -> list[str]:
    """The words of a question, in order."""
    return re.findall(r"[a-z0-9']+", text.lower())


def words_and_pairs(text: str) -> list[str]:
    """The different words of a question, and its different pairs of neighbouring words."""
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(words(text))]
    return list(dict.fromkeys(words(text) + pairs))


def number(
    examples: list[tuple[str, int]], encoder: "Encoder", vocabulary: dict[str, int]
) -> np.ndarray:
    """Indices of the known tokens ``[N, length]``; 0: none. The rest of a long question is cut off."""
    ids = np.zeros((len(examples), encoder.length), np.int32)
    for row, (text, _) in zip(ids, examples, strict=True):
        known = [vocabulary[token] for token in encoder.tokens(text) if token in vocabulary]
        row[: len(known)] = known[: encoder.length]
    return ids


def labels_of(examples: list[tuple[str, int]]) -> np.ndarray:
    """Labels ``[N]``."""
    return np.array([label for _, label in examples], np.int32)


# ------------------------------------------------------------------------------------- networks


class BagOfTokens(nnx.Module):
    """One hidden layer on the sum of a question's tokens."""

    def __init__(self, vocabulary: int, length: int, classes: int, width: int, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(width))
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def features(self, ids: jax.Array) -> jax.Array:
        """``[N, length]`` to ``[N, width]``."""
        present = ids > 0
        total = jnp.sum(self.embed(ids), axis=1, where=present[..., None])
        count = jnp.maximum(present.sum(axis=1, keepdims=True), 1)
        return nnx.relu(total / jnp.sqrt(count.astype(total.dtype)) + self.bias[None])


class Transformer(nnx.Module):
    """A layer of self-attention over a question's words, and the mean of its outputs."""

    def __init__(self, vocabulary: int, length: int, classes: int, width: int, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(length, width, rngs=rngs)
        self.layer = Layer(width, rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def features(self, ids: jax.Array) -> jax.Array:
        """``[N, length]`` to ``[N, width]``."""
        present = ids > 0
        x = self.embed(ids) + self.positions(jnp.arange(ids.shape[1]))[None]
        x = self.norm(self.layer(x, present))
        total = jnp.sum(x, axis=1, where=present[..., None])
        count = jnp.maximum(present.sum(axis=1, keepdims=True), 1)
        return total / count.astype(total.dtype)


class Layer(nnx.Module):
    """Self-attention and two dense layers, each added to its normalised input."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm, self.dense_norm = (
            nnx.LayerNorm(width, rngs=rngs),
            nnx.LayerNorm(width, rngs=rngs),
        )
        self.queries_keys_values = nnx.Linear(width, 3 * width, rngs=rngs)
        self.mix = nnx.Linear(width, width, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array, present: jax.Array) -> jax.Array:
        """``x`` is ``[N, length, width]``; words are attended where ``present`` ``[N, length]``."""
        heads = self.queries_keys_values(self.norm(x)).reshape(*x.shape[:2], 3, HEADS, -1)
        mask = present[:, None, None, :]
        attended = jax.nn.dot_product_attention(*jnp.moveaxis(heads, 2, 0), mask=mask)
        x += self.mix(attended.reshape(x.shape))
        return x + self.contract(nnx.relu(self.expand(self.dense_norm(x))))


class Encoder(NamedTuple):
    """A network with the recipe that was chosen for it."""

    network: type[nnx.Module]
    tokens: Callable[[str], list[str]]
    length: int
    width: int
    learning_rate: float
    epochs: int


ENCODERS = {
    "bag": Encoder(BagOfTokens, words_and_pairs, 32, 128, 1e-2, 30),
    "transformer": Encoder(Transformer, words, 12, 64, 1e-2, 30),
}


# -------------------------------------------------------------------------------------- methods


class Method(NamedTuple):
    """A loss, and the values of the number that it leaves to choose."""

    chosen: str
    values: tuple[float, ...]
    loss: Callable[..., jax.Array]


# Each loss takes features [B, D], the head, labels [B], a key and the number, and returns [B].


def cross_entropy(features, head, labels, key, value):
    """No number of its own: the weight decay is the optimizer's."""
    return sdd_jax.cross_entropy(head(features), labels)


def label_smoothing(features, head, labels, key, value):
    """Szegedy et al., 2016."""
    return sdd_jax.label_smoothing(head(features), labels, smoothing=value)


def dropout(features, head, labels, key, value):
    """One mask on the features, as SD-Dropout's ablation."""
    return sdd_jax.cross_entropy(head(sdd_jax.dropout(key, features, rate=value)), labels)


def r_drop(features, head, labels, key, value):
    """Liang et al., 2021: cross-entropy of two masks, and their divergence."""
    u, v = sdd_jax.dropped_logits(features, head, key, rate=RATE)
    ce = sdd_jax.cross_entropy(u, labels) + sdd_jax.cross_entropy(v, labels)
    return ce / 2 + value * sdd_jax.r_drop_loss(u, v)


def sd_dropout(features, head, labels, key, value):
    """Lee et al., 2022: cross-entropy without masks, and the divergence of two."""
    term = sdd_jax.sd_dropout_loss(features, head, key, rate=RATE, temperature=TEMPERATURE)
    return sdd_jax.cross_entropy(head(features), labels) + value * term


WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
METHODS = {
    "cross_entropy": Method("weight decay", (0.0, 0.1, 0.3, 1.0, 3.0, 10.0), cross_entropy),
    "label_smoothing": Method("smoothing", (0.1, 0.2, 0.4, 0.6, 0.8, 0.9), label_smoothing),
    "dropout": Method("rate", (0.1, 0.2, 0.3, 0.5, 0.7, 0.8), dropout),
    "r_drop": Method("weight", WEIGHTS, r_drop),
    "sd_dropout": Method("weight", WEIGHTS, sd_dropout),
}


# ------------------------------------------------------------------------------------- training


class Task(NamedTuple):
    """Arrays with a leading axis of seeds, and the network that takes them."""

    encoder: Encoder
    create: Callable[[jax.Array], Any]  # a key -> parameters
    graph: Any
    train: tuple[np.ndarray, np.ndarray]  # ids [seeds, N, length] and labels [seeds, N]
    splits: dict[str, np.ndarray]  # ids [seeds, N, length]


def build_task(intents: Intents, encoder: Encoder, shots: int, seeds: int) -> Task:
    """Draws the examples of all seeds, and numbers the tokens that occur in them."""
    drawn = [draw(intents.train, shots, seed) for seed in range(seeds)]
    splits = {"validation": intents.validation, "test": intents.test}
    if intents.out_of_scope:
        splits["out_of_scope"] = intents.out_of_scope
    vocabularies = []
    for examples in drawn:
        found = sorted({token for text, _ in examples for token in encoder.tokens(text)})
        vocabularies.append({token: i for i, token in enumerate(found, start=1)})
    size = max(map(len, vocabularies)) + 1

    def network(key: jax.Array) -> nnx.Module:
        sizes = (size, encoder.length, len(intents.names), encoder.width)
        return encoder.network(*sizes, rngs=nnx.Rngs(key))

    def ids(examples):
        pairs = zip(examples, vocabularies, strict=True)
        return np.stack([number(part, encoder, vocabulary) for part, vocabulary in pairs])

    return Task(
        encoder=encoder,
        create=lambda key: nnx.state(network(key)),
        graph=nnx.graphdef(network(jax.random.key(0))),
        train=(ids(drawn), np.stack([labels_of(examples) for examples in drawn])),
        splits={name: ids([part] * seeds) for name, part in splits.items()},
    )


def compile_training(task: Task, loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Returns the compiled function ``(value, weight decay) -> parameters`` of all seeds."""
    seeds, examples = task.train[1].shape
    steps_per_epoch = min(STEPS_PER_EPOCH, examples)
    batch_size = examples // steps_per_epoch
    total_steps = steps_per_epoch * task.encoder.epochs
    schedule = optax.cosine_decay_schedule(task.encoder.learning_rate, total_steps)

    def train_one(seed, ids, labels, value, weight_decay):
        key, optimizer = jax.random.key(seed), optax.adamw(schedule, weight_decay=weight_decay)

        def mean_loss(params, batch, key):
            network = nnx.merge(task.graph, params)
            features = network.features(ids[batch])
            return loss(features, network.head, labels[batch], key, value).mean()

        def step(carry, count):
            params, state = carry
            epoch, position = count // steps_per_epoch, count % steps_per_epoch
            order = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
            batch = jax.lax.dynamic_slice(order, (position * batch_size,), (batch_size,))
            gradient = jax.grad(mean_loss)(params, batch, jax.random.fold_in(key, -1 - count))
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = task.create(key)
        start = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(step, start, jnp.arange(total_steps))
        return params

    all_seeds = jax.vmap(train_one, in_axes=(0, 0, 0, None, None))
    devices = np.array(jax.devices()[: math.gcd(seeds, jax.device_count())])
    each, same = jax.P("seeds"), jax.P()
    sharded = jax.shard_map(
        all_seeds,
        mesh=jax.sharding.Mesh(devices, ("seeds",)),
        in_specs=(each, each, each, same, same),
        out_specs=each,
        check_vma=False,
    )
    return functools.partial(jax.jit(sharded), jnp.arange(seeds), *map(jnp.asarray, task.train))


def logits_of(task: Task, params: Any, split: str) -> np.ndarray:
    """Logits ``[seeds, N, K]``."""

    @jax.jit
    @jax.vmap
    def predict(params, ids):
        network = nnx.merge(task.graph, params)
        return network.head(network.features(ids))

    return np.asarray(predict(params, task.splits[split]), np.float64)


# ----------------------------------------------------------------------------------- evaluation


def evaluate(
    logits: dict[str, np.ndarray], validation: np.ndarray, test: np.ndarray
) -> dict[str, float]:
    """Metrics of one seed; ``validation`` and ``test`` are the labels, percentages are in [0, 100]."""
    temperature = metrics.fit_temperature(logits["validation"], validation)
    raw = metrics.log_softmax(logits["test"])
    scaled = metrics.log_softmax(logits["test"] / temperature)
    result = {
        "accuracy": 100 * metrics.compute(raw, test, "accuracy")["accuracy"],
        "nll": metrics.negative_log_likelihood(scaled, test),
        "ece": 100 * metrics.expected_calibration_error(scaled, test),
        "nll_raw": metrics.negative_log_likelihood(raw, test),
        "ece_raw": 100 * metrics.expected_calibration_error(raw, test),
        "temperature": temperature,
    }
    if "out_of_scope" in logits:
        confidences = (
            metrics.maximum_softmax_probability(logits[split], temperature=temperature)
            for split in ("test", "out_of_scope")
        )
        result["auroc"] = 100 * metrics.detection(*confidences)["auroc"]
    return result


def run_method(
    task: Task, intents: Intents, method: Method, weight_decay: float | None
) -> dict[str, Any]:
    """Trains all seeds at every value, chooses one on validation, and evaluates it on test.

    Without a weight decay, that is the value to choose.
    """
    train, validation = compile_training(task, method.loss), labels_of(intents.validation)
    by_value, accuracies = {}, {}
    for value in method.values:
        params = train(value, value if weight_decay is None else weight_decay)
        predictions = logits_of(task, params, "validation").argmax(axis=-1)
        by_value[value] = params
        accuracies[value] = 100 * float((predictions == validation).mean())
    chosen = max(accuracies, key=accuracies.__getitem__)
    logits = {split: logits_of(task, by_value[chosen], split) for split in task.splits}
    seeds = [
        evaluate(
            {split: z[seed] for split, z in logits.items()}, validation, labels_of(intents.test)
        )
        for seed in range(len(task.train[1]))
    ]
    result = {name: [seed[name] for seed in seeds] for name in seeds[0]}
    return result | {
        "chosen": {method.chosen: chosen},
        "validation_accuracy": {str(value): accuracies[value] for value in method.values},
    }


def interval(difference: np.ndarray) -> float:
    """Half of the 95 % interval of a mean, by Student's t."""
    if len(difference) < 2:
        return float("nan")
    return float(stats.sem(difference) * stats.t.ppf(0.975, len(difference) - 1))


def table(results: dict[str, dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, and the difference from cross-entropy, seed by seed."""
    columns = [
        name for name in ("accuracy", "nll", "ece", "auroc") if name in results["cross_entropy"]
    ]
    header = ["", "chosen", *columns, "accuracy - CE", "NLL - CE"]
    rows = []
    for name, result in results.items():
        cells = [name, *(f"{number} {value:g}" for number, value in result["chosen"].items())]
        for column in columns:
            values, digits = np.array(result[column]), 3 if column == "nll" else 1
            spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{spread}")
        for column, digits in (("accuracy", 1), ("nll", 3)):
            difference = np.array(result[column]) - np.array(results["cross_entropy"][column])
            shown = f"{difference.mean():+.{digits}f} ± {interval(difference):.{digits}f}"
            cells.append("" if name == "cross_entropy" else shown)
        rows.append(cells)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = (
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in [header, *rows]
    )
    return "\n".join(line.rstrip() for line in lines)


def save_figure(results: dict[str, dict[str, Any]], path: pathlib.Path) -> None:
    """Plots the accuracy and the scaled NLL of every seed, by method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, column, title in zip(axes, ("accuracy", "nll"), ("accuracy %", "NLL"), strict=True):
        for i, (name, result) in enumerate(results.items()):
            values = np.array(result[column])
            colour = "C1" if name == "sd_dropout" else "C0"
            axis.plot(values, np.full(len(values), i), "o", alpha=0.4, color=colour, ms=5)
            axis.plot(values.mean(), i, "|", color=colour, ms=22, mew=3)
        axis.set_yticks(range(len(results)), [name.replace("_", " ") for name in results])
        axis.set_ylim(len(results) - 0.5, -0.5)
        axis.set_title(f"{title} (points: seeds, bars: means)", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[1].set_yticklabels([])
    figure.savefig(path, dpi=150)


def main() -> None:
    """Runs all methods and reports them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="PATH")
    parser.add_argument("--shots", type=int, default=10, help="training examples of each intent")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--encoder", choices=ENCODERS, default="bag")
    parser.add_argument("--width", type=int, help="number of features; default: the encoder's")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="results of every seed")
    parser.add_argument("--figure", type=pathlib.Path, metavar="OUT.png")
    arguments = parser.parse_args()
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    intents = read(arguments.data)
    encoder = ENCODERS[arguments.encoder]
    encoder = encoder._replace(width=arguments.width or encoder.width)
    task = build_task(intents, encoder, arguments.shots, arguments.seeds)
    seeds, examples, _ = task.train[0].shape
    print(
        f"{len(intents.names)} intents, {arguments.shots} shots: {examples} training, "
        f"{len(intents.validation)} validation, {len(intents.test)} test questions; {seeds} seeds"
    )
    results, weight_decay, start = {}, None, time.perf_counter()
    for name, method in METHODS.items():
        results[name] = run_method(task, intents, method, weight_decay)
        if name == "cross_entropy":
            (weight_decay,) = results[name]["chosen"].values()
        accuracy = np.mean(results[name]["accuracy"])
        print(f"{name}: {accuracy:.1f} %, after {time.perf_counter() - start:.0f} s", flush=True)
    print(f"\n{table(results)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.figure:
        save_figure(results, arguments.figure)


if __name__ == "__main__":
    main()
