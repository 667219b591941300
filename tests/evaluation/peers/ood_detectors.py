"""Writes ood_detectors.json: the scores of pytorch-ood's detectors on small features.

Not run by the tests. To repeat it, in an environment of its own::

    pip install torch pytorch-ood==0.4.0 scikit-learn && python tests/evaluation/peers/ood_detectors.py
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

K, DIM, PERCENTILE = 7, 3, 0.75  # which neighbour; of ViM's subspace; of ReAct and ASH-S


def inputs():
    """Training features of four classes, features to score (half of them far), and a head."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 4
    centres = 2 * rng.standard_normal((4, 8))
    train = np.maximum(centres[labels] + rng.standard_normal((80, 8)), 0)
    near = np.maximum(centres[np.arange(6) % 4] + rng.standard_normal((6, 8)), 0)
    far = np.maximum(3 * rng.standard_normal((6, 8)), 0)
    kernel, bias = rng.standard_normal((8, 4)) / 4, rng.standard_normal(4)
    arrays = {
        "train": train, "features": np.concatenate([near, far]), "kernel": kernel, "bias": bias,
    }  # fmt: skip
    return {name: array.round(3) for name, array in arrays.items()} | {"labels": labels}


def scores(train, features, kernel, bias, labels):
    """``{detector: outlier scores}``; pytorch-ood's are high for outliers."""
    import torch
    from pytorch_ood import detector as peers

    train, features = torch.tensor(train).float(), torch.tensor(features).float()
    kernel, bias, labels = (
        torch.tensor(kernel).float(),
        torch.tensor(bias).float(),
        torch.tensor(labels),
    )

    def head(x):
        return x.flatten(1) @ kernel + bias

    logits = head(features)
    knn = peers.KNN(None, k=K).fit_features(train, labels)
    mahalanobis = peers.Mahalanobis(None).fit_features(train, labels)
    rmd = peers.RMD(None).fit_features(train, labels)
    vim = peers.ViM(None, d=DIM, w=kernel.T, b=bias).fit_features(train, labels)
    react = peers.ReAct(torch.nn.Identity(), head, percentile=PERCENTILE)
    react.fit_feature_maps(train, labels)
    ash = peers.ASH(lambda x: x.clone(), head, variant="ash-s", percentile=PERCENTILE)
    odin = peers.ODIN(head, eps=0.05, temperature=10.0)
    return {
        "msp": peers.MaxSoftmax.score(logits),
        "max_logit": peers.MaxLogit.score(logits),
        "energy": peers.EnergyBased.score(logits),
        "gen": peers.GEN.score(logits, M=3),
        "odin": odin.predict(features),
        "knn": knn.predict_features(features),
        "mahalanobis": mahalanobis.predict_features(features),
        "relative_mahalanobis": rmd.predict_features(features),
        "vim": vim.predict_features(features),
        "react": react.predict_feature_maps(features),
        "ash": ash.predict_feature_maps(features[:, :, None, None]),
    }


def main():
    """Writes the file beside this one."""
    data = inputs()
    record = {
        "versions": {name: version(name) for name in ("pytorch-ood", "torch", "scikit-learn")}
        | {"python": sys.version.split()[0]},
        "options": {"k": K, "dim": DIM, "percentile": PERCENTILE},
        "inputs": {name: array.tolist() for name, array in data.items()},
        "outlier_scores": {
            name: [float(f"{value:.7g}") for value in values.detach().tolist()]
            for name, values in scores(**data).items()
        },
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
