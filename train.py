"""Trains a network: ``python train.py [--config=CARD] [--workdir=DIR] [--config.FIELD=VALUE ...]``."""

import sys

try:
    from sdd_jax.__main__ import run
except ModuleNotFoundError as error:
    sys.exit(f"error: train.py needs pip install -e '.[train]'; {error}")

if __name__ == "__main__":
    run("train")
