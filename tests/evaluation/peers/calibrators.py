"""Writes calibrators.json: calibrated probabilities and selective metrics of other libraries.

Not run by the tests. To repeat it, in an environment of its own::

    pip install torch torchvision torch-uncertainty==0.13.0 netcal==1.4.0 scikit-learn
    python tests/evaluation/peers/calibrators.py
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

ODIR = 2.0


def inputs():
    """Logits and labels to fit on, and others to apply to."""
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((180, 4)) + [1, 0, 0, -1]).round(2)
    chance = logits * [0.3, 0.5, 0.7, 0.4] + [0, 1, 0, -1]
    labels = np.argmax(chance + rng.gumbel(size=chance.shape), axis=-1)
    return {
        "logits": logits[:120], "labels": labels[:120],
        "test_logits": logits[120:], "test_labels": labels[120:],
    }  # fmt: skip


def torch_uncertainty(logits, labels, test_logits, test_labels):
    """Dirichlet scaling, and metrics of the raw probabilities."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from torch_uncertainty.metrics.classification import AUGRC, AURC, CovAt5Risk, CovAtxRisk
    from torch_uncertainty.post_processing.calibration import DirichletScaler

    torch.set_default_dtype(torch.float64)
    logits, labels, test_logits, test_labels = map(
        torch.tensor, (logits, labels, test_logits, test_labels)
    )
    scaler = DirichletScaler(4, lr=1, max_iter=20_000, lambda_reg=ODIR, mu_reg=ODIR)
    scaler.fit(DataLoader(TensorDataset(logits, labels), batch_size=120), progress=False)
    metrics = {
        "augrc": AUGRC(), "aurc": AURC(),
        "coverage_at_5": CovAt5Risk(), "coverage_at_30": CovAtxRisk(0.3),
    }  # fmt: skip
    values = {}
    for name, metric in metrics.items():
        metric.update(test_logits.softmax(-1), test_labels)
        values[name] = metric.compute().item()
    return {"dirichlet": scaler(test_logits).softmax(-1).numpy(force=True)}, values


def netcal(logits, labels, test_logits, test_labels):
    """Vector scaling of the log-probabilities; netcal takes its gradients by finite differences."""
    from netcal.scaling import LogisticCalibration
    from scipy.special import softmax

    scaler = LogisticCalibration(method="mle").fit(softmax(logits, axis=-1), labels)
    return {"vector": scaler.transform(softmax(test_logits, axis=-1))}


def sklearn(logits, labels, test_logits, test_labels):
    """Isotonic regression, one class against the rest, normalised."""
    from scipy.special import softmax
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Network(ClassifierMixin, BaseEstimator):
        classes_ = np.arange(4)

        def predict_proba(self, x):
            return softmax(x, axis=-1)

        def predict(self, x):
            return x.argmax(axis=-1)

        def fit(self, x, y):
            return self

        def __sklearn_is_fitted__(self):
            return True

    calibrated = CalibratedClassifierCV(FrozenEstimator(Network()), method="isotonic")
    return {"isotonic": calibrated.fit(logits, labels).predict_proba(test_logits)}


def main():
    """Writes the file beside this one."""
    data = inputs()
    probs, values = torch_uncertainty(**data)
    probs |= netcal(**data) | sklearn(**data)
    packages = ("torch-uncertainty", "torch", "netcal", "scikit-learn")
    record = {
        "versions": {name: version(name) for name in packages} | {"python": sys.version.split()[0]},
        "odir": ODIR,
        "inputs": {name: array.tolist() for name, array in data.items()},
        "probs": {name: np.round(array, 7).tolist() for name, array in probs.items()},
        "metrics": values,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
