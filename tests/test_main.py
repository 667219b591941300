"""The commands of ``sdd-jax`` that start neither training nor an evaluation."""

import sys

import pytest

from sdd_jax import __version__, cards
from sdd_jax.__main__ import main


@pytest.fixture
def sdd_jax(monkeypatch, capsys):
    """Function that runs a command, and returns what it prints, or its status and its error."""

    def sdd_jax(*arguments, program="/usr/bin/sdd-jax"):
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        try:
            main()
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return sdd_jax


def test_without_a_command_and_on_request_it_prints_its_usage(sdd_jax):
    usage = sdd_jax()
    assert usage.startswith("usage: sdd-jax COMMAND")
    assert max(map(len, usage.splitlines())) <= 80
    assert usage == sdd_jax("--help") == sdd_jax("cards", "--help")
    assert sdd_jax(program="sdd_jax/__main__.py") == usage.replace("sdd-jax", "python -m sdd_jax")


def test_it_prints_its_version(sdd_jax):
    assert sdd_jax("--version") == f"sdd_jax {__version__}\n"


def test_an_unknown_command_is_one_line(sdd_jax):
    unknown = "there is no command 'fit'; expected train, eval, compile or cards"
    assert sdd_jax("fit") == (2, f"error: sdd-jax: {unknown}\n")
    expected = f"error: python -m sdd_jax: {unknown}\n"
    assert sdd_jax("fit", program="sdd_jax/__main__.py") == (2, expected)


def test_it_lists_the_cards_and_shows_one(sdd_jax, root):
    assert sdd_jax("cards") == cards.table() + "\n"
    shown = f"{cards.read('digits').text}\n\nFile      {root}/configs/digits.py\n"
    assert sdd_jax("cards", "digits") == shown
    status, error = sdd_jax("cards", "digts")
    assert status == 2
    assert error.startswith("error: --config: must be a recipe card")
    assert error.count("\n") == 1
