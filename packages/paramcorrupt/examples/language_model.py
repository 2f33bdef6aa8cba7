"""A word-level LSTM language model: which of its tensors is fragile, and what chance alone would do.

    python language_model.py                  # the language manual within Python: nothing to download
    python language_model.py --data FOLDER    # WikiText-2, minutes: trained on valid.txt, measured on test.txt
    python language_model.py --html scan.html # the page

Every weight counts once, also the embedding that is the output layer too.
"""

from __future__ import annotations

import lzma
import math
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import paramcorrupt
from paramcorrupt import Objective, relative

if TYPE_CHECKING:
    from collections.abc import Sequence

SPAN = 35  # words that a gradient reaches back


class Model(nn.Module):
    """Two LSTM layers; the embedding is the output layer too."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.dropout = nn.Dropout(0.3)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.output = nn.Linear(width, words)
        self.output.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, words: Tensor) -> Tensor:
        out, _ = self.lstm(self.dropout(self.embedding(words)))
        return self.output(self.dropout(out))


def read(folder: Path, name: str) -> list[str]:
    plain, packed = folder / name, folder / f"{name}.xz"
    text = (plain.read_bytes() if plain.exists() else lzma.decompress(packed.read_bytes())).decode()
    return text.replace("\n", " <eos> ").split()


def texts(folder: Path | None) -> tuple[list[str], list[str]]:
    """The words to train on, and those to measure with."""
    if folder is not None:
        return read(folder, "valid.txt"), read(folder, "test.txt")
    manual = " ".join(topics[key] for key in sorted(topics)).lower().split()
    cut = len(manual) * 3 // 4
    return manual[:cut], manual[cut:]


def rows(ids: Tensor, batch: int) -> list[Tensor]:
    """Batches of pieces of text, the last one short."""
    pieces = ids[: len(ids) // (SPAN + 1) * (SPAN + 1)].view(-1, SPAN + 1)
    return list(pieces.split(batch))


def step(model: nn.Module, batch: Tensor) -> tuple[Tensor, int, int]:
    """The sum of the losses of the words, their number, and how many are predicted right."""
    logits, wanted = model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
    right = int((logits.argmax(1) == wanted).sum())
    return cross_entropy(logits, wanted, reduction="sum"), wanted.numel(), right


def train(model: nn.Module, batches: Sequence[Tensor], epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs * len(batches))
    for epoch in range(epochs):
        for i in torch.randperm(len(batches), generator=torch.Generator().manual_seed(epoch)).tolist():
            loss, words, _ = step(model, batches[i])
            optimizer.zero_grad()
            (loss / words).backward()
            optimizer.step()
            schedule.step()


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with valid.txt and test.txt, plain or .xz")
    parser.add_argument("--html", type=Path, help="write the page here")
    parser.add_argument("--smoke", action="store_true", help="in a second, to see that it runs")
    args = parser.parse_args(argv)
    words, held = texts(args.data)
    words, held = (words[:4000], held[:2000]) if args.smoke else (words, held[:60_000])
    known = ["<unk>", *(word for word, count in Counter(words).most_common() if count > 1 and word != "<unk>")]
    codes = {word: code for code, word in enumerate(known)}
    ids, held_ids = (torch.tensor([codes.get(word, 0) for word in text]) for text in (words, held))

    torch.manual_seed(0)
    model = Model(len(codes), 16 if args.smoke else 96)
    train(model, rows(ids, 20), 1 if args.smoke else 6)

    data, objective = rows(held_ids, 100), Objective(step)
    report = paramcorrupt.scan(model, objective, data, eps=relative(0.02), verify=5, random=2)
    for row in report.rows()[:5]:
        print(f"{row['group']:<24} predicted +{row['predicted']:.4f}, measured +{row['measured']:.4f} nats per word")
    if args.html:
        report.to_html(args.html)

    for result in paramcorrupt.indicator(model, objective, data, eps=[0.25, 0.5, 1.0]):
        clean, corrupted = math.exp(result.loss), math.exp(min(result.loss_corrupted, 50))
        print(f"worst step of length {result.corruption.eps:g}: perplexity {clean:.1f} -> {corrupted:.1f}")


if __name__ == "__main__":
    main()
