"""How much noise, and how small a malicious change, does a clustering of handwritten digits stand?

Prints a table for each model and writes robustness.png: a deep clustering beside KMeans and a Gaussian mixture, all on
the same rows, in the same box, with the same sizes of attack.
"""

from __future__ import annotations

import sys

from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture

from vade_robust import RobustVaDE, plot, robustness

SIZES = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3]  # of pixels in [0, 1]


def main(smoke: bool = False) -> None:
    """smoke: with fewer rows, and as few epochs as show that it works."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype("float32")
    rows = slice(300 if smoke else None)
    epochs = {"pretrain_epochs": 2, "epochs": 2} if smoke else {"epochs": 100}
    models = {
        "RobustVaDE": RobustVaDE(10, hidden=(256, 256, 512), batch_size=256, random_state=0, **epochs),
        "KMeans": KMeans(10, n_init=10, random_state=0),
        "Gaussian mixture": GaussianMixture(10, reg_covar=0.01, random_state=0),
    }
    reports = {}
    for name, model in models.items():
        reports[name] = robustness.report(model.fit(X), X[rows], y[rows], eps=SIZES)
        print(reports[name], end="\n\n")
    ax = plot.robustness_curves(reports, unit="pixels in [0, 1]", title="Digits: noise and white-box attack")
    ax.figure.savefig("robustness.png", dpi=150)


if __name__ == "__main__":
    main("--smoke" in sys.argv)
