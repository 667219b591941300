"""The command lines of train.py and eval.py."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from sdd_jax import __version__ as version
from sdd_jax import cards
from sdd_jax.evaluate import evaluate_workdir
from sdd_jax.evaluation.checks import checks
from sdd_jax.models import models
from sdd_jax.objectives import objectives

pytestmark = pytest.mark.slow


def command(root, script, *arguments):
    return [sys.executable, str(root / script), *map(str, arguments)]


def environment(devices=1):
    return os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}


def run(root, script, *arguments, devices=1, cwd=None, **variables):
    return subprocess.run(
        command(root, script, *arguments),
        capture_output=True, text=True, timeout=300, env=environment(devices) | variables, cwd=cwd,
    )  # fmt: skip


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def checksums(workdir):
    with ocp.CheckpointManager(workdir / "checkpoints", item_names=("state", "record")) as manager:
        step = manager.latest_step()
        arguments = ocp.args.Composite(record=ocp.args.JsonRestore())
        return step, manager.restore(step, args=arguments)["record"]["checksums"]


def wait_for_step(step, workdir, process):
    log = workdir / "metrics.jsonl"
    while not (log.exists() and f'"step": {step}' in log.read_text()):
        assert process.poll() is None
        time.sleep(0.1)


@pytest.fixture(scope="module")
def default_run(root, tmp_path_factory):
    """Workdir and process of ``python train.py`` without arguments, run outside the checkout."""
    folder = tmp_path_factory.mktemp("default")
    done = run(root, "train.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "digits", done


def test_the_default_run_learns_the_digits(default_run):
    workdir, done = default_run
    assert metrics(workdir)[-1]["eval/accuracy"] >= 0.95
    assert "is finished: step 1320" in done.stdout
    assert done.stderr == ""


def test_eval_reproduces_the_logged_accuracy(root, default_run):
    workdir, _ = default_run
    done = run(root, "eval.py", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    logged = metrics(workdir)[-1]["eval/accuracy"]
    assert json.loads((workdir / "eval/metrics.json").read_text())["eval/accuracy"] == logged
    row = next(line for line in done.stdout.splitlines() if line.startswith("accuracy, %"))
    assert row.split()[-1] == f"{100 * logged:.2f}"
    assert (workdir / "eval/report.html").is_file()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.eval.nope=1", "config.eval.nope: unknown field; expected batch_size"),
        ("--config.seed=1", "config.seed: unknown field; expected dataset, eval"),
        ("--config.eval.pgd_steps=0", "config.eval.pgd_steps: must be in [1, 100000], got 0"),
        ("--config.eval.ood=digits", "config.eval.ood: must be another data set than the run's"),
        ("--checks=nope", "--checks: must be one of accuracy"),
        ("--checks=mc_dropout,distillation", "--checks: distillation needs a run with"),
        ("--checkpoint=7", "--checkpoint: "),
        ("--compare=nowhere", "--compare: must hold a run"),
    ],
)
def test_eval_refuses_bad_arguments_in_one_line(root, default_run, argument, message):
    checks = [] if argument.startswith("--checks") else ["--checks=accuracy,ood"]
    done = run(root, "eval.py", f"--workdir={default_run[0]}", *checks, argument)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_four_devices_match_the_early_losses_and_final_accuracy_of_one(root, default_run, tmp_path):
    done = run(root, "train.py", f"--workdir={tmp_path}", devices=4)
    assert done.returncode == 0, done.stderr
    one, four = metrics(default_run[0]), metrics(tmp_path)
    compared = 0
    for a, b in zip(one, four, strict=True):
        if a["step"] <= 50:
            for name in ("train/loss", "train/cross_entropy", "train/sd_dropout"):
                np.testing.assert_allclose(a[name], b[name], rtol=1e-4)
                compared += 1
    assert compared == 15
    assert abs(one[-1]["eval/accuracy"] - four[-1]["eval/accuracy"]) <= 0.01


@pytest.mark.parametrize(("engine", "parallel"), [("resident", "shard_map"), ("streamed", "pmap")])
def test_two_processes_of_two_devices_match_one_process_and_stop_together(
    root, default_run, tmp_path, engine, parallel
):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [
        f"--workdir={tmp_path}",
        f"--config.engine={{'name': '{engine}'}}",
        f"--config.parallel={parallel}",
        "--config.eval_every=50 steps",
        "--config.checkpoint_every=50 steps",
        f"--coordinator_address=127.0.0.1:{port}",
        "--num_processes=2",
    ]
    processes = [
        subprocess.Popen(
            command(root, "train.py", *options, f"--process_id={i}"),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(2),
        )
        for i in range(2)
    ]  # fmt: skip
    wait_for_step(60, tmp_path, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], errors
    early = [line for line in metrics(default_run[0]) if line["step"] <= 50]
    assert len(early) == 5
    for one, two in zip(early, metrics(tmp_path), strict=False):
        assert one["step"] == two["step"]
        np.testing.assert_allclose(one["train/loss"], two["train/loss"], rtol=1e-4)
    logged = metrics(tmp_path)[4]
    expected = evaluate_workdir(str(tmp_path), ["accuracy"], checkpoint="50")
    assert logged["step"] == expected["step"] == 50
    for name in ("eval/accuracy", "eval/nll", "eval/ece"):
        np.testing.assert_allclose(logged[name], expected[name], rtol=1e-4)


def test_sigterm_saves_and_the_same_command_resumes_on_more_devices(root, tmp_path):
    process = subprocess.Popen(
        command(root, "train.py", f"--workdir={tmp_path}", "--config.duration=120 epochs"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    wait_for_step(30, tmp_path, process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    step, _ = checksums(tmp_path)
    assert f"stopped after step {step}, which is saved" in error
    done = run(root, "train.py", f"--workdir={tmp_path}", "--config.duration=120 epochs", devices=4)
    assert done.returncode == 0, done.stderr
    assert f"4 cpu device(s); resuming after step {step}" in done.stdout
    assert metrics(tmp_path)[-1]["step"] == 2640
    assert metrics(tmp_path)[-1]["eval/accuracy"] >= 0.95


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
def test_bad_input_gets_one_line_and_status_2(root, tmp_path, arguments, message):
    arguments = [a.replace("CARD", str(root / "configs/digits.py")) for a in arguments]
    done = run(root, "train.py", f"--workdir={tmp_path / 'run'}", *arguments)
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
def test_a_platform_that_is_not_there_is_one_line(root, tmp_path, script, platform, message):
    done = run(root, script, f"--workdir={tmp_path}/run", JAX_PLATFORMS=platform)
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
    root, flag, script, flags, names
):
    done = run(root, script, flag)
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


def test_the_flags_of_absl_are_in_the_full_help(root):
    done = run(root, "train.py", "--helpfull")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--workdir" in done.stdout
    assert "--[no]run_with_pdb" in done.stdout


def test_the_program_trains_and_evaluates_a_card_by_name_and_is_called_by_its_name(root, tmp_path):
    def sdd_jax(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "sdd_jax", *arguments],
            capture_output=True, text=True, timeout=300, cwd=tmp_path,
            env=environment() | {"PYTHONPATH": str(root)},
        )  # fmt: skip

    done = sdd_jax("train", "--config", "digits:ce", "--config.duration=2 steps")
    assert (done.returncode, done.stderr) == (0, "")
    recorded = json.loads((tmp_path / "runs" / "digits-ce" / "config.json").read_text())["config"]
    assert recorded["sd_dropout"]["weight"] == 0
    done = sdd_jax("eval", "--workdir=runs/digits-ce")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: python -m sdd_jax train [" in sdd_jax("train", "-h").stdout
    usage = sdd_jax()
    assert (usage.returncode, usage.stderr) == (0, "")
    assert max(map(len, usage.stdout.splitlines())) <= 80
    assert sdd_jax("--version").stdout == f"sdd_jax {version}\n"
    unknown = sdd_jax("fit")
    assert unknown.returncode == 2
    assert unknown.stderr == (
        "error: python -m sdd_jax: there is no command 'fit'; expected train, eval, compile or cards\n"
    )


def test_an_entry_can_be_selected_by_its_name_and_fields(root, tmp_path):
    engine = ["--config.engine.workers=1", "--config.engine.name=streamed"]
    done = run(root, "train.py", f"--workdir={tmp_path}/run", "--config.duration=2 steps", *engine)
    assert (done.returncode, done.stderr) == (0, "")
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (recorded["engine"]["name"], recorded["engine"]["workers"]) == ("streamed", 1)


def test_ctrl_c_saves_and_exits_130(root, tmp_path):
    process = subprocess.Popen(
        command(root, "train.py", f"--workdir={tmp_path}", "--config.duration=1000 epochs"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    wait_for_step(30, tmp_path, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    step, _ = checksums(tmp_path)
    assert error == f"stopped after step {step}, which is saved; the same command resumes\n"


def test_ctrl_c_at_the_start_is_one_line(root, tmp_path):
    (tmp_path / "slow.py").write_text(
        "import sys, time\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        command(root, "train.py", f"--config={tmp_path}/slow.py"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "error: interrupted\n")


def test_fields_of_a_section_that_is_given_whole_reach_the_programs(root, tmp_path):
    engine = ["--config.engine.workers=1", "--config.engine={'name': 'streamed'}"]
    done = run(root, "train.py", f"--workdir={tmp_path}/run", "--config.duration=2 steps", *engine)
    assert done.returncode == 0, done.stderr
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (recorded["engine"]["name"], recorded["engine"]["workers"]) == ("streamed", 1)
    options = ["--config.eval={'batch_size': 100}", "--config.eval.mc_samples=3"]
    arguments = [f"--workdir={tmp_path}/run", "--checks=mc_dropout", *options]
    done = run(root, "eval.py", *arguments, f"--output={tmp_path}/results")
    assert done.returncode == 0, done.stderr
    names = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert "eval/mc_dropout/3/nll" in names
    assert not (tmp_path / "run" / "eval").exists()


def test_settings_without_effect_are_one_warning_each(root, tmp_path):
    options = ["--config.duration=4 steps", "--config.sd_dropout.rate=0.999999"]
    options += ["--config.schedule={'name': 'step', 'warmup': '100 epochs'}"]
    done = run(root, "train.py", f"--workdir={tmp_path}", *options)
    assert done.returncode == 0, done.stderr
    fields = ("schedule.warmup", "schedule.milestones", "sd_dropout.rate")
    for line, field in zip(done.stderr.splitlines(), fields, strict=True):
        assert f"config.{field}: " in line


def test_the_compilation_cache_is_beside_the_output_of_an_evaluation(root, default_run, tmp_path):
    cache = default_run[0].parent / ".jax_cache"
    shutil.move(cache, tmp_path / "kept")
    done = run(root, "eval.py", f"--workdir={default_run[0]}", f"--output={tmp_path}/a/results")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / ".jax_cache").is_dir()
    assert not cache.exists()
    shutil.move(tmp_path / "kept", cache)


@pytest.mark.parametrize(
    ("script", "arguments", "field"),
    [
        ("train.py", ["--workdir=gs://bucket/run"], "--workdir"),
        ("eval.py", ["--workdir=s3://bucket/run"], "--workdir"),
        ("eval.py", ["--workdir=DEFAULT", "--output=file:///tmp/results"], "--output"),
    ],
)
def test_remote_paths_are_refused_before_a_folder_of_that_name_exists(
    root, default_run, tmp_path, script, arguments, field
):
    arguments = [a.replace("DEFAULT", str(default_run[0])) for a in arguments]
    done = run(root, script, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {field}: must be on a local or mounted disk, got ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_python_files_of_a_run_are_executed_if_trusted(root, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from sdd_jax.training.schedules import schedules\n"
        "@schedules.register('constant')\n"
        "def build(*, learning_rate): return lambda count: learning_rate\n"
    )
    options = [f"--config.imports={tmp_path}/mine.py", "--config.schedule={'name': 'constant'}"]
    options += ["--config.duration=2 steps", "--config.model.dropout_rate=0.1"]
    done = run(root, "train.py", f"--workdir={tmp_path}/run", *options)
    assert done.returncode == 0, done.stderr
    student = [f"--config={root}/configs/distill_digits.py", f"--config.teacher={tmp_path}/run"]
    student += [f"--workdir={tmp_path}/student", "--config.duration=2 steps"]
    for command in (["eval.py", f"--workdir={tmp_path}/run"], ["train.py", *student]):
        refused = run(root, *command)
        assert refused.returncode == 2, refused.stderr
        assert "--trust_imports" in refused.stderr
        done = run(root, *command, "--trust_imports")
        assert done.returncode == 0, done.stderr
