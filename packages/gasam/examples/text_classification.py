"""Polarity of sentences by an LSTM or a TextCNN: the error that SAM and GA-SAM reach beside their base optimizer.

python text_classification.py                                  # generated sentences: nothing to download
python text_classification.py --data sentence_polarity.zip     # MR, as NLTK packs it; a third is the test set
python text_classification.py --data FOLDER --model cnn        # SST-2: train.tsv, dev.tsv, test.tsv (label, text)
"""

from __future__ import annotations

import random
import zipfile
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from _training import Batch, arguments, compare
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Sentence = tuple[int, list[str]]  # its label and its words
LONGEST = 40  # words of a sentence that are read


class LSTM(nn.Module):
    """The maximum over time of an LSTM's states. Code 0 is padding, at the end."""

    def __init__(self, words: int, width: int = 64) -> None:
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(words, width, padding_idx=0), nn.Dropout(0.5)
        self.lstm, self.output = nn.LSTM(width, width, batch_first=True), nn.Linear(width, 2)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, words: Tensor) -> Tensor:
        states, _ = self.lstm(self.dropout(self.embedding(words)))
        pooled = states.masked_fill((words == 0)[..., None], -1).amax(1)
        return self.output(self.dropout(pooled))  # type: ignore[no-any-return]


class TextCNN(nn.Module):
    """The maxima over time of convolutions over 3, 4 and 5 words."""

    def __init__(self, words: int, width: int = 64, channels: int = 32) -> None:
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(words, width, padding_idx=0), nn.Dropout(0.5)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, channels, span, padding=span // 2) for span in (3, 4, 5))
        self.output = nn.Linear(3 * channels, 2)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, words: Tensor) -> Tensor:
        x = self.dropout(self.embedding(words)).transpose(1, 2)
        pooled = [convolution(x).relu().amax(2) for convolution in self.convolutions]
        return self.output(self.dropout(torch.cat(pooled, 1)))  # type: ignore[no-any-return]


MODELS = {"lstm": LSTM, "cnn": TextCNN}


class Polarity:
    lr, rho, epochs, size = 4e-3, 0.05, 4, 50
    base = torch.optim.Adam

    def __init__(self, data: Path | None, model: str = "lstm") -> None:
        self.options: dict[str, Any] = {}
        train, dev, tested = self.splits(data)
        seen = Counter(word for _, sentence in train for word in sentence)
        words = [word for word, count in seen.most_common() if count > 1]
        self.codes = {word: code for code, word in enumerate(words, 2)}  # 0 is padding, 1 any other word
        self.kind = MODELS[model]
        self.train, self.dev_set, self.test_set = ([self.encode(x) for x in part] for part in (train, dev, tested))

    @staticmethod
    def splits(data: Path | None) -> tuple[list[Sentence], list[Sentence], list[Sentence]]:
        if data is not None and data.is_dir():
            lines = [(data / f"{name}.tsv").read_text("utf-8").splitlines() for name in ("train", "dev", "test")]
            pairs = [[line.lower().split("\t", 1) for line in part if line] for part in lines]
            train, dev, tested = ([(int(label), text.split()) for label, text in part] for part in pairs)
            return train, dev, tested
        sentences = generated(3000) if data is None else packed(data)
        random.Random(0).shuffle(sentences)
        cut = len(sentences) // 9
        return sentences[4 * cut :], sentences[:cut], sentences[cut : 4 * cut]

    def encode(self, sentence: Sentence) -> tuple[int, Tensor]:
        label, words = sentence
        codes = [self.codes.get(word, 1) for word in words[:LONGEST]]
        return label, torch.tensor(codes + [0] * (5 - len(codes)))

    def model(self) -> nn.Module:
        return self.kind(len(self.codes) + 2)

    def batches(self, draw: random.Random) -> Iterator[Batch]:
        """Sentences of like length: pools of twenty batches are sorted, cut, and shuffled."""
        order = draw.sample(self.train, len(self.train))
        for start in range(0, len(order), 20 * self.size):
            pool = sorted(order[start : start + 20 * self.size], key=lambda example: len(example[1]))
            cuts = [pool[i : i + self.size] for i in range(0, len(pool), self.size)]
            for cut in draw.sample(cuts, len(cuts)):
                yield self.collate(draw.sample(cut, len(cut)))

    @staticmethod
    def collate(examples: Sequence[tuple[int, Tensor]]) -> Batch:
        labels, words = zip(*examples, strict=True)
        return torch.tensor(labels), pad_sequence(list(words), batch_first=True)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        labels, words = batch
        return cross_entropy(model(words), labels)

    def measure(self, model: nn.Module, examples: list[tuple[int, Tensor]]) -> tuple[float, float]:
        """The mean loss and the error in per cent."""
        ordered, loss, wrong = sorted(examples, key=lambda example: len(example[1])), 0.0, 0
        for start in range(0, len(ordered), 200):
            labels, words = self.collate(ordered[start : start + 200])
            logits = model(words)
            loss += cross_entropy(logits, labels, reduction="sum").item()
            wrong += int((logits.argmax(1) != labels).sum())
        return loss / len(ordered), 100 * wrong / len(ordered)

    def dev(self, model: nn.Module) -> float:
        return self.measure(model, self.dev_set)[1]

    def test(self, model: nn.Module) -> dict[str, float]:
        loss, error = self.measure(model, self.test_set)
        return {"error": error, "loss": loss}


def packed(path: Path) -> list[Sentence]:
    """The sentences of NLTK's sentence_polarity.zip: a file for each class, a sentence on each line."""
    sentences = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith((".neg", ".pos")):
                text = archive.read(name).decode("latin-1").lower()
                sentences += [(int(name.endswith(".pos")), line.split()) for line in text.splitlines() if line.strip()]
    return sentences


def generated(count: int) -> list[Sentence]:
    """Sentences whose polarity a negation turns, among words that say nothing."""
    draw, kinds = random.Random(0), (["dull", "bland", "clumsy", "tired"], ["witty", "tender", "bold", "fresh"])
    fillers = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("an", "el", "in", "or", "us")]
    sentences = []
    for _ in range(count):
        label, turned = draw.randint(0, 1), draw.random() < 0.5
        core = ["not"] * turned + [draw.choice(kinds[label ^ turned])]
        before, after = (draw.choices(fillers, k=draw.randint(2, 8)) for _ in range(2))
        sentences.append((label if draw.random() < 0.95 else 1 - label, before + core + after))
    return sentences


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "sentence_polarity.zip, or a folder of train.tsv, dev.tsv and test.tsv")
    parser.add_argument("--model", choices=MODELS, default="lstm")
    args = parser.parse_args(argv)
    compare(Polarity(args.data, args.model), args)


if __name__ == "__main__":
    main()
