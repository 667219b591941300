"""The README and sweeps.md: fields, options and commands are those of the code."""

import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from sdd_jax import config as configs
from sdd_jax.cli import merge_sections
from sdd_jax.data.engines import engines
from sdd_jax.evaluation.checks import checks
from sdd_jax.models import build, models
from sdd_jax.objectives import objectives
from sdd_jax.options import defaults
from sdd_jax.training.optimizers import optimizers
from sdd_jax.training.schedules import schedules

ROOT = pathlib.Path(__file__).parent.parent
README, SWEEPS = ((ROOT / name).read_text() for name in ("README.md", "sweeps.md"))
PROSE = re.sub(r"```.*?```", "", README, flags=re.DOTALL)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def block_with(start):
    (block,) = [block for block in blocks(README, "python") if block.startswith(start)]
    return block


def commands():
    """The lines of both files that start train.py or eval.py, as lists of words."""
    for block in blocks(README, "bash") + blocks(SWEEPS, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split(" && "):
                python, *words = shlex.split(command, comments=True) or [""]
                if python == "python" and words[0] in ("train.py", "eval.py"):
                    yield words


def options():
    """The options in the text, as commands; those of sweeps.md are for the card on that page."""
    card = "--config=configs/cifar100_resnet18.py"
    for text, words in ((README, []), (SWEEPS, [card])):
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for span in re.findall(r"`(--config\b[^`]*=[^`]+)`", prose):
            yield ["train.py", *words, *shlex.split(span)]


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
        cards = [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
        card = ["configs/digits.py", *cards][-1]
        args = [f"--config={ROOT / card}", *(a for a in args if not a.startswith("--config="))]
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


def test_there_are_commands_to_test():
    assert len(COMMANDS) >= 40


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_parses_against_its_card(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "focal.py").write_text(
        "" if "focal" in objectives.names() else block_with("# focal")
    )
    config = parse(monkeypatch, command)
    assert config.objective.name in objectives.names()


def test_the_table_of_fields_has_all_fields_and_their_defaults():
    fields = {}
    exec(block_with("seed = 0"), fields)
    del fields["__builtins__"]
    assert fields == configs.default().to_dict()


def test_the_alternatives_in_the_table_of_fields_are_their_defaults_or_examples():
    for alternative in re.findall(
        r"^# or dict\((.*?)\)(?::|$)", block_with("seed = 0"), re.MULTILINE
    ):
        values = eval(f"dict({alternative})")
        registry = {"step": schedules, "streamed": engines}[values["name"]]
        assert set(registry.options(values["name"])) == set(values)


@pytest.mark.parametrize(
    ("registry", "heading", "common"),
    [
        (
            optimizers,
            "optimizer",
            {"learning_rate", "weight_decay", "weight_decay_mask", "clip_norm", "ema"},
        ),
        (models, "network", {"width", "dropout_rate", "dtype"}),
    ],
)
def test_the_tables_of_optimizers_and_networks_have_all_entries_and_options(
    registry, heading, common
):
    table = PROSE.partition(f"| {heading} | own options |")[2].partition("\n\n")[0]
    documented = {}
    for row in table.splitlines()[2:]:
        names, own_options = (set(re.findall(r"`(\w+)`", cell)) for cell in row.split("|")[1:3])
        documented |= dict.fromkeys(names, own_options | common)
    # Other tests register entries of their own.
    ours = [name for name in registry.names() if "test" not in name]
    assert documented == {name: set(defaults(registry.get(name))) for name in ours}


@pytest.mark.parametrize("registry", [objectives, checks], ids=["objectives", "checks"])
def test_every_objective_and_check_is_in_a_table(registry):
    rows = "".join(line for line in PROSE.splitlines() if line.startswith("|"))
    own = {name for name in registry.names() if "test" not in name and name != "focal"}
    assert own <= set(re.findall(r"`(\w+)`", rows))


def test_every_benchmark_in_the_text_is_a_module():
    modules = {path.stem for path in ROOT.glob("benchmarks/*.py")}
    table = PROSE.partition("| `python -m benchmarks.` |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    named += re.findall(r"python -m benchmarks\.(\w+)", README)
    assert len(named) >= 10
    assert set(named) <= modules


def test_every_card_is_in_the_table_of_cards():
    cards = {f"configs/{path.name}" for path in ROOT.glob("configs/*.py")}
    assert cards == set(re.findall(r"`(configs/\w+\.py)`", PROSE))


def test_the_five_lines_of_the_loss_run():
    model = build(models.options("mlp", width=8), num_classes=3)
    images, labels = jnp.ones((4, 8, 8, 1)), jnp.arange(4) % 3
    variables = model.init(jax.random.key(0), images)
    names = {"model": model, "variables": variables, "images": images, "labels": labels}
    names |= {"key": jax.random.key(1), "weight": 0.1, "jnp": jnp}
    exec(block_with("import sdd_jax"), names)
    assert names["loss"] > names["ce"].mean() > 0


def test_exactly_two_lines_install_the_package():
    lines = [line for line in README.splitlines() if line.startswith("pip install -e")]
    assert lines == ["pip install -e . && python train.py", "pip install -e '.[test]' && pytest"]
