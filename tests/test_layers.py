"""The plan of the package: imports go down the layers only, and light layers stay light."""

import ast
import pathlib
import subprocess
import sys

import pytest

import sdd_jax

PACKAGE = pathlib.Path(sdd_jax.__file__).parent
LAYERS = (  # top to bottom; a module may import from its own line and from those below
    ("__main__",),
    ("cli",),
    ("sweep", "compile_only"),
    ("train", "evaluate"),
    ("recipes",),
    ("trained_run",),
    ("experiment",),
    ("config",),
    ("evaluation",),
    ("runs",),
    ("training",),
    ("objectives",),
    ("models", "data"),
    ("tasks",),
    ("registry", "options", "plugins"),
    ("prng", "devices", "hosts", "supervisor", "paths", "buckets", "cards"),
    ("extras", "overrides", "hlo"),
    ("errors",),
    ("spread",),
    ("losses", "mc_dropout"),
    ("dropout",),
)
FLOOR = {name: floor for floor, names in enumerate(LAYERS) for name in names}


def imports():
    """``(module, imported)`` of every import in the package, dotted names below ``sdd_jax``."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not module:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sdd_jax"):
                base = node.module.removeprefix("sdd_jax").strip(".")
                for alias in node.names:
                    name = f"{base}.{alias.name}".strip(".")
                    yield module, name if base == "" or _is_module(name) else base
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("sdd_jax."):
                        yield module, alias.name.removeprefix("sdd_jax.")


def _is_module(name):
    path = PACKAGE.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_no_import_runs_upward():
    found = {(a.partition(".")[0], b.partition(".")[0]) for a, b in imports()}
    assert {name for arrow in found for name in arrow} == FLOOR.keys()
    assert [(a, b) for a, b in sorted(found) if FLOOR[a] > FLOOR[b]] == []


def test_no_layer_of_one_line_imports_the_other():
    found = {(a.partition(".")[0], b.partition(".")[0]) for a, b in imports()}
    beside = {(a, b) for a, b in found if a != b and FLOOR[a] == FLOOR[b]}
    assert not {(a, b) for a, b in beside if (b, a) in beside}


@pytest.mark.parametrize("folder", ["models", "objectives", "training", "data", "losses"])
def test_lower_layers_do_not_know_the_paths_of_a_config(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        assert '"config.' not in path.read_text(), path


def test_importing_the_package_loads_jax_and_optax_only():
    heavy = "flax orbax tensorflow_datasets grain matplotlib sklearn ml_collections tensorboardX"
    code = f"import sys, sdd_jax; print([m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "[]\n"
