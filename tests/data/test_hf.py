"""Data sets of Hugging Face, written and read by the real library, without the Hub."""

import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sdd_jax import data
from sdd_jax.data.sources.hf import HfImageFiles
from sdd_jax.errors import InputError
from sdd_jax.evaluation.checks import checks

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(30) % 5
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
LAZY = {"image_size": 4, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
PARTS = {"train": slice(20), "test": slice(20, 30)}


def table(images, labels, **features):
    """A ``datasets.Dataset`` of images and of columns ``NAME=(feature, values)``."""
    import datasets

    columns = {"label": (datasets.ClassLabel(names=NAMES), labels)} | features
    columns = {"image": (datasets.Image(), list(images))} | columns
    columns = {name: column for name, column in columns.items() if column}
    return datasets.Dataset.from_dict(
        {name: values for name, (_, values) in columns.items()},
        features=datasets.Features({name: feature for name, (feature, _) in columns.items()}),
    )


def numbers(*names):
    """Columns of integers, as ``table`` takes them."""
    import datasets

    return {name: (datasets.Value("int64"), LABELS[:5] + i) for i, name in enumerate(names)}


@pytest.fixture
def save(tmp_path):
    """Writes splits as ``save_to_disk`` does; returns the data set's name."""
    import datasets

    def save(**splits):
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
        return f"hf:{tmp_path / 'saved'}"

    return save


@pytest.fixture
def twice(save):
    """Writes one small table as both splits."""
    return lambda images=IMAGES[:5], labels=LABELS[:5], **columns: save(
        **dict.fromkeys(("train", "test"), table(images, labels, **columns))
    )


@pytest.fixture
def written(save):
    return save(**{split: table(IMAGES[part], LABELS[part]) for split, part in PARTS.items()})


@pytest.fixture
def load(tmp_path):
    def load(name, **options):
        return data.load(name=name, cache_dir=str(tmp_path / "cache"), **options)

    return load


def assert_holds(dataset, images=IMAGES, labels=LABELS):
    for split, part in PARTS.items():
        np.testing.assert_array_equal(dataset.splits[split].images, images[part])
        np.testing.assert_array_equal(dataset.splits[split].labels, labels[part])


def image_folder(root, images=IMAGES, labels=LABELS):
    """``root/SPLIT/CLASS/INDEX.png``, whose files are listed class by class."""
    for split, part in PARTS.items():
        for i in range(30)[part]:
            path = root / split / NAMES[labels[i]] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i]).save(path)
    return f"hf:{root}"


def parquet(root):
    for split, part in PARTS.items():
        table(IMAGES[part], LABELS[part]).to_parquet(root / f"{split}.parquet")


def json_lines(root):
    """Paths of image files, and in README.md the features as on the Hub."""
    image_folder(root / "images")
    for split, part in PARTS.items():
        rows = (
            {"image": str(root / "images" / split / NAMES[LABELS[i]] / f"{i:02}.png")}
            | {"label": int(LABELS[i])}
            for i in range(30)[part]
        )
        (root / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = "".join(f"        '{i}': {name}\n" for i, name in enumerate(NAMES))
    (root / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - {split: train, path: train.jsonl}\n  - {split: test, path: test.jsonl}\n"
        "dataset_info:\n  features:\n  - {name: image, dtype: image}\n"
        f"  - name: label\n    dtype:\n      class_label:\n       names:\n{names}---\n"
    )


def test_a_saved_data_set_is_read_as_it_was_written(written, load):
    dataset = load(written)
    assert dataset.num_classes == 7
    assert_holds(dataset)


@pytest.mark.parametrize("write", [parquet, json_lines])
def test_folders_of_files_are_read_in_order(tmp_path, load, write):
    root = tmp_path / "files"
    root.mkdir()
    write(root)
    dataset = load(f"hf:{root}")
    assert dataset.num_classes == 7
    assert_holds(dataset)


def test_the_folders_of_an_image_folder_are_its_classes(tmp_path, load):
    dataset = load(image_folder(tmp_path / "folder"))
    assert dataset.num_classes == 5  # in alphabetical order
    order = np.concatenate([np.argsort(LABELS[part], kind="stable") for part in PARTS.values()])
    order[20:] += 20
    assert_holds(dataset, IMAGES[order], LABELS[order])


def test_the_digits_are_those_of_an_npz_file(save, npz, load):
    digits = data.load(name="digits").splits
    arrays = {f"{name}_images": split.images for name, split in digits.items()}
    arrays |= {f"{name}_labels": split.labels for name, split in digits.items()}
    grey = {
        name: table(split.images[..., 0], split.labels, label=None, digit=digit(split.labels))
        for name, split in digits.items()
    }
    ours, theirs = load(save(**grey)), load(npz(**arrays))
    assert ours.fingerprint() == theirs.fingerprint()
    for name, split in theirs.splits.items():
        np.testing.assert_array_equal(ours.splits[name].images, split.images)
        np.testing.assert_array_equal(ours.splits[name].labels, split.labels)
    np.testing.assert_array_equal(ours.mean, theirs.mean)


def digit(labels):
    import datasets

    return datasets.ClassLabel(num_classes=10), labels


def test_a_path_is_relative_to_data_dir(written, load, tmp_path):
    assert_holds(load("hf:saved", data_dir=str(tmp_path)))


def test_lazy_images_stay_encoded_until_they_are_read(written, load, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
        dataset = load(written, **LAZY)
        dataset.fingerprint()
    assert dataset.image_shape == (4, 4, 3)
    expected = Image.fromarray(IMAGES[3]).resize((5, 5), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(dataset.splits["train"].images[3], np.asarray(expected)[:4, :4])


@pytest.mark.parametrize("write", [image_folder, None])
def test_image_files_open_again_in_another_process_without_their_content(tmp_path, save, write):
    import datasets

    large = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8)
    if write:
        folder = write(tmp_path / "folder", large).removeprefix("hf:")
        splits = datasets.load_dataset(folder, cache_dir=str(tmp_path / "cache"))
        paths = sorted((tmp_path / "folder/test").rglob("*.png"))
        expected = [large[int(path.stem)] for path in paths]
    else:
        splits = datasets.load_from_disk(save(test=table(large, LABELS)).removeprefix("hf:"))
        expected = large
    pickled = pickle.dumps(HfImageFiles(splits["test"], "image"))
    assert len(pickled) < 20_000
    again = pickle.loads(pickled)
    assert len(again) == len(expected)
    for i, image in enumerate(expected):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(again[i]))), image)


def test_columns_are_chosen_by_name(save, load):
    import datasets

    coarse = datasets.ClassLabel(names=["x", "y"])
    both = {
        split: table(
            IMAGES[part],
            LABELS[part],
            coarse=(coarse, LABELS[part] % 2),
            mask=(datasets.Image(), list(255 - IMAGES[part])),
        )
        for split, part in PARTS.items()
    }
    name = save(**both)
    with pytest.raises(InputError, match="must be chosen by :image=image or :image=mask, got ''"):
        load(name)
    with pytest.raises(InputError, match="the image .* must be chosen by :image=image, got 'mask'"):
        load(f"{name}:image=mask:label=mask")
    with pytest.raises(
        InputError, match="by :label=label or :label=coarse or :label=image, got ''"
    ):
        load(f"{name}:image=mask")
    dataset = load(f"{name}:label=coarse:image=mask")
    assert dataset.num_classes == 2
    assert_holds(dataset, 255 - IMAGES, LABELS % 2)


def test_integers_are_labels_only_if_they_are_named(twice, load):
    name = twice(label=None, **numbers("number", "kind"))
    with pytest.raises(InputError, match="must be chosen by :label=number or :label=kind, got ''"):
        load(name)
    dataset = load(f"{name}:label=kind")
    assert dataset.num_classes == 6
    np.testing.assert_array_equal(dataset.splits["test"].labels, LABELS[:5] + 1)


@pytest.mark.parametrize("options", [{}, LAZY])
def test_a_test_split_without_labels_is_replaced_by_validation(save, load, options):
    withheld = table(IMAGES[12:20], [-1] * 8)
    train, validation = (table(IMAGES[p], LABELS[p]) for p in (slice(8), slice(8, 12)))
    splits = load(save(train=train, validation=validation, test=withheld), **options).splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 8, "test": 4}
    np.testing.assert_array_equal(splits["test"].labels, LABELS[8:12])
    with pytest.raises(InputError, match="train and test .or validation. with labels, got train, "):
        load(save(train=train, test=withheld), **options)


@pytest.mark.parametrize(
    ("mode", "message"),
    [("RGBA", "of 1 or 3 channels"), ("LA", "of 1 or 3 channels"), ("I;16", "uint8, got uint16")],
)
def test_images_in_memory_are_grey_or_colour_of_eight_bits(twice, load, mode, message):
    image = Image.new(mode, (8, 8))
    with pytest.raises(InputError, match=f"^train images must be {message}"):
        load(twice([image] * 5))


@pytest.mark.parametrize(("mode", "shown"), [("P", "RGB"), ("1", "L")])
def test_palettes_and_bits_are_read_as_intensities(twice, load, mode, shown):
    images = [Image.fromarray(image).convert(mode) for image in IMAGES[:5]]
    expected = np.stack([np.asarray(image.convert(shown)) for image in images])
    read = load(twice(images)).splits["train"].images
    np.testing.assert_array_equal(read, expected.reshape(read.shape))


@pytest.mark.parametrize("other", [IMAGES[0, :6], IMAGES[0, ..., 0]])
def test_images_of_several_sizes_or_modes_need_image_size(twice, load, other):
    name = twice([*IMAGES[:4], other])
    with pytest.raises(InputError, match="must have one size and mode where image_size is 0, got"):
        load(name)
    assert np.asarray(load(name, **LAZY).splits["train"].images).shape == (5, 4, 4, 3)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [({"bytes": b"nothing", "path": None}, "UnidentifiedImageError"), (None, "no image is stored")],
)
def test_damaged_and_missing_images_are_named(twice, load, bad, reason):
    name = twice([*IMAGES[:4], bad])
    with pytest.raises(InputError, match=f"^name: .*saved', train: image 4 .*{reason}"):
        load(name)
    images = load(name, **LAZY).splits["train"].images
    with pytest.raises(InputError, match=f"saved, train: image 4 cannot be decoded: .*{reason}"):
        np.asarray(images)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/null", "there is no file '/dev/null'"),
        ("https://example.org/a.png", "must be on a local or mounted disk"),
    ],
)
def test_only_files_of_this_machine_are_read(tmp_path, load, path, reason):
    json_lines(tmp_path)
    file = tmp_path / "train.jsonl"
    first, *others = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps({"image": path, "label": 0}), *others]))
    with pytest.raises(InputError, match=f"train: image 0 cannot be decoded: .*{reason}"):
        load(f"hf:{tmp_path}")


def one_table(root):
    table(IMAGES[:5], LABELS[:5]).save_to_disk(root)


def damaged_arrow(root):
    one_table(root / "train")
    one_table(root / "test")
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (root / "train" / "data-00000-of-00001.arrow").write_bytes(b"nothing")


def damaged_parquet(root):
    for split in PARTS:
        (root / f"{split}.parquet").write_bytes(b"nothing")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda root: None, ".*data' cannot be read: EmptyDatasetError"),
        (one_table, ".*data' must have the splits train and test"),
        (damaged_arrow, ".*data' cannot be read: ArrowInvalid"),
        (damaged_parquet, ".*data' cannot be read: ArrowInvalid"),
        (lambda root: (root / "train.txt").write_text("a"), ".* must have the splits"),
        (
            lambda root: (root / "dataset_dict.json").write_text("{{"),
            ".* cannot be read: JSONDecod",
        ),
        (lambda root: (root / "data.py").write_text("1 / 0"), ".*data' cannot be read: "),
    ],
)
def test_folders_that_are_no_data_sets_are_refused(tmp_path, load, write, message):
    root = tmp_path / "data"
    root.mkdir()
    write(root)
    with pytest.raises(InputError, match=f"^name: {message}") as error:
        load(f"hf:{root}")
    assert len(str(error.value).splitlines()) == 1


def test_a_set_without_images_or_labels_is_refused(save, twice, load):
    import datasets

    splits = dict.fromkeys(PARTS, datasets.Dataset.from_dict({"number": [0, 1]}))
    with pytest.raises(InputError, match=r"must have a feature Image, got number \(Value\)"):
        load(save(**splits))
    with pytest.raises(
        InputError, match=r"ClassLabel, integers or another Image, got image \(Image\)"
    ):
        load(twice(label=None))


def test_labels_must_mean_the_same_in_both_splits(save, load):
    import datasets

    turned = datasets.ClassLabel(names=NAMES[::-1])
    train = table(IMAGES[:5], LABELS[:5])
    test = table(IMAGES[:5], LABELS[:5], label=(turned, LABELS[:5]))
    with pytest.raises(InputError, match="has other features in test than in train"):
        load(save(train=train, test=test))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:", "must be hf:NAME or hf:PATH, and then any of :config=..., :image=..., :label=..."),
        ("hf:mnist:labels=x", "must be hf:NAME or hf:PATH, .*, got 'hf:mnist:labels=x'"),
        (
            "hf:/nowhere",
            "must be the name of a data set on the Hub, or a folder; there is no '/now",
        ),
        ("hf:a/b/c", "must be the name of a data set on the Hub, or a folder; there is no 'a/b/c'"),
        ("hf:" + "x/" * 3000, "must be the name of a data set on the Hub"),
        ("hf:gs://bucket/data", "must be on a local or mounted disk"),
    ],
)
def test_unknown_names_are_refused(load, name, message):
    with pytest.raises(InputError, match=f"^name: {message}"):
        load(name)


def test_a_saved_folder_has_no_configurations(written, load):
    with pytest.raises(InputError, match="must be without :config=, for a folder of save_to_disk"):
        load(f"{written}:config=plain")


def test_without_the_package_the_command_that_installs_it_is_named(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # an import fails
    with pytest.raises(InputError, match=r"^name: hf: needs pip install .*\[hf\]"):
        load("hf:mnist")


@pytest.mark.parametrize(
    ("name", "label"),
    [("hf:mnist", "mnist"), ("hf:data/birds/", "birds"), ("hf:a/b/:label=x:image=y", "b")],
)
def test_the_name_in_metrics_is_the_last_part_of_the_path(name, label):
    checks.get("ood")(ood=(name, f"npz:{label}2.npz"))
    with pytest.raises(InputError, match="^ood: must be different data sets"):
        checks.get("ood")(ood=(name, f"npz:/other/{label}.npz"))


def run(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_data_set_that_the_hub_cannot_deliver_is_one_line(tmp_path, root):
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from sdd_jax import data; "
    done = run(tmp_path, "-c", f"{code}data.load(name='hf:some/where', cache_dir='cache')")
    *_, last = done.stderr.splitlines()
    assert "InputError: name: 'some/where' cannot be read: ConnectionError: Couldn't" in last


@pytest.mark.slow
def test_the_programs_train_on_a_folder_and_compare_with_another(root, tmp_path):
    image_folder(tmp_path / "birds")
    image_folder(tmp_path / "clouds", 255 - IMAGES)
    tiny = ("--config.model={'name': 'mlp', 'width': 8}", "--config.batch_size=4",
            "--config.optimizer.learning_rate=0.01", "--config.duration=4 steps",
            "--config.dataset.cache_dir=cache", "--config.augment.pad=0")  # fmt: skip
    name = "--config.dataset.name=hf:birds"
    done = run(tmp_path, root / "train.py", "--workdir=run", name, *tiny)
    assert (done.returncode, done.stderr) == (0, "")
    checks = ("--checks=ood", "--config.eval.ood=hf:clouds")
    done = run(tmp_path, root / "eval.py", "--workdir=run", *checks)
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads((tmp_path / "run" / "eval" / "metrics.json").read_text())
    assert 0 <= metrics["eval/ood/clouds/msp/auroc"] <= 1
