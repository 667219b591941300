"""The log of a run, on a terminal, through a pipe, and in metrics.jsonl."""

import io
import re
import sys

import pytest

from sdd_jax.runs import MetricsLog, read_metrics

TRAINING = {"train/loss": 0.5, "train/accuracy": 0.9, "train/cross_entropy": 0.4}
SPEED = {"images_per_second": 12345.6}
EVALUATION = {"eval/accuracy": 0.9722, "eval/nll": 0.09876, "eval/ece": 0.0432, "eval/brier": 0.05}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes standard error a terminal of 100 columns, and returns it."""

    def install():  # in the test itself: pytest's capture replaces the streams after the fixtures
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setenv("COLUMNS", "100")
        return sys.stderr

    return install


def train(workdir, *, start=0, total=1000, log_every=5, evaluations=()):
    """Writes the log of a run; 10 steps per epoch."""
    log = MetricsLog(workdir, start=start, total=total, steps_per_epoch=10)
    for step in range(start + log_every, total + 1, log_every):
        log.advance(step)
        log.write(step, TRAINING | SPEED | (EVALUATION if step in evaluations else {}))
    log.close()


def test_a_pipe_gets_the_first_line_each_tenth_of_the_run_and_each_evaluation(tmp_path, capsys):
    train(tmp_path, evaluations=(250, 1000))
    out, err = capsys.readouterr()
    steps = [int(step) for step in re.findall(r"^step (\d+)/1000 ", out, re.MULTILINE)]
    assert steps == [5, 100, 200, 250, 300, 400, 500, 600, 700, 800, 900, 1000]
    assert err == ""
    lines = out.splitlines()
    assert lines[1] == (
        "step 100/1000  epoch 10  loss 0.5  training accuracy 90.00 %  12,346 images/s"
    )
    assert lines[3] == (
        "step 250/1000  epoch 25  loss 0.5  test accuracy 97.22 %, NLL 0.0988, ECE 4.3 %  "
        "12,346 images/s"
    )


def test_every_line_of_the_record_is_written_whatever_is_shown(tmp_path):
    train(tmp_path, evaluations=(250,))
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(5, 1001, 5))
    assert lines[49] == {"step": 250, "epoch": 25.0} | TRAINING | SPEED | EVALUATION


def test_a_resumed_run_counts_the_tenths_from_where_it_resumes(tmp_path, capsys):
    train(tmp_path, start=250, total=500)
    steps = re.findall(r"^step (\d+)/", capsys.readouterr().out, re.MULTILINE)
    assert steps == ["255", "300", "350", "400", "450", "500"]


def test_a_line_with_validation_and_test_figures_has_both(tmp_path, capsys):
    log = MetricsLog(tmp_path, start=0, total=10, steps_per_epoch=10)
    validation = {name.replace("eval/", "validation/"): x for name, x in EVALUATION.items()}
    log.write(10, TRAINING | validation | EVALUATION)
    log.close()
    figures = "accuracy 97.22 %, NLL 0.0988, ECE 4.3 %"
    assert capsys.readouterr().out == (
        f"step 10/10  epoch 1  loss 0.5  validation {figures}  test {figures}\n"
    )


def test_a_terminal_has_one_live_line_and_a_line_per_evaluation(tmp_path, capsys, terminal):
    shown = terminal()
    train(tmp_path, evaluations=(250, 1000))
    out = capsys.readouterr().out
    assert re.findall(r"^step (\d+)/1000 ", out, re.MULTILINE) == ["250", "1000"]
    live = [text for text in shown.getvalue().split("\r") if text.strip()]
    assert max(map(len, live)) <= 100
    assert re.fullmatch(
        r"100% \S+ 1000/1000 steps, \S+ left, loss 0\.5, accuracy 90\.0 %, 12,346 images/s",
        live[-1].strip(),
    )
    assert shown.getvalue().endswith("\r")  # the line is gone when the run ends


def test_the_live_line_moves_between_two_lines_of_the_record(tmp_path, terminal):
    shown = terminal()
    log = MetricsLog(tmp_path, start=0, total=10, steps_per_epoch=10)
    log.write(1, TRAINING)
    log.advance(5)
    log.say("a line above")
    log.close()
    assert " 5/10 steps" in shown.getvalue()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
