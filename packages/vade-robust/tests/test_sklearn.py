"""What scikit-learn demands of an estimator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.utils.estimator_checks import estimator_checks_generator

from vade_robust import RobustVaDE, VaDE

SMALL: dict[str, Any] = {"n_clusters": 3, "hidden": (16,), "pretrain_epochs": 2, "epochs": 3}
CHECKS = [pair for cls in (RobustVaDE, VaDE) for pair in estimator_checks_generator(cls(**SMALL))]
NAMES = [f"{type(estimator).__name__}-{check.func.__name__}-{i}" for i, (estimator, check) in enumerate(CHECKS)]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("estimator", "check"), CHECKS, ids=NAMES)
def test_scikit_learn_has_no_complaint(estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # else a check is skipped
    if "sparse" in check.func.__name__:  # it demands as many probabilities as the y that it passes has classes
        estimator.set_params(n_clusters=4)
    check(estimator)
