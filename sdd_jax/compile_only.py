"""Compiles the training program of a config for TPUs that are not there.

The compiler is in libtpu, a wheel on PyPI, and needs no TPU. The program is the one that trains: the
same step, engine and number of steps per dispatch. A program has shapes, not values, so the images may
be absent, and so may the teacher's run. What the compiler cannot know is the time of a step.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sdd_jax import config as configs
from sdd_jax import hlo, objectives
from sdd_jax.data.engines import engines
from sdd_jax.data.sources.blank import ALLOWED, SHAPES
from sdd_jax.devices import compiling_for
from sdd_jax.errors import Failure, InputError, require
from sdd_jax.experiment import Experiment, load_experiment
from sdd_jax.extras import pip_command
from sdd_jax.runs import Checkpoints, open_workdir, read_config, teacher_workdirs
from sdd_jax.train import compile_run
from sdd_jax.training.state import TrainState

GIB = 2**30
# Generation: memory of a chip in GiB, dimensions of a slice, most chips of a slice. Google's pages "TPU
# v5e", "TPU v5p" and "TPU v6e", https://cloud.google.com/tpu/docs.
CHIPS = {"v5e": (16, 2, 256), "v5p": (95, 3, 8960), "v6e": (32, 2, 256)}
# Training images of the recipe cards, as the source ``blank`` takes them.
KNOWN_DATA = {
    "cifar10": "50000x32x32x3:10",
    "cifar100": "50000x32x32x3:100",
    "mnist": "60000x28x28x1:10",
    "caltech_birds2011": "5994x224x224x3:200",
    "stanford_dogs": "12000x224x224x3:120",
    "imagenet2012": "1281167x224x224x3:1000",
    "npz:cub100_48.npz": "2999x48x48x3:100",
    "coco:coco": "118287x512x512x3:80:93",
}
NOTE = "Figures below the batch size of a chip are of one chip. A TPU has to confirm the estimates."


class DoesNotFit(Failure):
    """The program needs more memory than a chip has; a smaller batch may not."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """TPU chips of one slice.

    Attributes:
      name: for example "v5e:4x4".
      devices: the chips, which need not exist.
      memory: bytes of a chip.
    """

    name: str
    devices: Sequence[Any]
    memory: int

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return len({device.process_index for device in self.devices})


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler says of a training program. All figures but the first six are those of one chip.

    Attributes:
      topology: name of the topology.
      chips: number of chips.
      hosts: number of hosts.
      batch_size: global batch size.
      steps_per_call: training steps in one dispatch.
      does_not_fit: larger batch sizes that need more memory than a chip has.
      memory_bytes: memory of a chip.
      flops: floating-point operations of a step, the compiler's estimate.
      bytes_accessed: bytes that a step reads and writes, its estimate.
      argument_bytes: state, resident data, and the inputs of a dispatch.
      temporary_bytes: activations and other intermediate values.
      peak_bytes: arguments, results that do not replace one, temporaries and the program itself.
      collectives: kind to ``count`` and ``bytes`` of a step.
      scan: whether the steps of a dispatch are a loop; None for a single step.
      other_loops: operations inside a step that became loops.
      compile_seconds: time of the compiler on this machine.
    """

    topology: str
    chips: int
    hosts: int
    batch_size: int
    steps_per_call: int
    does_not_fit: tuple[int, ...]
    memory_bytes: int
    flops: float
    bytes_accessed: float
    argument_bytes: int
    temporary_bytes: int
    peak_bytes: int
    collectives: Mapping[str, Mapping[str, int]]
    scan: bool | None
    other_loops: Sequence[str]
    compile_seconds: float


def use_one_cpu() -> None:
    """Runs what little is computed here, and in child processes, on a CPU; call it before JAX starts."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)


def find_topology(name: str) -> Topology:
    """The chips of a slice.

    Args:
      name: GENERATION:SHAPE, for example "v5e:4x4".

    Raises:
      InputError: there is no such slice.
      Failure: libtpu is not installed.
    """
    generation, _, shape = name.partition(":")
    sides = [int(n) for n in shape.split("x")] if re.fullmatch(r"\d{1,4}(x\d{1,4})+", shape) else []
    memory, dimensions, most = CHIPS.get(generation, (0, 0, 0))
    require(
        len(sides) == dimensions and 0 < math.prod(sides) <= most,
        "--topology",
        name,
        "v5e:RxC or v6e:RxC of at most 256 chips, or v5p:XxYxZ, such as v5e:2x2 and v5p:4x4x4",
    )
    if importlib.util.find_spec("libtpu") is None:
        raise Failure(f"compile needs {pip_command('tpu')}; not installed: libtpu")
    # Without these, libtpu asks a server of Google's cloud which chips this machine has, and prints that
    # there is none.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    options = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(sides) == 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"must be a slice that libtpu knows: {error}", field="--topology"
        ) from error
    return Topology(name, found.devices, memory * GIB)


def compile_for(config: ConfigDict, topology: Topology, *, data: str = "") -> Report:
    """Compiles the training program of a config; halves the batch until it fits into memory.

    Args:
      config: see :func:`sdd_jax.config.default`.
      topology: the chips to compile for.
      data: the shapes of the training images, ``NxHxWxC:K``; by default those of ``KNOWN_DATA``, and
        those of the data set itself if it is not listed there.

    Raises:
      InputError: the config cannot be used with this topology, or the shapes of its data are unknown.
      Failure: the compiler refuses the program, or no batch fits.
    """
    config = without_data(configs.complete(config), data)
    with _teachers(config) as config:

        def attempt(batch_size: int) -> Report:
            config.batch_size = batch_size
            return _compile(config, topology)

        multiple = len(topology.devices) * config.accumulate
        report, too_large = largest_batch(attempt, config.batch_size, multiple)
    return dataclasses.replace(report, does_not_fit=tuple(too_large))


def largest_batch(
    attempt: Callable[[int], Report], batch_size: int, multiple: int
) -> tuple[Report, list[int]]:
    """The report of the first of ``batch_size``, its half, its quarter, ... that fits.

    Args:
      attempt: compiles the program for a batch size; raises ``DoesNotFit``.
      batch_size: the first one.
      multiple: every batch size is a multiple of this.

    Returns:
      The report, and the batch sizes that do not fit.

    Raises:
      DoesNotFit: none fits.
    """
    too_large: list[int] = []
    while True:
        try:
            return attempt(batch_size), too_large
        except DoesNotFit as error:
            too_large.append(batch_size)
            if batch_size % 2 or batch_size // 2 % multiple:
                tried = ", ".join(map(str, too_large))
                raise DoesNotFit(f"no batch fits, of {tried}: {error}") from error
            batch_size //= 2


def without_data(config: ConfigDict, data: str = "") -> ConfigDict:
    """A copy of a complete config that needs no file: black images of the shapes of its data.

    Args:
      config: a complete config.
      data: the shapes, as for :func:`compile_for`.
    """
    require(not data or SHAPES.fullmatch(data) is not None, "--data", data, ALLOWED)
    config = config.copy_and_resolve_references()
    if shapes := data or KNOWN_DATA.get(config.dataset.name, ""):
        config.dataset.name = f"blank:{shapes}"
        config.dataset.train_labels = ""
        if not (config.dataset.mean and config.dataset.std):
            # Not those of black images: the compiler would remove the subtraction of 0.
            channels = int(shapes.partition(":")[0].rpartition("x")[2])
            config.dataset.mean, config.dataset.std = (0.5,) * channels, (0.25,) * channels
    kind, _, other = config.inputs.partition(":")
    if kind == "unlabelled" and (shapes := KNOWN_DATA.get(other, data)):
        config.inputs = f"unlabelled:blank:{shapes}"
    config.model.init = ""
    return config


@contextlib.contextmanager
def _teachers(config: ConfigDict) -> Iterator[ConfigDict]:
    """The config with untrained teachers: the networks of their runs, or else its own."""
    untrained: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in teacher_workdirs(config.teacher):
            teacher = config.copy_and_resolve_references()
            if path.exists():
                teacher.model = configs.complete_record(
                    read_config(path, field="config.teacher")
                ).model
                teacher.model.init = ""
            teacher.model.spread = "none"
            teacher.update({"teacher": "", "inputs": "train"})
            teacher.objective = ConfigDict(objectives.objectives.options("cross_entropy"))
            untrained.append(os.path.join(folder, str(len(untrained))))
            with open_workdir(untrained[-1]) as workdir:
                experiment = _load(teacher)
                configs.record(workdir, experiment.config, experiment.facts())
                checkpoints = Checkpoints(workdir)
                checkpoints.save(0, experiment.create_state())
                checkpoints.close()
        config.teacher = ",".join(untrained)
        yield config


def _load(config: ConfigDict) -> Experiment:
    try:
        return load_experiment(config)
    except InputError as error:
        if error.field != "config.dataset.name":
            raise
        reason = f"{error.reason}; or state the shapes of the images, --data={ALLOWED}"
        raise InputError(reason, field=error.field) from error


def _compile(config: ConfigDict, topology: Topology) -> Report:
    """One attempt of :func:`compile_for`.

    Raises:
      DoesNotFit: the compiler finds that a chip has too little memory.
    """
    devices = topology.devices
    with compiling_for(devices):
        experiment = _load(config)
        arguments = abstract_arguments(experiment, len(devices))
        _require_resident_data_fit(experiment, topology)
        train_call: Any = compile_run(experiment)
        lowered = train_call.lower(*arguments)
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        reason = f"the compiler refuses the program: {error}"
        raise (DoesNotFit if "RESOURCE_EXHAUSTED" in str(error) else Failure)(reason) from error
    seconds = time.perf_counter() - start
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = memory.argument_size_in_bytes + results + memory.temp_size_in_bytes
    peak += memory.generated_code_size_in_bytes
    return Report(
        topology=topology.name,
        chips=len(devices),
        hosts=topology.hosts,
        batch_size=config.batch_size,
        steps_per_call=experiment.steps_per_call,
        does_not_fit=(),
        memory_bytes=topology.memory,
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=peak,
        collectives=hlo.collectives(text),
        scan=hlo.has_scan(text) if experiment.steps_per_call > 1 else None,
        other_loops=hlo.other_loops(text),
        compile_seconds=round(seconds, 1),
    )


def _require_resident_data_fit(experiment: Experiment, topology: Topology) -> None:
    """Raises a Failure if the resident data alone exceed the memory: no batch would fit."""
    resident = sum(x.nbytes for x in jax.tree.leaves(experiment.engine.resident))
    if resident >= topology.memory:
        raise Failure(
            f"the resident data of {resident / GIB:.1f} GiB do not fit in the "
            f"{topology.memory // GIB} GiB of a chip; --config.engine.name=streamed reads them by batch"
        )


def abstract_arguments(experiment: Experiment, devices: int) -> tuple[TrainState, Any, Any, Any]:
    """Shapes and dtypes of the arguments of the compiled call, see ``compile_train_call``."""
    shape = experiment.setup.dataset.image_shape
    constants = None
    if experiment.objective.constants is not None:
        images = jnp.zeros((2, *shape), experiment.setup.dataset.inputs.dtype)
        key = jax.random.key(0)
        constants = experiment.objective.constants(images, key)
    return (
        experiment.abstract_state,
        _abstract_inputs(experiment, devices),
        _abstract(experiment.engine.resident),
        _abstract(constants),
    )


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _abstract_inputs(experiment: Experiment, devices: int) -> Any:
    """Inputs of one call on all devices, from those of one step of a small batch on the host."""
    config = experiment.config
    small = engines.build(
        config.engine,
        split=experiment.examples,
        # 2: the sampler "overlapping" takes an even batch.
        batch_size=math.lcm(2, experiment.objective.batch_multiple, jax.device_count()),
        sampler=experiment.objective.sampler,
        seed=config.seed,
    )
    inputs = small.inputs(0, 1)
    small.close()
    leading = (devices, experiment.steps_per_call, config.batch_size // devices)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*leading, *x.shape[3:]), x.dtype), inputs)


# ------------------------------------------------------------------------------------------- table


def table(reports: Mapping[str, Report]) -> str:
    """A column for each topology, with one row for each figure."""
    columns = {name: _cells(report) for name, report in reports.items()}
    labels = list(dict.fromkeys(label for cells in columns.values() for label in cells))
    rows = [["", *columns]]
    rows += [[label, *(cells.get(label, "0") for cells in columns.values())] for label in labels]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, NOTE])


def outcome_values(outcomes: Mapping[str, Report | Failure]) -> dict[str, dict[str, Any]]:
    """The outcomes in JSON's types; ``{"error": reason}`` where there is no report."""
    return {
        name: {"error": str(out)} if isinstance(out, Failure) else dataclasses.asdict(out)
        for name, out in outcomes.items()
    }


def _cells(report: Report) -> dict[str, str]:
    """The column of a topology."""
    fits = f"{report.peak_bytes / GIB:.2f} of {report.memory_bytes // GIB}, fits"
    batch = str(report.batch_size)
    if report.does_not_fit:
        verb = "does" if len(report.does_not_fit) == 1 else "do"
        batch += f", {' and '.join(map(str, report.does_not_fit))} {verb} not fit"
    steps = {None: "1", True: f"{report.steps_per_call} in a loop"}
    cells = {
        "chips and hosts": f"{report.chips} and {report.hosts}",
        "global batch size": batch,
        "batch size of a chip": str(report.batch_size // report.chips),
        "steps per dispatch": steps.get(report.scan, f"{report.steps_per_call} unrolled"),
        "GFLOP per step, estimate": f"{report.flops / 1e9:.4g}",
        "GB read and written per step, estimate": f"{report.bytes_accessed / 1e9:.4g}",
        "arguments, MiB": f"{report.argument_bytes / 2**20:.1f}",
        "temporaries, MiB": f"{report.temporary_bytes / 2**20:.1f}",
        "peak, GiB": fits,
    }
    for kind, total in report.collectives.items():
        cells[f"{kind} per step"] = f"{total['count']}, {total['bytes'] / 2**20:.2f} MiB"
    cells["loops inside a step"] = ", ".join(report.other_loops) or "0"
    cells["compiled in, here"] = f"{report.compile_seconds:.0f} s"
    return cells
