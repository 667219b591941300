"""The default run: what it learns on one device, on several and in several processes; how it stops."""

import json
import signal
import socket
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from sdd_jax.evaluate import evaluate_workdir

pytestmark = pytest.mark.slow


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
def default_run(run, tmp_path_factory):
    """Workdir and process of ``python train.py`` without arguments, run outside the checkout."""
    folder = tmp_path_factory.mktemp("default")
    done = run("train.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "digits", done


def test_the_default_run_learns_the_digits(default_run):
    workdir, done = default_run
    assert metrics(workdir)[-1]["eval/accuracy"] >= 0.95
    assert "is finished: step 1320" in done.stdout
    assert done.stderr == ""


def test_eval_reproduces_the_logged_accuracy(run, default_run):
    workdir, _ = default_run
    done = run("eval.py", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    logged = metrics(workdir)[-1]["eval/accuracy"]
    assert json.loads((workdir / "eval/metrics.json").read_text())["eval/accuracy"] == logged
    row = next(line for line in done.stdout.splitlines() if line.startswith("accuracy, %"))
    assert row.split()[2] == f"{100 * logged:.2f}"  # after "accuracy, %", before the interval
    assert (workdir / "eval/report.html").is_file()


def test_four_devices_match_the_early_losses_and_final_accuracy_of_one(run, default_run, tmp_path):
    done = run("train.py", f"--workdir={tmp_path}", devices=4)
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
    start, default_run, tmp_path, engine, parallel
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
    processes = [start("train.py", *options, f"--process_id={i}", devices=2) for i in range(2)]
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


def test_sigterm_saves_and_the_same_command_resumes_on_more_devices(start, run, tmp_path):
    options = (f"--workdir={tmp_path}", "--config.duration=120 epochs")
    process = start("train.py", *options)
    wait_for_step(30, tmp_path, process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    step, _ = checksums(tmp_path)
    assert f"stopped after step {step}, which is saved" in error
    done = run("train.py", *options, devices=4)
    assert done.returncode == 0, done.stderr
    assert f"4 cpu device(s); resuming after step {step}" in done.stdout
    assert metrics(tmp_path)[-1]["step"] == 2640
    assert metrics(tmp_path)[-1]["eval/accuracy"] >= 0.95


def test_ctrl_c_saves_and_exits_130(start, tmp_path):
    process = start("train.py", f"--workdir={tmp_path}", "--config.duration=1000 epochs")
    wait_for_step(30, tmp_path, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    step, _ = checksums(tmp_path)
    assert error == f"stopped after step {step}, which is saved; the same command resumes\n"
