"""Fifty kills at random moments: none costs more than a checkpoint interval, or changes the outcome."""

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
# What is waited for, and for how many seconds at most after it: anything from the first import on; a new
# line of the log; a checkpoint that is being written, once for each of the first few after a start.
MOMENTS = (
    [("start", 6.0)] * 2 + [("line", 0.5)] * 3 + [("writing", 0.03)] * 3 + [("write 3", 0.03)] * 2
)


def await_moment(process, workdir, what, log):
    """Anything but the start is waited for from this process, not from the one killed before it."""
    if what == "start":
        return
    workdir.await_(process, lambda: resumed_after(log) is not None, "the end of its start")
    begun = resumed_after(log)
    if what == "write 3":
        workdir.await_checkpoint(process, begun + 2 * INTERVAL)
    else:
        workdir.await_line(process, begun + 1)
    if what != "line":
        workdir.await_writing(process)


def resumed_after(log):
    """The step after which a run went on, if it came as far as to say so."""
    text = log.read_text()
    if match := re.search(r"resuming after step (\d+)", text):
        return int(match[1])
    return 0 if f"; {STEPS} steps" in text else None


@pytest.mark.parametrize("kind", RUNS)
def test_killed_runs_lose_an_interval_at_most_and_end_as_if_nothing_had_been(
    programs, tiny, look, ends_like, count, tmp_path, kind
):
    arguments = (*tiny, *OPTIONS, *RUNS[kind])
    programs.finished(tmp_path / "whole", *arguments)
    path, log = tmp_path / "killed", tmp_path / "out"
    workdir, rng = look(path), random.Random()
    lost, writing, expected = [], 0, None
    moments = rng.sample(MOMENTS, KILLS)
    for what, seconds in moments:
        before, delay = workdir.unfinished, rng.uniform(0, seconds)
        with (
            log.open("w") as output,
            programs.started("train.py", f"--workdir={path}", *arguments, output=output) as process,
        ):
            await_moment(process, workdir, what, log)
            time.sleep(delay)
            assert process.poll() is None, f"ended before the kill {delay} s after {what}"
            process.kill()
            process.wait()
        said = resumed_after(log)
        if said is not None and expected is not None:
            assert said == expected
        expected = max(workdir.steps, default=0)
        lost.append(workdir.last_logged - expected)
        writing += bool(workdir.unfinished - before)  # an earlier kill's may still be there
        assert lost[-1] <= INTERVAL, (what, delay, workdir.last_logged, workdir.steps)
    done = programs.finished(path, *arguments)
    assert f"resuming after step {expected}" in done.stdout
    assert done.stderr == ""
    ends_like(path, tmp_path / "whole")
    count(
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
