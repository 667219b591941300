"""Trains a network: ``train.py [--config=CARD.py] [--workdir=DIR] [--config.KEY=VALUE ...]``."""

from sdd_jax.cli import train

if __name__ == "__main__":
    train()
