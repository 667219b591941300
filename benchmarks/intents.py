"""Runs the example of few-shot intent classification, and writes its result files and tables.

    python -m benchmarks.intents --data data_full.json [--only 10]

The bags of tokens take twenty minutes on two CPU cores, the transformer longer. ``--only`` makes one of
the files.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from benchmarks import measure, tables

STUDIES = {  # arguments of the example
    "5": ("--shots=5",),
    "10": ("--shots=10",),
    "50": ("--shots=50",),
    "transformer": ("--shots=10", "--encoder=transformer", "--seeds=5"),
}


def main() -> None:
    """Makes the result files, and writes the tables."""
    parser = measure.parser(__doc__)
    parser.add_argument(
        "--data", type=pathlib.Path, required=True, help="CLINC150's data_full.json"
    )
    parser.add_argument("--only", choices=STUDIES)
    args = parser.parse_args()
    for name in [args.only] if args.only else STUDIES:
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder, "results.json")
            command = ("examples/intents.py", *STUDIES[name])
            data = (f"--data={args.data.resolve()}", f"--json={out}")
            subprocess.run([sys.executable, *command, *data], cwd=measure.ROOT, check=True)
            results = json.loads(out.read_text())
        measure.write(
            args,
            f"intents-{name}",
            command=f"python {' '.join(command)} --data=data_full.json --json=OUT",
            what="Few-shot intent classification on CLINC150; every seed at the chosen value",
            results=results,
        )
    tables.write_all()


if __name__ == "__main__":
    main()
