"""From the command to the first step: ``train.py`` on the digits, a first start and a second one.

    python -m benchmarks.start_up [--rounds 5]

The first start finds no compiled programs beside its run, the second those of the first.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.measure import parser, ratio, summary, write

TRAIN = pathlib.Path(__file__).parent.parent / "train.py"


def start(workdir: pathlib.Path) -> float:
    """Seconds until the first step is logged; the run is ended then."""
    given = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, str(TRAIN), f"--workdir={workdir}", "--config.log_every=1 steps"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=given) as run:
        assert any(line.startswith("step 1/") for line in run.stdout), "the run ended before a step"
        taken = time.perf_counter() - started
        run.kill()
    return taken


def main() -> None:
    """Measures, prints and writes the result file."""
    given = parser(__doc__, rounds=5).parse_args()
    taken: dict[str, list[float]] = {"first": [], "second": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            for side, of_side in taken.items():
                of_side.append(start(pathlib.Path(folder, str(number), side)))
    found = {f"{side}_seconds": summary(of_side) for side, of_side in taken.items()}
    found["first_over_second"] = ratio(taken["first"], taken["second"])
    for name, figures in found.items():
        print(name, figures)
    write(
        given,
        "start-up-digits",
        f"python -m benchmarks.start_up --rounds {given.rounds}",
        "Seconds from the command `python train.py` (digits) to its first logged step: a first start, "
        "and a second one that finds the compiled programs of the first",
        **found,
    )


if __name__ == "__main__":
    main()
