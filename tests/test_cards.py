"""Recipe cards: names, paths, descriptions."""

import re

import pytest

from sdd_jax import cards
from sdd_jax.errors import InputError


def test_a_name_and_its_argument_become_a_path(root):
    assert cards.locate("digits") == f"{root}/configs/digits.py"
    assert cards.locate("digits:ce") == f"{root}/configs/digits.py:ce"


def test_a_path_stays_as_it_is(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    for path in ("mine.py", "mine.py:a,b", f"{root}/configs/digits.py:ce"):
        assert cards.locate(path) == path


def test_installed_cards_are_found_in_the_package(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").touch()
    monkeypatch.setattr(cards, "_PACKAGE", tmp_path)
    assert cards.names() == ["mine"]


@pytest.mark.parametrize(
    ("card", "similar"),
    [
        ("imagenet", "imagenet_resnet152"),
        ("imagenet:ce", "imagenet_resnet152"),
        ("cifar100", "cifar100_50_per_class or cifar100_resnet18"),
        ("digts", "digits or distill_digits"),
        ("configs/digts.py", "digits or distill_digits"),
        ("digits.py", "digits or distill_digits"),
        ("DIGITS", "digits or distill_digits"),
    ],
)
def test_an_unknown_card_names_the_similar_ones(tmp_path, monkeypatch, card, similar):
    monkeypatch.chdir(tmp_path)
    name = card.partition(":")[0]
    with pytest.raises(InputError) as error:
        cards.locate(card)
    expected = f"--config: must be a recipe card, there is no card or file {name!r}; "
    assert str(error.value) == f"{expected}did you mean {similar}? all cards: sdd-jax cards"


@pytest.mark.parametrize("card", ["", "zzzzzzz", ":ce"])
def test_a_card_like_no_other_gets_no_suggestion(card):
    with pytest.raises(
        InputError, match=r"there is no card or file '\w*'; all cards: sdd-jax cards$"
    ):
        cards.locate(card)


@pytest.mark.parametrize("name", cards.names())
def test_every_card_states_its_paper_data_command_and_expected_figure(name):
    card = cards.read(name)
    assert card.title.endswith(".")
    assert {"Paper", "Data", "Command", "Expected"} <= set(card.fields)
    assert f"--config=configs/{name}.py" in card.fields["Command"] or name == "digits"


def test_fields_of_several_lines_become_one_line_and_end_at_an_empty_one():
    fields = cards.read("cifar100_resnet18").fields
    assert fields["Expected"].startswith("accuracy 76.8 % with SD-Dropout, 74.8 % with :ce")
    assert fields["Expected"].endswith("2 for dml):")
    assert "  " not in fields["Variants"]


def test_the_list_has_every_card_and_fits_a_hundred_columns():
    table = cards.table()
    entries = table.split("\n\n")
    assert [entry.partition("\n")[0] for entry in entries] == cards.names()
    assert max(map(len, table.splitlines())) <= 100
    for entry in entries:
        labels = re.findall(r"^ {4}(\w+) +[^- ]", entry, re.MULTILINE)
        assert labels == ["paper", "data", "expected"], entry
