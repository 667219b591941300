"""Runs whose imported files are edited, lost or exchanged."""

import hashlib
import shutil

SOURCE = """
from sdd_jax.training.schedules import schedules

@schedules.register("own")
def own(*, learning_rate): return lambda step: {rate}
"""


def test_a_run_needs_no_file_but_its_copies(programs, tiny, refused, tmp_path):
    original, folder = tmp_path / "own.py", tmp_path / "run"
    original.write_text(SOURCE.format(rate="learning_rate"))
    options = [*tiny, "--config.duration=4 steps", "--config.model.dropout_rate=0.1"]
    options += [f"--config.imports={original}", "--config.schedule={'name': 'own'}"]
    programs.finished(folder, *options)

    original.write_text(SOURCE.format(rate="2 * learning_rate"))
    done = programs.train(folder, *options)
    refused(2, done.returncode, done.stderr, f"config.imports: {original} has changed")
    original.unlink()
    longer = [*options, "--config.duration=6 steps"]
    done = programs.train(folder, *longer)
    refused(2, done.returncode, done.stderr, f"no file {original}", "--trust_imports")
    programs.finished(folder, *longer, "--trust_imports")

    moved = shutil.move(folder, tmp_path / "moved")
    copy = moved / "imports" / "own.py"
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    student = ("--config.duration=2 steps", f"--config.teacher={moved}")
    student += ("--config.objective={'name': 'distill'}", "--config.sd_dropout.weight=0")
    commands = [
        ("eval.py", f"--workdir={moved}", "--checks=accuracy"),
        ("train.py", *tiny, f"--workdir={tmp_path / 'student'}", *student),
    ]
    for command in commands:
        done = programs.run(*command)
        refused(2, done.returncode, done.stderr, f"{copy}, SHA-256 {digest}", "--trust_imports")
        done = programs.run(*command, "--trust_imports")
        assert done.returncode == 0, done.stderr

    copy.write_text(SOURCE.format(rate="0"))
    for command in commands:
        done = programs.run(*command, "--trust_imports")
        refused(2, done.returncode, done.stderr, f"{copy} must be the file", digest)
