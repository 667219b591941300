"""Time of a training step in PyTorch over the time here: the same network, loss, optimizer and cores.

    pip install -e '.[benchmark]'
    python -m benchmarks.pytorch [--network NETWORK --batch 64 --rounds 9]

NETWORK is resnet18 or quick. Each side is a process of its own that makes a step on request, so only one
computes at a time: sdd_jax with one XLA device, and with one per core; PyTorch eager, with channels
last, and, if there is a C++ compiler, compiled. A step of sdd_jax includes gathering its batch;
PyTorch's batch is ready in memory. Above 1, sdd_jax with a device per core is faster.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable

from benchmarks.measure import (
    cores,
    parser,
    random_images,
    ratio,
    run_config,
    seconds,
    summary,
    take_turns,
    training_step,
    write,
)

OURS = "sdd_jax, a device per core"
CLASSES = 100


def ours(network: str, batch: int, folder: str) -> tuple[int, Callable[[], float]]:
    """Returns the number of parameters, and a step of plain cross-entropy as in ``train.py``."""
    import jax

    from sdd_jax.devices import let_cpu_collectives_wait
    from sdd_jax.experiment import load_experiment

    let_cpu_collectives_wait()
    config = run_config(f"npz:{folder}/images.npz", network, batch=batch)
    parameters = jax.tree.leaves(load_experiment(config).abstract_state.params)
    return sum(x.size for x in parameters), training_step(config)


def theirs(network: str, batch: int, variant: str) -> tuple[int, Callable[[], float]]:
    """Returns the same for idiomatic PyTorch; variant: eager, channels_last or compiled."""
    import torch
    from torch import nn

    torch.set_num_threads(cores())

    def block(channels: int, width: int, stride: int) -> nn.Module:
        body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        projection = (nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        return Residual(body, nn.Sequential(*(projection if channels != width else ())))

    class Residual(nn.Module):
        def __init__(self, body: nn.Module, shortcut: nn.Module):
            super().__init__()
            self.body, self.shortcut = body, shortcut

        def forward(self, x):
            return nn.functional.relu(self.body(x) + self.shortcut(x))

    def resnet18() -> nn.Module:
        stem = (nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        shapes = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1))
        shapes += ((128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1))
        blocks = (block(*shape) for shape in shapes)
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES))
        return nn.Sequential(*stem, *blocks, *head)

    def quick() -> nn.Module:
        # 3x3 pooling whose last windows reach beyond the edge: 32 -> 16 -> 8 -> 4
        layers, channels = [], 3
        for width, pool in ((32, nn.MaxPool2d), (32, nn.AvgPool2d), (64, nn.AvgPool2d)):
            convolution = nn.Conv2d(channels, width, 5, padding=2)
            layers += [convolution, nn.ReLU(), pool(3, 2, ceil_mode=True), nn.Dropout(0.5)]
            channels = width
        dense = (nn.Linear(64 * 4 * 4, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, CLASSES))
        return nn.Sequential(*layers, nn.Flatten(), *dense)

    layout = torch.contiguous_format if variant == "eager" else torch.channels_last
    model = {"resnet18": resnet18, "quick": quick}[network]().to(memory_format=layout)
    images = torch.randn(batch, 3, 32, 32).to(memory_format=layout)
    labels = torch.arange(batch) % CLASSES
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    forward = torch.compile(model) if variant == "compiled" else model

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(images), labels).backward()
        optimizer.step()

    return sum(p.numel() for p in model.parameters()), lambda: seconds(step)


def sides() -> dict[str, int]:
    """``{side: number of XLA devices}`` of the sides that run on this machine; 0 for PyTorch."""
    devices = {
        "sdd_jax, one device": 1,
        OURS: cores(),
        "PyTorch eager": 0,
        "PyTorch channels_last": 0,
    }
    if os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++"):
        devices["PyTorch compiled"] = 0
    return devices


class Worker:
    """A side in a process of its own."""

    def __init__(self, side: str, devices: int, network: str, batch: int, folder: str):
        args = [f"--side={side}", f"--network={network}", f"--batch={batch}", f"--folder={folder}"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.pytorch", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ({"JAX_NUM_CPU_DEVICES": str(devices)} if devices else {}),
        )
        self.parameters = int(self._request())

    def __call__(self) -> float:
        """Makes a step; returns its seconds."""
        return float(self._request())

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def _request(self) -> str:
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


def serve(side: str, network: str, batch: int, folder: str) -> None:
    """Answers each line of stdin: the first with the number of parameters, the others with seconds."""
    if side.startswith("sdd_jax"):
        parameters, step = ours(network, batch, folder)
    else:
        parameters, step = theirs(network, batch, side.removeprefix("PyTorch "))
    answers, sys.stdout = sys.stdout, sys.stderr
    for number, _ in enumerate(sys.stdin):
        print(step() if number else parameters, file=answers, flush=True)


def main() -> None:
    """Measures, prints and writes the result file."""
    args = parser(__doc__, network="resnet18", batch=64, rounds=9, side="", folder="").parse_args()
    if args.side:
        serve(args.side, args.network, args.batch, args.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        random_images(pathlib.Path(folder) / "images.npz", classes=CLASSES)
        workers = {
            side: Worker(side, devices, args.network, args.batch, folder)
            for side, devices in sides().items()
        }
        sizes = {worker.parameters for worker in workers.values()}
        assert len(sizes) == 1, f"the networks differ: {sizes} parameters"
        timings = take_turns(workers, args.rounds)
        for worker in workers.values():
            worker.close()
    ratios = {side: ratio(timings[side], timings[OURS]) for side in timings if side != OURS}
    for side, over_ours in ratios.items():
        print(f"{args.network}, {side} over {OURS}: {over_ours}")
    write(
        args,
        f"pytorch-{args.network}-{args.batch}",
        f"python -m benchmarks.pytorch --network {args.network} --batch {args.batch} "
        f"--rounds {args.rounds}",
        f"Seconds of a training step of {args.network} ({sizes.pop():,} parameters), cross-entropy, "
        f"SGD with momentum, {args.batch} images of 32x32, float32, {cores()} threads; ratios are a "
        f"side's seconds over those of {OURS!r}",
        over_ours=ratios,
        seconds={side: summary(values) for side, values in timings.items()},
    )


if __name__ == "__main__":
    main()
