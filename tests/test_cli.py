"""The command lines of train.py and eval.py."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from sdd_jax import cards
from sdd_jax.evaluation.checks import checks
from sdd_jax.models import models
from sdd_jax.objectives import objectives

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_fork(root, start, tmp_path_factory):
    """Function that does what ``run`` does, for a program that ends at once; see tests/forks.py."""
    server = start("tests/forks.py", stdin=subprocess.PIPE, stderr=None, PYTHONPATH=str(root))

    def run_fork(script, *arguments, cwd=root):
        output = tmp_path_factory.mktemp("output")
        request = [str(root / script), arguments, str(cwd), str(output)]
        print(json.dumps(request), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        streams = [(output / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess([script, *arguments], status, *streams)

    yield run_fork
    server.communicate()
    assert server.returncode == 0


@pytest.fixture(scope="module")
def short_run(run, tmp_path_factory):
    """Workdir of two steps on the digits, with sections of its config from the command line."""
    folder = tmp_path_factory.mktemp("short") / "runs" / "short"
    sections = ["--config.optimizer.b1=0.5", "--config.optimizer={'name': 'adamw'}"]
    sections += ["--config.engine.workers=1", "--config.engine.name=streamed"]
    done = run("train.py", f"--workdir={folder}", "--config.duration=2 steps", *sections)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.eval.nope=1",
            "config.eval.nope: unknown field; expected apgd_steps",
        ),
        ("--config.seed=1", "config.seed: unknown field; expected dataset, eval"),
        ("--config.eval.pgd_steps=0", "config.eval.pgd_steps: must be in [1, 100000], got 0"),
        ("--config.eval.ood=digits", "config.eval.ood: must be another data set than the run's"),
        ("--checks=nope", "--checks: must be one of accuracy"),
        ("--checks=mc_dropout,distillation", "--checks: distillation needs a run with"),
        ("--checkpoint=7", "--checkpoint: "),
        ("--compare=nowhere", "--compare: must hold a run"),
    ],
)
def test_eval_refuses_bad_arguments_in_one_line(run_fork, short_run, argument, message):
    checks = [] if argument.startswith("--checks") else ["--checks=accuracy,ood"]
    done = run_fork("eval.py", f"--workdir={short_run}", *checks, argument)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.nope=1"],
            "config.nope: unknown field; expected accumulate, augment, batch_size",
        ),
        (
            ["--config.model.nope=1"],
            "config.model.nope: unknown field; expected depth",
        ),
        (["--config.batch_size=abc"], "flag --config.batch_size=abc: invalid literal"),
        (
            ["--config=nope.py"],
            "--config: must be a recipe card, there is no card or file 'nope.py'; all cards: ",
        ),
        (["--config", "imagenet"], "did you mean imagenet_resnet152? all cards: sdd-jax cards"),
        (["--config=digits:nope"], "unknown argument 'nope'; expected sd_dropout or ce"),
        (["--config"], "Missing value for flag --config"),
        (
            ["--config.model.name=lenet", "--config.model.filters=2"],
            "; for another entry: --config.model=\"{'name': 'lenet', 'filters': 2}\"",
        ),
        (["--noconfig.nope.flip"], "config.nope: unknown field; expected accumulate"),
        (["--distributed"], "--distributed: this is no cluster that JAX knows"),
        (["--coordinator_address=127.0.0.1"], "--coordinator_address: must be HOST:PORT, got"),
        (["--num_processes=2"], "--num_processes: needs --distributed or --coordinator_address"),
        (["--process_id=0"], "--process_id: needs --distributed or --coordinator_address"),
        (["--config=CARD:nope"], "unknown argument 'nope'; expected sd_dropout or ce"),
        (["--config.sd_dropout.rate=1"], "config.sd_dropout.rate: must be in [0, 1), got 1.0"),
        (["--config.dataset={'__class__': 1}"], "config"),
        (
            ["--config.model=resnet50"],
            "config.model: must be a dict such as {'name': 'NAME', 'OPTION': VALUE}, got 'resnet50'",
        ),
        (
            ["--config.model={'name': "],
            "config.model: must be a dict such as {'name': 'NAME', 'OPTION': VALUE}, got",
        ),
        (["--config.model={[]: 1}"], "--config.model={[]: 1}: unhashable type"),
        (["--config.model={'width': 32}"], "config.model.name: must be one of"),
        (
            ["--config.model.depth.x=1", "--config.model={'name': 'mlp'}"],
            "flag --config.model={'name': 'mlp', 'depth.x': 1}: ConfigDict does not accept dots",
        ),
        (
            ["--config.model={'name': 'lenet'}", "--config.model.depth=1"],
            "config.model.depth: 'lenet' has no such option",
        ),
        (
            ["--config.model.width=8", "--config.model=mlp"],
            "config.model: must be a dict such as {'name': 'NAME', 'OPTION': VALUE}",
        ),
        (["--nope"], "Unknown command line flag 'nope'"),
        (["nope"], "unexpected argument 'nope'"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(root, run_fork, tmp_path, arguments, message):
    arguments = [a.replace("CARD", str(root / "configs/digits.py")) for a in arguments]
    done = run_fork("train.py", f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("script", "platform", "message"),
    [
        pytest.param(
            "train.py", "cuda", "JAX cannot start 'cuda' on this machine",
            marks=pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="there is a GPU"),
        ),
        ("train.py", "tpu", "JAX cannot start 'tpu' on this machine"),
        ("eval.py", "nonsense", "Backend 'nonsense' is not in the list of known backends"),
    ],
)  # fmt: skip
def test_a_platform_that_is_not_there_is_one_line(run, tmp_path, script, platform, message):
    done = run(script, f"--workdir={tmp_path}/run", JAX_PLATFORMS=platform)
    assert done.returncode == 2
    assert done.stderr.startswith("error: JAX_PLATFORMS: JAX cannot start ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("script", "flag", "flags", "names"),
    [
        (
            "train.py",
            "-h",
            ["config", "workdir", "sweep", "trust_imports", "distributed", "coordinator_address"],
            [*cards.names(), *models.names(), *objectives.names()],
        ),
        (
            "eval.py",
            "--help",
            ["workdir", "checks", "compare", "checkpoint", "output", "config", "trust_imports"],
            checks.names(),
        ),
    ],
)
def test_help_fits_a_screen_and_has_the_own_flags_the_names_and_an_example(
    run_fork, flag, script, flags, names
):
    done = run_fork(script, flag)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"usage: python {script} ")
    assert lines[-2] == "example"
    assert lines[-1].startswith(f"  python {script} --")
    listed = [line.split()[0] for line in lines if line.startswith("  --")]
    assert {f"--{name}" for name in flags} <= {*listed}
    own = {name for name in names if "test" not in name}
    assert own <= {*done.stdout.replace(",", " ").split()}
    assert "pdb" not in done.stdout


def test_the_flags_of_absl_are_in_the_full_help(run_fork):
    done = run_fork("train.py", "--helpfull")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--workdir" in done.stdout
    assert "--[no]run_with_pdb" in done.stdout


def test_the_program_trains_and_evaluates_a_card_by_name_and_is_called_by_its_name(root, tmp_path):
    def sdd_jax(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "sdd_jax", *arguments],
            capture_output=True, text=True, timeout=300, cwd=tmp_path,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)},
        )  # fmt: skip

    done = sdd_jax("train", "--config", "digits:ce", "--config.duration=2 steps")
    assert (done.returncode, done.stderr) == (0, "")
    recorded = json.loads((tmp_path / "runs" / "digits-ce" / "config.json").read_text())["config"]
    assert recorded["sd_dropout"]["weight"] == 0
    done = sdd_jax("eval", "--workdir=runs/digits-ce")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: python -m sdd_jax train [" in sdd_jax("train", "-h").stdout


def test_ctrl_c_at_the_start_is_one_line(start, tmp_path):
    (tmp_path / "slow.py").write_text(
        "import sys, time\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    process = start("train.py", f"--config={tmp_path}/slow.py", cwd=tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "error: interrupted\n")


def test_sections_that_are_given_whole_or_by_name_and_fields_reach_the_programs(
    run, short_run, tmp_path
):
    recorded = json.loads((short_run / "config.json").read_text())["config"]
    assert (recorded["engine"]["name"], recorded["engine"]["workers"]) == ("streamed", 1)
    assert (recorded["optimizer"]["name"], recorded["optimizer"]["b1"]) == ("adamw", 0.5)
    options = ["--config.eval={'batch_size': 100}", "--config.eval.mc_samples=3"]
    arguments = [f"--workdir={short_run}", "--checks=mc_dropout", *options]
    done = run("eval.py", *arguments, f"--output={tmp_path}/results")
    assert done.returncode == 0, done.stderr
    names = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert "eval/mc_dropout/3/nll" in names
    assert not (short_run / "eval").exists()


def test_settings_without_effect_are_one_warning_each(run, tmp_path):
    options = ["--config.duration=4 steps", "--config.sd_dropout.rate=0.999999"]
    options += ["--config.schedule={'name': 'step', 'warmup': '100 epochs'}"]
    done = run("train.py", f"--workdir={tmp_path}", *options)
    assert done.returncode == 0, done.stderr
    fields = ("schedule.warmup", "schedule.milestones", "sd_dropout.rate")
    for line, field in zip(done.stderr.splitlines(), fields, strict=True):
        assert f"config.{field}: " in line


def test_the_compilation_cache_is_beside_the_output_of_an_evaluation(run, short_run, tmp_path):
    cache = short_run.parent / ".jax_cache"
    shutil.move(cache, tmp_path / "kept")
    done = run("eval.py", f"--workdir={short_run}", f"--output={tmp_path}/a/results")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / ".jax_cache").is_dir()
    assert not cache.exists()
    shutil.move(tmp_path / "kept", cache)


@pytest.mark.parametrize(
    ("script", "arguments", "field"),
    [
        ("train.py", ["--workdir=s3://bucket/run"], "--workdir"),
        ("eval.py", ["--workdir=s3://bucket/run"], "--workdir"),
        ("eval.py", ["--workdir=DEFAULT", "--output=file:///tmp/results"], "--output"),
    ],
)
def test_remote_paths_are_refused_before_a_folder_of_that_name_exists(
    run_fork, short_run, tmp_path, script, arguments, field
):
    arguments = [a.replace("DEFAULT", str(short_run)) for a in arguments]
    done = run_fork(script, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {field}: must be on a local or mounted disk, or gs://")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_python_files_of_a_run_are_executed_if_trusted(root, run, run_fork, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from sdd_jax.training.schedules import schedules\n"
        "@schedules.register('constant')\n"
        "def build(*, learning_rate): return lambda count: learning_rate\n"
    )
    options = [f"--config.imports={tmp_path}/mine.py", "--config.schedule={'name': 'constant'}"]
    options += ["--config.duration=2 steps", "--config.model.dropout_rate=0.1"]
    done = run("train.py", f"--workdir={tmp_path}/run", *options)
    assert done.returncode == 0, done.stderr
    student = [f"--config={root}/configs/distill_digits.py", f"--config.teacher={tmp_path}/run"]
    student += [f"--workdir={tmp_path}/student", "--config.duration=2 steps"]
    for command in (["eval.py", f"--workdir={tmp_path}/run"], ["train.py", *student]):
        refused = run_fork(*command)
        assert refused.returncode == 2, refused.stderr
        assert "--trust_imports" in refused.stderr
        done = run(*command, "--trust_imports")
        assert done.returncode == 0, done.stderr
