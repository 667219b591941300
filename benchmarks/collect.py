"""Gathers what runs logged into one result file, without the paths of the machine they ran on.

    python benchmarks/collect.py RESULT.json --what=TEXT --machine=TEXT --run NAME WORKDIR COMMAND ...

``--run`` may be repeated: a name for the run, its workdir, and the command that made it. ``--last``
keeps the last line of each log alone.
"""

import argparse
import json
import pathlib
from typing import Any


def collect(workdir: pathlib.Path, command: str, *, last: bool) -> dict[str, Any]:
    """Versions, commit and all figures of a run."""
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


def dump(result: dict[str, Any]) -> str:
    """JSON with one line for each line of a log."""
    metrics = {}
    for name, run in result["runs"].items():
        metrics[f"<{name}>"] = run["metrics"]
        run["metrics"] = f"<{name}>"
    text = json.dumps(result, indent=2)
    for mark, lines in metrics.items():
        rows = ",\n".join(f"        {json.dumps(line)}" for line in lines)
        text = text.replace(f'"metrics": {json.dumps(mark)}', f'"metrics": [\n{rows}\n      ]')
    return text + "\n"


def main() -> None:
    """Writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--what", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--last", action="store_true")
    parser.add_argument("--run", nargs=3, action="append", required=True)
    given = parser.parse_args()
    runs = {
        name: collect(pathlib.Path(path), command, last=given.last)
        for name, path, command in given.run
    }
    given.output.write_text(dump({"what": given.what, "machine": given.machine, "runs": runs}))


if __name__ == "__main__":
    main()
