"""Collects the logs and evaluations of runs in one result file, without paths of the machine.

    python benchmarks/collect.py RESULT.json --what=TEXT --machine=TEXT --run NAME WORKDIR COMMAND ...

``--run`` takes a name for the run, its workdir and the command that made it, and may be repeated.
``--last`` keeps only the last line of each log.
"""

import argparse
import json
import pathlib
from typing import Any


def collect(workdir: pathlib.Path, command: str, *, last: bool) -> dict[str, Any]:
    """Reads the versions, the commit and all metrics of a run."""
    record = json.loads((workdir / "config.json").read_text())
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    run = {
        "command": command,
        **{key: record[key] for key in ("versions", "commit", "devices")},
        "metrics": [json.loads(line) for line in (lines[-1:] if last else lines)],
    }
    evaluation = workdir / "eval" / "metrics.json"
    if evaluation.is_file():
        run["eval"] = json.loads(evaluation.read_text())
    return run


def dump(what: str, machine: str, runs: dict[str, dict[str, Any]]) -> str:
    """Formats a result file: JSON in which each line of a log is one line."""
    placeholders = {name: run | {"metrics": f"<{name}>"} for name, run in runs.items()}
    text = json.dumps({"what": what, "machine": machine, "runs": placeholders}, indent=2)
    for name, run in runs.items():
        rows = ",\n".join(f"        {json.dumps(line)}" for line in run["metrics"])
        text = text.replace(f'"metrics": "<{name}>"', f'"metrics": [\n{rows}\n      ]')
    return text + "\n"


def main() -> None:
    """Writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--what", required=True, help="description of the runs")
    parser.add_argument("--machine", required=True, help="description of the machine")
    parser.add_argument("--last", action="store_true", help="only the last line of each log")
    parser.add_argument(
        "--run", nargs=3, action="append", required=True, metavar=("NAME", "WORKDIR", "COMMAND")
    )
    args = parser.parse_args()
    runs = {
        name: collect(pathlib.Path(workdir), command, last=args.last)
        for name, workdir, command in args.run
    }
    args.output.write_text(dump(args.what, args.machine, runs))


if __name__ == "__main__":
    main()
