"""Labels of the training images other than the data set's own: symmetric noise, and files."""

import pathlib
import pickle
import zlib

import numpy as np
import pytest

from sdd_jax import data
from sdd_jax.data.label_noise import symmetric_noise
from sdd_jax.errors import InputError
from sdd_jax.options import validate

OWN = data.load().splits["train"].labels  # of the digits


def noisy(fraction, seed=0, **options):
    return data.load(seed, label_noise=fraction, **options).splits["train"].labels


# --------------------------------------------------------------------------- symmetric noise


@pytest.mark.parametrize("fraction", [0.0, 1e-6, 0.2, 0.4, 1.0, 1])
def test_the_exact_fraction_of_the_labels_is_replaced(fraction):
    changed = noisy(fraction) != OWN
    assert changed.sum() == round(fraction * len(OWN))
    assert noisy(fraction).dtype == np.int32


def test_each_other_class_is_equally_likely():
    """A label's own class never, the other three alike; and every label is as likely to be chosen."""
    labels = np.repeat(np.arange(4, dtype=np.int32), 10_000)
    result = symmetric_noise(labels, fraction=0.6, num_classes=4, seed=3)
    counts = np.zeros((4, 4), int)
    np.add.at(counts, (labels, result), 1)
    assert counts.sum() - counts.trace() == 24_000
    for label in range(4):
        others = np.delete(counts[label], label)
        np.testing.assert_allclose(others, 2000, atol=4.5 * np.sqrt(2000))


def test_noise_is_drawn_among_all_classes_of_the_config():
    assert set(noisy(1.0, num_classes=12)) == set(range(12))


def test_the_seed_decides_which_labels_are_wrong():
    first, again, other = noisy(0.4), noisy(0.4), noisy(0.4, seed=1)
    np.testing.assert_array_equal(first, again)
    wrong, also = first != OWN, other != OWN
    assert 0.1 < np.mean(wrong & also) < 0.22  # 0.16 if independent


def test_the_noise_is_the_same_on_every_machine():
    """The bit generator's stream is guaranteed; the methods of a Generator may change with NumPy."""
    labels = np.arange(1000, dtype=np.int32) % 7
    result = symmetric_noise(labels, fraction=0.5, num_classes=7, seed=2**32 - 1)
    assert zlib.crc32(result.astype("<i4").tobytes()) == 226829270


def test_more_noise_keeps_the_wrong_labels_of_less():
    less, more = noisy(0.2), noisy(0.6)
    wrong = less != OWN
    np.testing.assert_array_equal(more[wrong], less[wrong])


def test_only_the_training_split_is_noisy():
    options = {"validation": 0.2, "examples_per_class": 50}
    clean = data.load(**options).splits
    for seed in (0, 1):
        splits = data.load(seed, label_noise=0.4, **options).splits
        assert np.sum(splits["train"].labels != clean["train"].labels) == 200
        for split in ("train", "validation", "test"):
            np.testing.assert_array_equal(splits[split].images, clean[split].images)
        for split in ("validation", "test"):
            np.testing.assert_array_equal(splits[split].labels, clean[split].labels)


def test_noise_needs_another_class(npz):
    name = npz(train_labels=np.zeros(20, int), test_labels=np.zeros(7, int))
    assert data.load(name=name).num_classes == 1
    message = r"^label_noise: must be 0 for a data set of one class, got 0\.1$"
    with pytest.raises(InputError, match=message):
        data.load(name=name, label_noise=0.1)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "0.4"])
def test_noise_is_a_fraction(value):
    with pytest.raises(InputError, match="^label_noise: must be "):
        validate(data.load, {"label_noise": value})


def test_the_seed_is_no_option():
    with pytest.raises(InputError, match="^seed: unknown field"):
        validate(data.load, {"seed": 1})


# --------------------------------------------------------------------------- labels in a file


@pytest.fixture
def save(tmp_path):
    """Saves an array; returns the path."""

    def save(labels, name="labels.npy", **options):
        np.save(tmp_path / name, labels, **options)
        return str(tmp_path / name)

    return save


@pytest.mark.parametrize("dtype", ["<i4", ">i8", "u1"])
def test_labels_of_a_file_replace_those_of_the_training_images(save, dtype):
    labels = (OWN + 1) % 10
    options = {"validation": 0.2, "examples_per_class": 50}
    clean = data.load(**options).splits
    splits = data.load(train_labels=save(labels.astype(dtype)), **options).splits
    np.testing.assert_array_equal(splits["train"].labels, (clean["train"].labels + 1) % 10)
    assert splits["train"].labels.dtype == np.int32
    np.testing.assert_array_equal(splits["train"].images, clean["train"].images)
    for split in ("validation", "test"):
        np.testing.assert_array_equal(splits[split].labels, clean[split].labels)
        np.testing.assert_array_equal(splits[split].images, clean[split].images)


def test_labels_of_a_file_are_in_the_order_of_the_training_images(save):
    order = np.arange(len(OWN)) % 10
    whole = data.load(train_labels=save(order)).splits["train"].labels
    np.testing.assert_array_equal(whole, order)
    images = data.load().splits["train"].images
    cut = data.load(train_labels=save(order), validation=0.3).splits["train"]
    for image, label in zip(cut.images[:50], cut.labels, strict=False):
        assert label in order[(images == image).all((1, 2, 3))]


def test_a_relative_path_is_in_data_dir(save, tmp_path, monkeypatch):
    save((OWN + 1) % 10)
    labels = data.load(train_labels="labels.npy", data_dir=str(tmp_path)).splits["train"].labels
    np.testing.assert_array_equal(labels, (OWN + 1) % 10)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.load(train_labels="~/labels.npy", data_dir="/nowhere").fingerprint()
    monkeypatch.chdir(tmp_path)
    assert data.load(train_labels="labels.npy").fingerprint()


def test_the_fingerprint_is_of_the_labels_that_are_trained(save):
    clean = data.load().fingerprint()
    results = [
        data.load(label_noise=0.1).fingerprint(),
        data.load(1, label_noise=0.1).fingerprint(),
        data.load(train_labels=save((OWN + 1) % 10)).fingerprint(),
    ]
    assert len({result["train"]["labels"] for result in [clean, *results]}) == 4
    assert all(result["test"] == clean["test"] for result in results)
    same = data.load(train_labels=save(OWN.astype(np.int64)))
    assert same.fingerprint() == clean


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (OWN[:-1], r"must be 1437, as the images, got 1436"),
        (OWN.astype(float), r"must be integers \[N\], got float64 \(1437,\)"),
        (OWN[:, None], r"must be integers \[N\], got int32 \(1437, 1\)"),
        (OWN == 1, r"must be integers \[N\], got bool \(1437,\)"),
        (np.zeros(0, int), "must be 1437, as the images, got 0"),
        (OWN - 1, r"must be in \[0, 10\), got -1"),
        (OWN + 1, r"must be in \[0, 10\), got 10"),
    ],
)
def test_labels_that_do_not_fit_are_refused(save, labels, message):
    with pytest.raises(InputError, match=f"^train_labels: labels in '.*labels.npy' {message}$"):
        data.load(train_labels=save(labels))


def test_labels_are_classes_of_the_config(save):
    labels = save((OWN + 2) % 12)
    assert 11 in data.load(train_labels=labels, num_classes=12).splits["train"].labels
    with pytest.raises(InputError, match=r"must be in \[0, 11\), by num_classes, got 11$"):
        data.load(train_labels=labels, num_classes=11)


class Payload:
    """Fails the test when unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


@pytest.mark.filterwarnings("error")
def test_files_that_are_no_arrays_of_numbers_are_refused(save, tmp_path):
    path = tmp_path / "labels.npy"
    valid = pathlib.Path(save(OWN)).read_bytes()
    huge = b"(9999999999999,), }"  # as long as the header that it replaces
    assert b"(1437,), }" + b" " * 9 in valid
    contents = {
        "objects": lambda: save({"worse_label": Payload()}, allow_pickle=True),
        "pickle": lambda: path.write_bytes(pickle.dumps(Payload())),
        "archive": lambda: (np.savez(tmp_path / "a.npz", a=OWN), (tmp_path / "a.npz").rename(path)),
        "text": lambda: path.write_text("1\n2\n"),
        "empty": lambda: path.write_bytes(b""),
        "cut": lambda: path.write_bytes(valid[:-4]),
        "huge": lambda: path.write_bytes(valid.replace(b"(1437,), }" + b" " * 9, huge)),
    }
    for write in contents.values():
        write()
        with pytest.raises(InputError, match="^train_labels: '.*labels.npy' is not a readable npy"):
            data.load(train_labels=str(path))


@pytest.mark.filterwarnings("error")
def test_damage_to_a_file_is_one_line_or_leaves_valid_labels(save):
    path, rng, errors = pathlib.Path(save(OWN)), np.random.default_rng(0), []
    content = path.read_bytes()
    for _ in range(200):
        start = int(rng.integers(150))
        path.write_bytes(content[:start] + rng.bytes(1) + content[start + 1 :])
        try:
            data.load(train_labels=str(path))
        except InputError as error:
            errors.append(error)
    assert len(errors) > 50
    assert {error.field for error in errors} == {"train_labels"}
    assert not [error for error in errors if len(str(error).splitlines()) != 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_labels": "/nowhere.npy"}, "train_labels: there is no file '/nowhere.npy'"),
        ({"train_labels": "/tmp"}, "train_labels: there is no file '/tmp'"),
        ({"train_labels": "s3://b/l.npy"}, "train_labels: must be on a local or mounted disk"),
        (
            {"train_labels": "/nowhere.npy", "label_noise": 0.1},
            r"label_noise: must be 0 with train_labels, got 0\.1",
        ),
    ],
)
def test_paths_and_options_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        data.load(**options)


def test_another_set_has_its_own_labels(save):
    for changes in ({"label_noise": 0.4}, {"train_labels": save((OWN + 1) % 10)}):
        other = data.load_other("digits", validate(data.load, changes)).splits["train"].labels
        np.testing.assert_array_equal(other, OWN)
