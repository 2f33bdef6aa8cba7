"""Scikit-learn's digits, three in ten of whose labels are drawn by lot: what a perceptron learns in spite of that.

    python wrong_labels.py

The images that choose the epoch have wrong labels, too; those of the test are right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from _training import arguments, compare
from images import Images
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class WrongLabels(Images):
    lr, rho, epochs = 0.1, 0.2, 40

    def __init__(self, share: float = 0.3) -> None:
        super().__init__(None)
        draw = torch.Generator().manual_seed(2)

        def spoil(labels: Tensor) -> Tensor:
            lot = torch.randint(10, labels.shape, generator=draw)
            return torch.where(torch.rand(labels.shape, generator=draw) < share, lot, labels)

        (x, y), (x_dev, y_dev) = self.train, self.dev_set
        self.train, self.dev_set = (x, spoil(y)), (x_dev, spoil(y_dev))

    def model(self) -> nn.Module:
        hidden = nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))


def main(argv: Sequence[str] | None = None) -> None:
    compare(WrongLabels(), arguments(__doc__).parse_args(argv))


if __name__ == "__main__":
    main()
