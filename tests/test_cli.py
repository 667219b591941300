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

from sdd_jax.evaluate import evaluate_workdir

pytestmark = pytest.mark.slow


def command(root, script, *arguments):
    return [sys.executable, str(root / script), *map(str, arguments)]


def environment(devices=1):
    return os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}


def run(root, script, *arguments, devices=1, cwd=None):
    return subprocess.run(
        command(root, script, *arguments),
        capture_output=True, text=True, timeout=300, env=environment(devices), cwd=cwd,
    )  # fmt: skip


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def checksums(workdir):
    with ocp.CheckpointManager(workdir / "checkpoints", item_names=("state", "record")) as manager:
        step = manager.latest_step()
        arguments = ocp.args.Composite(record=ocp.args.JsonRestore())
        return step, manager.restore(step, args=arguments)["record"]["checksums"]


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


@pytest.mark.parametrize("engine", ["resident", "streamed"])
def test_two_processes_of_two_devices_match_one_process_and_stop_together(
    root, default_run, tmp_path, engine
):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [
        f"--workdir={tmp_path}",
        f"--config.engine={{'name': '{engine}'}}",
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
    log = tmp_path / "metrics.jsonl"
    while not (log.exists() and '"step": 60' in log.read_text()):
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.2)
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
    while "step 30/" not in process.stdout.readline():
        assert process.poll() is None
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
            "config.nope: unknown field; expected augment, batch_size",
        ),
        (
            ["--config.model.nope=1"],
            "config.model.nope: unknown field; expected depth",
        ),
        (["--config.batch_size=abc"], "flag --config.batch_size=abc: invalid literal"),
        (["--config=nope.py"], "--config: must be a recipe card, there is no file 'nope.py'"),
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
