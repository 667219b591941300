"""Programs compiled for chips that are not there: shapes, memory, collectives and the command line."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import tables, tpu
from sdd_jax import cards, compile_only, hlo
from sdd_jax.compile_only import DoesNotFit, Report, Topology, compile_for, largest_batch
from sdd_jax.config import complete, record
from sdd_jax.data.engines import engines
from sdd_jax.data.sources import sources
from sdd_jax.devices import compiling_for, mapped, platform
from sdd_jax.errors import Failure, InputError
from sdd_jax.experiment import load_experiment
from sdd_jax.models import models
from sdd_jax.objectives import objectives

DIGITS = "1437x8x8x1:10"
REPORT = Report(
    topology="v5e:2x2",
    chips=4,
    hosts=1,
    batch_size=1024,
    steps_per_call=100,
    does_not_fit=(4096, 2048),
    memory_bytes=16 * 2**30,
    flops=93.1e9,
    bytes_accessed=3.65e9,
    argument_bytes=245 * 2**20,
    temporary_bytes=777 * 2**20,
    peak_bytes=2**30,
    collectives={"all-reduce": {"count": 35, "bytes": 43 * 2**20}},
    scan=True,
    other_loops=["gather"],
    compile_seconds=61.2,
)
# Instructions as the TPU compiler writes them.
HLO = """\
ENTRY %main {
  %psum.1 = f32[2,64]{1,0:T(2,128)S(1)} all-reduce(%fusion.46), channel_id=1, to_apply=%region_3
  %all-reduce.9 = (f32[64]{0:T(128)S(1)}, /*index=1*/bf16[3,3,64,64]{3,2,1,0:T(8,128)}, f32[]{:T(128)})\
 all-reduce(%a, %b, %c), to_apply=%region_4
  %get-tuple-element.1 = f32[64]{0} get-tuple-element(%all-reduce.9), metadata={op_name="a/psum"}
  %all-gather-start.1 = (s32[8]{0}, s32[32]{0}) all-gather-start(%x), dimensions={0}
  ROOT %all-gather-done.1 = s32[32]{0} all-gather-done(%all-gather-start.1)
  %gathered.2 = pred[4,10]{1,0} all-gather(%y), dimensions={0}
  %while.3 = (s32[]{:T(128)}, u8[16,10]{1,0}) while(%t), condition=%c, body=%b,\
 metadata={op_name="jit(f)/while/body/closed_call/vmap()/gather" stack_frame_id=163}
  %while.4 = (s32[]{:T(128)}) while(%t), condition=%c, body=%b,\
 metadata={op_name="jit(f)/shard_map/while" stack_frame_id=66}
}
"""


@pytest.fixture
def cpus():
    """The four CPU devices of the tests, as a topology."""
    return Topology("cpu:4", jax.devices(), 16 * 2**30)


def test_collectives_count_results_once_and_asynchronous_ones_where_they_end():
    assert hlo.collectives(HLO) == {
        "all-reduce": {"count": 2, "bytes": 2 * 64 * 4 + 64 * 4 + 9 * 64 * 64 * 2 + 4},
        "all-gather": {"count": 2, "bytes": 32 * 4 + 4 * 10},
    }


def test_the_scan_of_steps_is_told_from_loops_that_the_compiler_made():
    assert hlo.has_scan(HLO)
    assert hlo.other_loops(HLO) == ["gather"]
    unrolled = "\n".join(line for line in HLO.splitlines() if "while.4" not in line)
    assert not hlo.has_scan(unrolled)


def test_the_collectives_of_a_real_program_are_found():
    def f(x):
        return jax.lax.psum(x, "batch"), jax.lax.all_gather(x, "batch")

    text = mapped(f, in_axes=(0,)).lower(np.zeros((4, 6), np.float32)).compile().as_text()
    assert hlo.collectives(text)["all-reduce"] == {"count": 1, "bytes": 6 * 4}
    assert hlo.collectives(text)["all-gather"] == {"count": 1, "bytes": 4 * 6 * 4}


@pytest.mark.parametrize(
    ("fitting", "expected", "too_large"), [(4096, 4096, []), (1500, 1024, [4096, 2048])]
)
def test_the_batch_is_halved_until_it_fits(fitting, expected, too_large):
    def attempt(batch_size):
        if batch_size > fitting:
            raise DoesNotFit("used 20G of 15.75G")
        return dataclasses.replace(REPORT, batch_size=batch_size)

    report, tried = largest_batch(attempt, 4096, 64)
    assert (report.batch_size, tried) == (expected, too_large)


def test_without_a_batch_that_fits_all_that_were_tried_are_named():
    def attempt(batch_size):
        raise DoesNotFit("used 20G of 15.75G")

    with pytest.raises(DoesNotFit, match="no batch fits, of 24, 12: used 20G of 15.75G"):
        largest_batch(attempt, 24, 4)


def test_the_table_has_a_column_for_each_topology():
    pod = dataclasses.replace(
        REPORT,
        topology="v5e:8x8",
        chips=64,
        hosts=16,
        does_not_fit=(),
        collectives={},
        other_loops=[],
    )
    table = compile_only.table({"v5e:2x2": REPORT, "v5e:8x8": pod})
    rows = {line[:40].strip(): line[40:].split("  ") for line in table.splitlines()}
    cells = {label: [cell.strip() for cell in row if cell.strip()] for label, row in rows.items()}
    assert cells["chips and hosts"] == ["4 and 1", "64 and 16"]
    assert cells["global batch size"] == ["1024, 4096 and 2048 do not fit", "1024"]
    assert cells["batch size of a chip"] == ["256", "16"]
    assert cells["steps per dispatch"] == ["100 in a loop"] * 2
    assert cells["peak, GiB"] == ["1.00 of 16, fits"] * 2
    assert cells["all-reduce per step"] == ["35, 43.00 MiB", "0"]
    values = compile_only.outcome_values({"a": REPORT, "b": Failure("no")})
    assert (values["a"]["flops"], values["b"]) == (93.1e9, {"error": "no"})


@pytest.mark.parametrize(
    "name", ["v4:2x2", "v5e", "v5e:2", "v5e:2x2x2", "v5e:32x32", "v5p:2x2", "v6e:0x4"]
)
def test_an_unknown_topology_is_refused_with_what_is_allowed(name):
    with pytest.raises(InputError, match="--topology: must be v5e:RxC or v6e:RxC of at most 256"):
        compile_only.find_topology(name)


def test_without_libtpu_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Failure, match=r"compile needs pip install .*\[tpu\]"):
        compile_only.find_topology("v5e:2x2")


def test_programs_are_built_for_the_devices_in_use_and_then_for_those_of_the_job(tiny_config):
    class Chip:
        platform = "tpu"

    with compiling_for([Chip()]):
        assert platform() == "tpu"
        assert load_experiment(tiny_config).steps_per_call == 100
    assert platform() == "cpu"
    assert load_experiment(tiny_config).steps_per_call == 1


@pytest.mark.parametrize("engine", ["resident", "streamed"])
@pytest.mark.parametrize("objective", ["cross_entropy", "cs_kd", "ps_kd"])
def test_the_arguments_have_the_shapes_of_those_that_train(tiny_config, engine, objective):
    tiny_config.engine = engines.options(engine)
    tiny_config.objective = objectives.options(objective)
    tiny_config.steps_per_call = 3
    experiment = load_experiment(tiny_config)
    state, inputs, resident, constants = compile_only.abstract_arguments(experiment, 4)
    real = experiment.engine.inputs(0, 3)
    experiment.engine.close()

    def shapes(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    assert shapes(inputs) == shapes(real)
    assert shapes(resident) == shapes(experiment.engine.resident)
    assert shapes(state) == shapes(experiment.create_state())
    assert constants is None


def test_black_images_give_the_program_of_the_real_ones(tiny_config, cpus):
    real = compile_for(tiny_config, cpus)
    black = compile_for(tiny_config, cpus, data=DIGITS)
    figures = ("flops", "argument_bytes", "temporary_bytes", "collectives", "batch_size")
    assert [getattr(real, name) for name in figures] == [getattr(black, name) for name in figures]
    assert real.collectives["all-reduce"]["count"] >= 1
    parameters = 64 * 16 + 16 + 16 * 10 + 10
    assert real.collectives["all-reduce"]["bytes"] >= 4 * parameters
    assert real.argument_bytes > 1437 * 64 + 2 * 4 * parameters  # images; parameters and momentum
    assert (real.chips, real.hosts, real.scan) == (4, 1, None)


def test_a_student_needs_neither_the_images_nor_a_trained_teacher(tiny_config, cpus, tmp_path):
    tiny_config.model = models.options("mlp", width=16, depth=1, dropout_rate=0.5)
    alone = compile_for(tiny_config, cpus, data=DIGITS)
    tiny_config.model.width = 32
    run = load_experiment(tiny_config)
    record(tmp_path, run.config, run.facts())
    tiny_config.model.width = 16
    tiny_config.objective = objectives.options("distill", divergence="brier")
    tiny_config.inputs = "perturbed"
    for teacher, width in ((tmp_path / "absent", 16), (tmp_path, 32)):
        tiny_config.teacher = str(teacher)
        student = compile_for(tiny_config, cpus, data=DIGITS)
        added = 4 * (64 * width + width + width * 10 + 10)
        labels = 4 * 1437  # which the student does not read
        assert student.argument_bytes - alone.argument_bytes == added - labels


def test_a_student_of_several_teachers_with_a_second_head(tiny_config, cpus, tmp_path):
    tiny_config.model = models.options("mlp", width=16, depth=1, dropout_rate=0.5)
    tiny_config.objective = objectives.options("distill")
    tiny_config.teacher = str(tmp_path / "one")
    alone = compile_for(tiny_config, cpus, data=DIGITS)
    tiny_config.model.spread = "two_heads"
    tiny_config.objective = objectives.options("distill_two_heads")
    tiny_config.teacher = f"{tmp_path / 'one'},{tmp_path / 'two'}"
    student = compile_for(tiny_config, cpus, data=DIGITS)
    head, teacher = 16 + 1, 64 * 16 + 16 + 16 * 10 + 10  # parameters; the head also has momentum
    added = student.argument_bytes - alone.argument_bytes
    assert added == 4 * (2 * head + teacher)


def test_every_card_states_the_shapes_of_its_images(root):
    from benchmarks.measure import load_card

    for name in cards.names():
        config = compile_only.without_data(complete(load_card(f"configs/{name}.py")))
        source, _, shapes = config.dataset.name.partition(":")
        assert source in ("blank", "digits", "scenes"), name
        if source == "blank":
            arrays, classes = sources.get("blank")(argument=shapes)
            assert len(arrays["test_labels"]) == classes
            if arrays["train_labels"].ndim == 1:
                assert len(np.unique(arrays["train_labels"])) == classes


@pytest.mark.parametrize("shapes", ["8x8", "0x8x8x1:10", "9x8x8x2:10", "9x8x8x1:0", "9x8x8x1:5:0"])
def test_shapes_of_images_are_checked(tiny_config, cpus, shapes):
    with pytest.raises(InputError, match="--data: must be NxHxWxC:K"):
        compile_for(tiny_config, cpus, data=shapes)


def test_unknown_data_that_are_not_there_name_the_flag(tiny_config, cpus, tmp_path):
    tiny_config.dataset.name = f"npz:{tmp_path / 'none.npz'}"
    with pytest.raises(InputError, match="config.dataset.name: there is no file.*--data=NxHxWxC:K"):
        compile_for(tiny_config, cpus)


def test_a_batch_that_the_chips_cannot_share_is_refused(tiny_config, cpus):
    tiny_config.batch_size = 90
    with pytest.raises(
        InputError, match="config.batch_size: must be a multiple of the 4 devices, got 90"
    ):
        compile_for(tiny_config, cpus)


def test_resident_data_beyond_the_memory_of_a_chip_are_refused_before_compilation(
    tiny_config, cpus
):
    small = dataclasses.replace(cpus, memory=90_000)
    with pytest.raises(
        Failure, match=r"the resident data .*--config.engine.name=streamed"
    ) as error:
        compile_for(tiny_config, small)
    assert not isinstance(error.value, DoesNotFit)


def test_the_benchmark_gives_a_chip_of_a_slice_the_examples_of_one_of_four():
    few, many = (dict(tpu.recipes(times)) for times in (1, 16))
    assert few.keys() == {*cards.names()}
    assert many.keys() - few.keys() == {"imagenet_resnet152, LARS"}
    assert all(many[name].batch_size // 64 == few[name].batch_size // 4 for name in few)
    imagenet = many["imagenet_resnet152, LARS"]
    assert (imagenet.batch_size, imagenet.optimizer.name) == (4096, "lars")
    assert all(complete(config) for config in many.values())


def test_the_table_of_the_benchmark_has_a_row_for_each_card(tmp_path, monkeypatch):
    monkeypatch.setattr(tables.measure, "RESULTS", tmp_path)
    results = compile_only.outcome_values({"a": REPORT, "b": Failure("no")})
    (tmp_path / "tpu-v5e-2x2.json").write_text(json.dumps({"results": results}))
    a, b = tables.tpu_table("v5e-2x2").splitlines()[2:]
    assert a == "| a | 1024 (4096, 2048 too large) | 93.1 | 3.65 | 1.00 | 35, 45.1 MB | gather |"
    assert b == "| b | no |  |  |  |  |  |"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_card_is_compiled_for_tpus_and_one_bad_topology_fails_the_command(root, tmp_path):
    command = [
        sys.executable,
        "-m",
        "sdd_jax",
        "compile",
        "--config=digits",
        f"--json={tmp_path / 'out'}",
    ]
    environment = os.environ | {"PYTHONPATH": str(root)}
    run = {
        "capture_output": True,
        "text": True,
        "timeout": 300,
        "env": environment,
        "cwd": tmp_path,
    }
    done = subprocess.run([*command, "--topology=v5e:2x2,v5e:16x16"], **run)
    assert done.returncode == 2
    assert done.stderr == (
        "error: v5e:16x16: config.batch_size: must be a multiple of the 256 devices, got 64\n"
    )
    result = json.loads((tmp_path / "out").read_text())
    assert result["v5e:16x16"].keys() == {"error"}
    report = result["v5e:2x2"]
    parameters = 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10
    assert report["collectives"]["all-reduce"]["count"] == 1
    assert (
        0 <= report["collectives"]["all-reduce"]["bytes"] - 4 * parameters < 100
    )  # and the metrics
    assert (report["chips"], report["steps_per_call"], report["scan"]) == (4, 100, True)
    matmuls = 64 * 256 + 256 * 256 + 3 * 256 * 10  # of an example; the head: clean and two masks
    assert (
        4 < report["flops"] / (16 * matmuls) < 7
    )  # 2 forward, 4 backward, less at the first layer
    assert "100 in a loop" in done.stdout
