"""Evaluates a run: ``python eval.py --workdir=DIR [--checks=accuracy,calibration]``."""

import sys

try:
    from sdd_jax.__main__ import run
except ModuleNotFoundError as error:
    sys.exit(f"error: eval.py needs pip install -e '.[train]'; {error}")

if __name__ == "__main__":
    run("eval")
