"""The registry: a new file is a new entry, its options are checked against its signature."""

import sys

import pytest

from sdd_jax.errors import InputError, require, within
from sdd_jax.registry import Registry

ENTRY = """
from plugins.table import entries
from sdd_jax.options import Size

@entries.register({name!r})
def entry(*, provided, size: Size = 3, mode="plain"):
    return ({name!r}, provided, size, mode)
"""


@pytest.fixture
def entries(tmp_path, monkeypatch):
    """The registry of a package with three modules: the table, and one for each of two entries."""
    package = tmp_path / "plugins"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "table.py").write_text(
        "from sdd_jax.registry import Registry\nentries = Registry('plugins', 'plugin')\n"
    )
    for name in ("round", "flat"):
        (package / f"{name}_entry.py").write_text(ENTRY.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    from plugins.table import entries

    yield entries
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugins"]:
        del sys.modules[name]


def test_modules_of_the_package_are_found_by_being_there(entries):
    assert entries.names() == ["flat", "round"]


def test_a_new_file_is_a_new_entry(entries, tmp_path):
    (tmp_path / "plugins" / "third.py").write_text(ENTRY.format(name="deep"))
    assert entries.names() == ["deep", "flat", "round"]


def test_entries_may_be_registered_from_outside_the_package(entries):
    @entries.register("mine")
    def mine(*, size=1):
        return size

    assert entries.get("mine") is mine
    assert entries.names() == ["flat", "mine", "round"]


def test_registering_a_name_twice_is_an_error(entries):
    entries.names()
    with pytest.raises(ValueError, match=r"config\.plugin\.name: 'flat' is registered twice"):
        entries.register("flat")(lambda: None)


def test_options_are_the_defaults_with_overrides(entries):
    assert entries.options("flat") == {"name": "flat", "size": 3, "mode": "plain"}
    assert entries.options("flat", size=5) == {"name": "flat", "size": 5, "mode": "plain"}


def test_build_passes_options_and_only_the_context_that_is_asked_for(entries):
    built = entries.build({"name": "round", "size": 7}, provided="here", ignored="there")
    assert built == ("round", "here", 7, "plain")


def test_build_leaves_the_options_as_they_were(entries):
    options = {"name": "round", "size": 7}
    entries.build(options, provided=None)
    assert options == {"name": "round", "size": 7}


def test_unknown_name_is_an_input_error_that_lists_the_names(entries):
    with pytest.raises(
        InputError, match=r"config\.plugin\.name: must be one of flat, round, got 'square'"
    ):
        entries.get("square")


def test_unknown_option_is_an_input_error_that_lists_the_options(entries):
    message = r"config\.plugin\.colour: 'flat' has no such option; expected mode, size"
    with pytest.raises(InputError, match=message):
        entries.build({"name": "flat", "colour": "red"}, provided=None)
    with pytest.raises(InputError, match=message):
        entries.options("flat", colour="red")


def test_what_the_program_provides_is_no_option(entries):
    with pytest.raises(InputError, match=r"config\.plugin\.provided: 'flat' has no such option"):
        entries.build({"name": "flat", "provided": 1})


def test_an_entry_without_options_says_so():
    registry = Registry("sdd_jax.losses", "thing")
    registry.register("bare")(lambda: None)
    with pytest.raises(
        InputError, match=r"config\.thing\.size: 'bare' has no such option; expected no options"
    ):
        registry.options("bare", size=1)


def test_options_outside_their_range_are_refused_with_the_path_of_the_field(entries):
    for use in (entries.options, lambda name, **o: entries.build({"name": name} | o, provided=1)):
        with pytest.raises(InputError, match=r"^config\.plugin\.size: must be at least 1, got 0$"):
            use("flat", size=0)


def test_an_entry_names_its_own_arguments_and_the_registry_adds_the_path():
    registry = Registry("sdd_jax.losses", "--thing", options="part")

    @registry.register("picky")
    def picky(*, size=3):
        require(size % 2 == 0, "size", size, "even")
        raise InputError("'picky' needs more")

    with pytest.raises(InputError, match=r"^config\.part\.size: must be even, got 3$"):
        registry.build({"name": "picky"})
    with pytest.raises(InputError, match=r"^config\.part: 'picky' needs more$"):
        registry.build({"name": "picky", "size": 2})
    with pytest.raises(InputError, match="^--thing: must be one of picky, got 'other'$"):
        registry.get("other")


def test_an_input_error_gets_the_path_of_every_section_it_passes():
    with pytest.raises(InputError, match=r"^config\.a\.b: must be 3, got 4$"), within("config.a"):
        require(False, "b", 4, "3")
    with pytest.raises(InputError, match=r"^config\.c: must be 3, got 4$"), within("config.a"):
        require(False, "config.c", 4, "3")
    require(True, "b", 3, "3")


def test_a_message_is_one_line_of_sensible_length_that_can_be_printed():
    message = str(InputError("config.name: must be\nthis,\x85 got \ud800" + 5000 * "x" + "the end"))
    assert message.startswith("config.name: must be this,  got \\ud800x")
    assert message.endswith("xthe end")
    assert len(message) < 1100
    assert len(message.splitlines()) == 1
    assert message.encode()
