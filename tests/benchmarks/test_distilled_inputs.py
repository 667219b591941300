"""Students of different inputs, beside their teacher and its ensemble."""

import json
import sys

import pytest

from benchmarks import distilled_inputs, measure
from sdd_jax.runs import read_metrics
from sdd_jax.train import train_and_evaluate


@pytest.mark.slow
def test_students_stand_beside_their_teacher_on_both_kinds_of_images(tmp_path, monkeypatch):
    teacher = measure.load_card("configs/distill_digits.py:teacher")
    teacher.duration = "8 epochs"
    train_and_evaluate(teacher, str(tmp_path / "teacher"))
    for inputs in ("train", "perturbed"):
        student = measure.load_card("configs/distill_digits.py")
        student.update(teacher=str(tmp_path / "teacher"), inputs=inputs, duration="4 epochs")
        train_and_evaluate(student, str(tmp_path / inputs))
    output = tmp_path / "result.json"
    runs = f"{tmp_path}/train,{tmp_path}/perturbed"
    monkeypatch.setattr(sys, "argv", ["", "--runs", runs, "--masks=30", f"--output={output}"])
    distilled_inputs.main()
    results = json.loads(output.read_text())["results"]
    for networks in results.values():
        assert networks["MC"]["kl"] == 0
        for inputs in ("train", "perturbed"):
            assert 0 < networks[f"student, inputs {inputs}"]["kl"] < networks["Standard"]["kl"]
    plain, perturbed = (results[f"test, {images}"] for images in ("as they are", "perturbed"))
    assert perturbed["MC"]["error"] > plain["MC"]["error"]
    for name, folder in {"Standard": "teacher", "student, inputs train": "train"}.items():
        accuracy = read_metrics(tmp_path / folder)[-1]["eval/accuracy"]  # of the 360 test images
        assert plain[name]["error"] == pytest.approx(100 * (1 - accuracy), abs=0.01)
