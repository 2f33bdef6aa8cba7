"""A word-level LSTM language model: the perplexity that SAM and GA-SAM reach beside their base optimizer.

    python language_model.py                  # the language manual within Python: nothing to download
    python language_model.py --data FOLDER    # WikiText-2: valid.txt trains, test.txt is split into dev and test

The training text is short for the model, which overfits it: that is where a flat minimum can help.
"""

from __future__ import annotations

import math
from collections import Counter
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any

import torch
from _training import Batch, arguments, compare, read_text
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SPAN = 35  # words that a gradient reaches back


class Model(nn.Module):
    """One LSTM layer; the embedding is the output layer too."""

    def __init__(self, words: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(words, width), nn.Dropout(dropout)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(words))
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, words: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        out, state = self.lstm(self.dropout(self.embedding(words)), state)
        return self.dropout(out) @ self.embedding.weight.T + self.bias, state


class LanguageModelling:
    lr, rho, epochs = 2e-2, 0.15, 6
    base = torch.optim.Adam

    def __init__(self, folder: Path | None, words: int = 30_000, width: int = 64, dropout: float = 0.3) -> None:
        self.options: dict[str, Any] = {}
        train, held = self.texts(folder, words)
        seen = Counter(train)
        known = [word for word, count in seen.most_common() if count > 1]
        codes = {word: code for code, word in enumerate(["<unk>", *(word for word in known if word != "<unk>")])}
        ids = torch.tensor([codes.get(word, 0) for word in train])
        self.rows = ids[: len(ids) // (SPAN + 1) * (SPAN + 1)].view(-1, SPAN + 1)
        cut = len(held) // 4
        parts = held[:cut], held[cut:]
        self.dev_ids, self.test_ids = (torch.tensor([codes.get(word, 0) for word in part]) for part in parts)
        self.words, self.width, self.dropout = len(codes), width, dropout

    @staticmethod
    def texts(folder: Path | None, words: int) -> tuple[list[str], list[str]]:
        """The words to train on, and those to choose and test with."""
        if folder is not None:
            train, held = (read_text(folder / f"{name}.txt").replace("\n", " <eos> ").split() for name in
                           ("valid", "test"))  # fmt: skip
            return train[:words], held[:60_000]
        manual = " ".join(topics[key] for key in sorted(topics)).lower().split()
        cut = len(manual) * 3 // 4
        return manual[: min(words, cut)], manual[cut:]

    def model(self) -> Model:
        return Model(self.words, self.width, self.dropout)

    def batches(self, draw: random.Random) -> Iterator[Batch]:
        order = draw.sample(range(len(self.rows)), len(self.rows))
        for start in range(0, len(order), 10):
            yield (self.rows[order[start : start + 10]],)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        (rows,) = batch
        logits, _ = model(rows[:, :-1])
        return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    def perplexity(self, model: nn.Module, ids: Tensor, streams: int = 20) -> float:
        """Of the text in 20 pieces read side by side, each with its state carried along."""
        length = (len(ids) - 1) // streams
        inputs, targets = (ids[shift : shift + streams * length].view(streams, length) for shift in (0, 1))
        total, state = 0.0, None
        for start in range(0, length, 100):
            logits, state = model(inputs[:, start : start + 100], state)
            wanted = targets[:, start : start + 100].flatten()
            total += cross_entropy(logits.flatten(0, 1), wanted, reduction="sum").item()
        return math.exp(min(total / targets.numel(), 100))

    def dev(self, model: nn.Module) -> float:
        return self.perplexity(model, self.dev_ids)

    def test(self, model: nn.Module) -> dict[str, float]:
        return {"perplexity": self.perplexity(model, self.test_ids)}


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, "folder with valid.txt and test.txt, plain or .xz").parse_args(argv)
    compare(LanguageModelling(args.data, *((6000, 32) if args.smoke else ())), args)


if __name__ == "__main__":
    main()
