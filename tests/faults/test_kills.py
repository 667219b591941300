"""Fifty kills at random moments: each loses at most one checkpoint interval and no result changes."""

import random
import re
import time

import pytest

INTERVAL, STEPS = 10, 600
OPTIONS = (
    f"--config.duration={STEPS} steps",
    "--config.eval_every=60 steps",
    f"--config.checkpoint_every={INTERVAL} steps",
)
RUNS = {
    "resident": (),
    "streamed": ("--config.engine={'name': 'streamed', 'workers': 2}",),
    "validation": ("--config.dataset.validation=0.1",),
    "memory": ("--config.objective={'name': 'dlb'}",),
    "several steps a call": ("--config.steps_per_call=3",),
}
KILLS = 10
# Event to wait for and maximum delay of the kill in seconds: process start; a new log line; the first
# checkpoint write after a start, and the third.
MOMENTS = (
    [("start", 6.0)] * 2 + [("line", 0.5)] * 3 + [("writing", 0.03)] * 3 + [("write 3", 0.03)] * 2
)


def await_moment(process, workdir, event, log):
    """Waits for an event of this process, not of the one killed before it."""
    if event == "start":
        return
    workdir.await_(process, lambda: resumed_after(log) is not None, "the end of startup")
    start = resumed_after(log)
    if event == "write 3":
        workdir.await_checkpoint(process, start + 2 * INTERVAL)
    else:
        workdir.await_line(process, start + 1)
    if event != "line":
        workdir.await_writing(process)


def resumed_after(log):
    """Step after which a run resumed (0 for a new run), or None if it has not started training."""
    text = log.read_text()
    if match := re.search(r"resuming after step (\d+)", text):
        return int(match[1])
    return 0 if f"; {STEPS} steps" in text else None


@pytest.mark.parametrize("kind", RUNS)
def test_killed_runs_lose_at_most_one_interval_and_end_like_an_uninterrupted_run(
    programs, tiny, inspect, ends_like, report, tmp_path, kind
):
    arguments = (*tiny, *OPTIONS, *RUNS[kind])
    programs.finished(tmp_path / "whole", *arguments)
    path, log = tmp_path / "killed", tmp_path / "out"
    workdir, rng = inspect(path), random.Random()
    lost, writing, expected = [], 0, None
    moments = rng.sample(MOMENTS, KILLS)
    for event, seconds in moments:
        before, delay = workdir.unfinished, rng.uniform(0, seconds)
        with (
            log.open("w") as output,
            programs.started("train.py", f"--workdir={path}", *arguments, output=output) as process,
        ):
            await_moment(process, workdir, event, log)
            time.sleep(delay)
            assert process.poll() is None, f"ended before the kill {delay} s after {event}"
            process.kill()
            process.wait()
        resumed = resumed_after(log)
        if resumed is not None and expected is not None:
            assert resumed == expected
        expected = max(workdir.steps, default=0)
        lost.append(workdir.last_logged - expected)
        writing += bool(workdir.unfinished - before)  # not one left by an earlier kill
        assert lost[-1] <= INTERVAL, (event, delay, workdir.last_logged, workdir.steps)
    done = programs.finished(path, *arguments)
    # A kill after the last checkpoint leaves a finished run.
    assert expected == STEPS or f"resuming after step {expected}" in done.stdout
    assert done.stderr == ""
    ends_like(path, tmp_path / "whole")
    report(
        "kills",
        kind,
        {
            "kills": len(moments),
            "while_writing": writing,
            "interval": INTERVAL,
            "most_steps_lost": max(lost),
            "identical": True,
        },
    )
