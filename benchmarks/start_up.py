"""Time from the command ``train.py`` (digits) to its first step: a first start and a second one.

    python -m benchmarks.start_up [--rounds 5]

The first start has no compilation cache; the second uses that of the first.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.measure import ROOT, parser, ratio, summary, write

TRAIN = ROOT / "train.py"


def start(workdir: pathlib.Path) -> float:
    """Seconds until the first step is logged; the run is killed then."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, str(TRAIN), f"--workdir={workdir}", "--config.log_every=1 steps"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as run:
        reached = any(line.startswith("step 1/") for line in run.stdout)
        elapsed = time.perf_counter() - began
        run.kill()
    assert reached, "the run ended before its first step"
    return elapsed


def main() -> None:
    """Measures, prints and writes the result file."""
    args = parser(__doc__, rounds=5).parse_args()
    timings: dict[str, list[float]] = {"first": [], "second": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for name, side in timings.items():
                side.append(start(pathlib.Path(folder, str(number), name)))
    results = {f"{name}_seconds": summary(side) for name, side in timings.items()}
    results["first_over_second"] = ratio(timings["first"], timings["second"])
    for name, figures in results.items():
        print(name, figures)
    write(
        args,
        "start-up-digits",
        f"python -m benchmarks.start_up --rounds {args.rounds}",
        "Seconds from the command `python train.py` (digits) to its first logged step: a first start, "
        "and a second one that finds the compiled programs of the first",
        **results,
    )


if __name__ == "__main__":
    main()
