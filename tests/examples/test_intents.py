"""The example of few-shot intent classification, on questions made of key words."""

import csv
import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

PATH = pathlib.Path(__file__).parents[2] / "examples" / "intents.py"
INTENTS = [f"intent_{i}" for i in range(6)]
METHODS = {"cross_entropy", "label_smoothing", "dropout", "r_drop", "sd_dropout"}


@pytest.fixture(scope="module")
def intents():
    spec = importlib.util.spec_from_file_location("intents_example", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def questions(count, seed, out_of_scope=False):
    """``[(question, intent)]``: each has a key word of its intent among three of twenty others."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        intent = INTENTS[i % len(INTENTS)]
        key = "unknown" if out_of_scope else f"key{intent[-1]}{rng.integers(3)}"
        others = [f"word{n}" for n in rng.choice(20, 3, replace=False)]
        text = " ".join(rng.permutation([key, *others])).capitalize() + "?"
        rows.append((text, "oos" if out_of_scope else intent))
    return rows


@pytest.fixture
def clinc150(tmp_path):
    splits = {"train": questions(120, 0), "val": questions(60, 1), "test": questions(90, 2)}
    splits |= {"oos_test": questions(30, 3, out_of_scope=True)}
    path = tmp_path / "data_full.json"
    path.write_text(json.dumps(splits))
    return path


@pytest.fixture
def banking77(tmp_path):
    for split, count in (("train", 120), ("test", 90)):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "category"))
            writer.writerows(questions(count, count))
    return tmp_path


def test_a_fifth_of_each_intent_is_held_out_where_there_is_no_validation_split(intents, banking77):
    data = intents.read(banking77)
    assert data.names == INTENTS
    assert [np.bincount(intents.labels_of(part)).tolist() for part in data[1:4]] == [
        [16] * 6, [4] * 6, [15] * 6
    ]  # fmt: skip
    whole = [(text, INTENTS.index(intent)) for text, intent in questions(120, 120)]
    assert sorted(data.train + data.validation) == sorted(whole)
    assert data.out_of_scope == []


def test_a_seed_draws_the_same_number_of_examples_of_each_intent(intents, clinc150):
    data = intents.read(clinc150)
    draws = [intents.draw(data.train, 5, seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    for drawn in draws:
        assert np.bincount(intents.labels_of(drawn)).tolist() == [5] * 6
        assert set(drawn) <= set(data.train)
    with pytest.raises(SystemExit, match="error: --shots: must be at most 20 here, got 21"):
        intents.draw(data.train, 21, 0)


def test_questions_become_the_numbers_of_their_known_tokens(intents):
    assert intents.words("Is it, is IT here?") == ["is", "it", "is", "it", "here"]
    assert intents.words_and_pairs("Is it, is IT here?") == [
        "is", "it", "here", "is it", "it is", "it here"
    ]  # fmt: skip
    bag, vocabulary = intents.ENCODERS["bag"], {"it": 1, "here": 2, "is it": 3}
    many = {f"word{n}": n + 1 for n in range(40)}
    ids = intents.number([("Is it here", 0), ("x", 1)], bag, vocabulary)
    assert ids[:, :4].tolist() == [[1, 2, 3, 0], [0, 0, 0, 0]]
    assert not ids[:, 4:].any()
    assert intents.number([(" ".join(many), 0)], bag, many).tolist() == [list(range(1, 33))]


def test_the_interval_is_that_of_student(intents):
    # Student's t with 4 degrees of freedom is 2.776 at 97.5 %; the standard error is sqrt(2.5 / 5).
    assert intents.interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(
        2.7764451 * 0.5**0.5
    )


@pytest.mark.parametrize("name", ["bag", "transformer"])
def test_padding_changes_no_feature(intents, name):
    network = intents.ENCODERS[name].network(9, 6, 3, 8, rngs=nnx.Rngs(0))
    ids = np.array([[4, 2, 8], [5, 0, 0]], np.int32)
    padded = np.pad(ids, ((0, 0), (0, 3)))
    features = network.features(ids)
    assert features.shape == (2, 8)
    np.testing.assert_allclose(network.features(padded), features, atol=1e-6)
    assert not np.allclose(features[0], features[1])


def test_the_transformer_sees_the_order_of_words_and_a_question_without_known_words(intents):
    network = intents.Transformer(9, 6, 3, 8, rngs=nnx.Rngs(0))
    there, back, empty = network.features(np.array([[4, 2, 8], [8, 2, 4], [0, 0, 0]], np.int32))
    assert not np.allclose(there, back, atol=1e-3)
    np.testing.assert_array_equal(empty, 0)


def test_a_transformer_learns_the_key_words(intents, clinc150):
    data = intents.read(clinc150)
    encoder = intents.ENCODERS["transformer"]._replace(width=32)
    task = intents.build_task(data, encoder, 10, 1)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = intents.compile_training(task, intents.sd_dropout)(0.1, 0.1)
        predictions = intents.logits_of(task, params, "test").argmax(axis=-1)
    assert (predictions == intents.labels_of(data.test)).mean() > 0.6  # chance: 0.17


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(PATH), *map(str, arguments)],
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_reports_every_method_and_seed(clinc150, tmp_path):
    out, figure = tmp_path / "out.json", tmp_path / "figure.png"
    files = (f"--json={out}", f"--figure={figure}")
    done = run(f"--data={clinc150}", "--shots=10", "--seeds=2", "--width=32", *files)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert set(results) == METHODS
    for name, result in results.items():
        for metric in ("accuracy", "nll", "ece", "nll_raw", "ece_raw", "temperature", "auroc"):
            assert len(result[metric]) == 2, (name, metric)
        assert np.mean(result["accuracy"]) > 35, name  # chance: 17
        ((_, chosen),) = result["chosen"].items()
        by_value = result["validation_accuracy"]
        assert by_value[str(chosen)] == max(by_value.values())
        assert len(by_value) == 6
    table = done.stdout.partition("\n\n")[2].splitlines()
    assert {line.split()[0] for line in table[1:]} == METHODS
    assert figure.stat().st_size > 10_000


@pytest.mark.slow
def test_the_command_takes_a_folder_of_csv_files(banking77, tmp_path):
    out = tmp_path / "out.json"
    done = run(f"--data={banking77}", "--shots=3", "--seeds=2", "--width=8", f"--json={out}")
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert set(results) == METHODS
    assert len(results["sd_dropout"]["accuracy"]) == 2
    assert "auroc" not in results["sd_dropout"]
