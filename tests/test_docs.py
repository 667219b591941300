"""The README and the pages of docs/: fields, options and commands are those of the code."""

import importlib.util
import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

import sdd_jax
from sdd_jax import cards
from sdd_jax import config as configs
from sdd_jax.cli import merge_sections
from sdd_jax.evaluation.checks import checks
from sdd_jax.models import build, models
from sdd_jax.objectives import objectives
from sdd_jax.tasks import tasks

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
CODE = re.compile(r"```.*?```", re.DOTALL)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def block_with(start, page="README.md"):
    (block,) = [block for block in blocks(PAGES[page], "python") if block.startswith(start)]
    return block


def commands():
    """The lines of all pages that start train.py or eval.py, as lists of words."""
    for page in PAGES.values():
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                for command in line.split(" && "):
                    python, *words = shlex.split(command, comments=True) or [""]
                    if python == "python" and words[0] in ("train.py", "eval.py"):
                        yield words


def options():
    """The options in the text, as commands; those in methods.md are for the card on that page."""
    for name, page in PAGES.items():
        card = ["--config=configs/cifar100_resnet18.py"] if name == "methods.md" else []
        for span in re.findall(r"`(--config\b[^`]*=[^`]+)`", CODE.sub("", page)):
            yield ["train.py", *card, *shlex.split(span)]


COMMANDS = [*commands(), *options()]


def parse(monkeypatch, command):
    """Parses a command as the programs do, and completes its config."""
    program, *args = merge_sections(command)
    values = flags.FlagValues()
    texts = (
        "workdir",
        "output",
        "coordinator_address",
        "checkpoint",
        "num_processes",
        "process_id",
    )
    for name in texts:
        flags.DEFINE_string(name, None, "", flag_values=values)
    flags.DEFINE_list("checks", [], "", flag_values=values)
    flags.DEFINE_list("compare", [], "", flag_values=values)
    flags.DEFINE_multi_string("sweep", [], "", flag_values=values)
    for name in ("distributed", "trust_imports"):
        flags.DEFINE_bool(name, False, "", flag_values=values)
    if program == "train.py":
        given = [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
        card = ["configs/digits.py", *given][-1]
        path = ROOT / card if "/" in card else cards.locate(card)
        args = [f"--config={path}", *(a for a in args if not a.startswith("--config="))]
    # ml_collections reads the overrides from there.
    monkeypatch.setattr("sys.argv", [program, *args])
    if program == "train.py":
        config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    else:
        config = configs.default()
        replaceable = ConfigDict({"eval": config.eval, "dataset": config.dataset})
        config_flags.DEFINE_config_dict("config", replaceable, flag_values=values)
    rest = values([program, *args])
    assert rest == [program]
    for check in values.checks:
        assert check in [*checks.names(), "all"]
    full = configs.default() if program == "eval.py" else ConfigDict()
    full.update(values.config)
    return configs.complete(full)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The page of config fields."""
    folder = tmp_path_factory.mktemp("generated")
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    generate.write(folder)
    return (folder / "config.md").read_text()


def table(text):
    """``{field: default}`` of the first table in the text."""
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", text, re.MULTILINE)
    return {field: eval(value) for field, value in rows}


def test_there_are_commands_to_test():
    assert len(COMMANDS) >= 40


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_parses_against_its_card(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, registry in (("focal", objectives), ("exact", tasks)):  # imported once a process
        code = "" if name in registry.names() else block_with(f"# {name}", "extend.md")
        (tmp_path / f"{name}.py").write_text(code)
    config = parse(monkeypatch, command)
    assert config.objective.name in objectives.names()


def test_the_generated_page_has_every_field_with_its_default(generated):
    sections = re.split(r"^## ", generated, flags=re.MULTILINE)[1:]
    default = configs.default().to_dict()
    top, *others = sections
    assert table(top) == {k: v for k, v in default.items() if not isinstance(v, dict)}
    by_name = {re.match(r"`(\w+)`", section)[1]: section for section in others}
    assert set(by_name) == set(default) - set(table(top))
    for name, section in by_name.items():
        entries = {
            m[1]: part for part in section.split("\n### ") if (m := re.match(r"`(\w+)`\n", part))
        }
        if name in configs.SELECTED:
            registry = configs.SELECTED[name]
            assert {entry: {"name": entry} | table(part) for entry, part in entries.items()} == {
                entry: registry.options(entry) for entry in registry.names()
            }
        elif name != "eval":
            assert table(section) == default[name]
        else:
            assert set(entries) == set(checks.names())
            own = {k: v for part in entries.values() for k, v in table(part).items()}
            assert own == {k: v for k, v in default["eval"].items() if k != "batch_size"}


@pytest.mark.parametrize(
    ("registry", "page"),
    [(objectives, "methods.md"), (checks, "evaluate.md")],
    ids=["methods", "checks"],
)
def test_every_objective_and_check_is_in_a_table(registry, page):
    rows = "".join(line for line in PAGES[page].splitlines() if line.startswith("|"))
    own = {name for name in registry.names() if "test" not in name and name != "focal"}
    assert own <= set(re.findall(r"`(\w+)`", rows))


def test_every_public_name_is_in_the_reference():
    named = re.findall(r"auto\w+:: sdd_jax\.(\w+)", PAGES["api.md"])
    assert sorted(named) == sorted(sdd_jax.__all__)


def test_every_benchmark_in_the_text_is_a_module():
    modules = {path.stem for path in ROOT.glob("benchmarks/*.py")}
    rows = PAGES["results.md"].partition("| `python -m benchmarks.` |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| `(\w+)`", rows, re.MULTILINE)
    named += re.findall(r"python -m benchmarks\.(\w+)", "".join(PAGES.values()))
    assert len(named) >= 10
    assert set(named) <= modules


def test_every_card_is_in_the_table_of_cards():
    files = {f"configs/{path.name}" for path in ROOT.glob("configs/*.py")}
    assert files == set(re.findall(r"`(configs/\w+\.py)`", PAGES["train.md"]))


@pytest.mark.parametrize("page", ["README.md", "index.md"])
def test_the_five_lines_of_the_loss_run(page):
    model = build(models.options("mlp", width=8), num_classes=3)
    images, labels = jnp.ones((4, 8, 8, 1)), jnp.arange(4) % 3
    variables = model.init(jax.random.key(0), images)
    names = {"model": model, "variables": variables, "images": images, "labels": labels}
    names |= {"key": jax.random.key(1), "weight": 0.1, "jnp": jnp}
    exec(block_with("import sdd_jax", page), names)
    assert names["loss"] > names["ce"].mean() > 0


def test_exactly_two_lines_install_the_package():
    lines = [line for line in PAGES["README.md"].splitlines() if line.startswith("pip install -e")]
    assert lines == [
        "pip install -e '.[train]' && python train.py",
        "pip install -e '.[test]' && pytest",
    ]
