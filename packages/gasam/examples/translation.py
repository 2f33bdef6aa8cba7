"""A small Transformer that translates short sentences: the BLEU that SAM and GA-SAM reach beside Adam.

    python translation.py                  # numbers in words: nothing to download
    python translation.py --data FOLDER    # Multi30k: train.en, train.de, val.*, test_2016_flickr.*, plain or .xz

English to German. Multi30k is cut to its first 2000 pairs of at most 8 words.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from _training import Batch, arguments, compare, read_text
from sacrebleu import corpus_bleu
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Pairs = list[tuple[list[str], list[str]]]  # English, German
Codes = list[tuple[Tensor, Tensor]]
PAD, BOS, EOS, UNK = range(4)
LONGEST = 8  # words of a sentence


class Translator(nn.Module):
    """A pre-norm Transformer with learned positions; the target's embedding is the output layer too."""

    def __init__(self, source: int, target: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(source, width), nn.Embedding(target, width)
        self.positions, self.dropout = nn.Embedding(2 * LONGEST, width), nn.Dropout(dropout)
        options = {"d_model": width, "nhead": 4, "dropout": dropout, "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(dim_feedforward=2 * width, **options)
        encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.transformer = nn.Transformer(
            num_decoder_layers=layers, dim_feedforward=2 * width, custom_encoder=encoder, **options
        )
        for embedding in (self.source, self.target, self.positions):
            nn.init.normal_(embedding.weight, std=width**-0.5)

    def embed(self, embedding: nn.Embedding, codes: Tensor) -> Tensor:
        places = self.positions.weight[: codes.shape[1]]
        return self.dropout(math.sqrt(places.shape[1]) * (embedding(codes) + places))  # type: ignore[no-any-return]

    def encode(self, source: Tensor) -> Tensor:
        embedded = self.embed(self.source, source)
        return self.transformer.encoder(embedded, src_key_padding_mask=source == PAD)  # type: ignore[no-any-return]

    def forward(self, source: Tensor, target: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = self.encode(source) if memory is None else memory
        ahead = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        embedded = self.embed(self.target, target)
        out = self.transformer.decoder(embedded, memory, tgt_mask=ahead, memory_key_padding_mask=source == PAD)
        return out @ self.target.weight.T  # type: ignore[no-any-return]


class Translation:
    lr, rho, epochs, size = 3e-3, 0.05, 6, 32
    base = torch.optim.Adam

    def __init__(self, folder: Path | None, count: int = 2000, width: int = 64, layers: int = 1) -> None:
        self.options: dict[str, Any] = {"betas": (0.9, 0.98)}
        train, dev, test = read_pairs(folder)
        train = train[:count]
        self.vocabularies = [vocabulary([pair[side] for pair in train]) for side in (0, 1)]
        self.train, self.dev_set, self.test_set = (self.encode(part) for part in (train, dev, test))
        self.references = [" ".join(german) for _, german in test]
        self.width, self.layers = width, layers

    def encode(self, pairs: Pairs) -> Codes:
        def codes(side: int, words: list[str]) -> Tensor:
            known = self.vocabularies[side]
            return torch.tensor([BOS, *(known.get(word, UNK) for word in words), EOS])

        return [(codes(0, english), codes(1, german)) for english, german in pairs]

    def model(self) -> Translator:
        source, target = (len(known) + 4 for known in self.vocabularies)
        return Translator(source, target, self.width, self.layers, 0.2)

    def batches(self, draw: random.Random) -> Iterator[Batch]:
        order = draw.sample(self.train, len(self.train))
        for start in range(0, len(order), self.size):
            yield padded(order[start : start + self.size])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.cost(model, batch, label_smoothing=0.1)

    @staticmethod
    def cost(model: nn.Module, batch: Batch, **options: Any) -> Tensor:
        source, target = batch
        logits, wanted = model(source, target[:, :-1]), target[:, 1:]
        return cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD, **options)

    def perplexity(self, model: nn.Module, pairs: Codes) -> float:
        batches = [padded(pairs[i : i + 100]) for i in range(0, len(pairs), 100)]
        loss = sum(self.cost(model, batch, reduction="sum").item() for batch in batches)
        return math.exp(loss / sum(len(target) - 1 for _, target in pairs))

    def dev(self, model: nn.Module) -> float:
        return self.perplexity(model, self.dev_set)

    def test(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Translator)
        words = dict(enumerate(self.vocabularies[1], 4))
        found = []
        for start in range(0, len(self.test_set), 100):
            source, _ = padded(self.test_set[start : start + 100])
            found += [" ".join(words.get(code, "?") for code in line) for line in greedy(model, source)]
        bleu = corpus_bleu(found, [self.references], tokenize="none", force=True).score
        return {"perplexity": self.perplexity(model, self.test_set), "BLEU": bleu}


def greedy(model: Translator, source: Tensor) -> list[list[int]]:
    """The codes of the likeliest words, one after another, up to the end of each sentence."""
    memory, target = model.encode(source), torch.full((len(source), 1), BOS)
    while target.shape[1] < 2 * LONGEST and not (target == EOS).any(1).all():
        word = model(source, target, memory)[:, -1].argmax(1)
        target = torch.cat([target, word[:, None]], 1)
    lines = target[:, 1:].tolist()
    return [line[: line.index(EOS)] if EOS in line else line for line in lines]


def padded(pairs: Codes) -> Batch:
    return tuple(pad_sequence(list(side), True, PAD) for side in zip(*pairs, strict=True))


def vocabulary(sentences: list[list[str]]) -> dict[str, int]:
    """The codes of words seen three times or more."""
    seen = Counter(word for sentence in sentences for word in sentence)
    return {word: code for code, word in enumerate((word for word, n in seen.most_common() if n > 2), 4)}


def read_pairs(folder: Path | None) -> tuple[Pairs, Pairs, Pairs]:
    """Pairs to train, to choose and to test with, none longer than the limit."""
    if folder is None:
        return numerals(1500, 0), numerals(100, 1), numerals(100, 2)

    def read(stem: str) -> Pairs:
        english, german = (read_text(folder / f"{stem}.{language}").lower().splitlines() for language in ("en", "de"))
        pairs = [(en.split(), de.split()) for en, de in zip(english, german, strict=True)]
        return [pair for pair in pairs if max(map(len, pair)) <= LONGEST]

    return read("train"), read("val"), read("test_2016_flickr")


def numerals(count: int, seed: int) -> Pairs:
    """Numbers in words: `two hundred forty three` is `zwei hundert drei und vierzig`."""
    en = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    de = ["ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]
    tens_en = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    tens_de = ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]
    draw, pairs = random.Random(seed), []
    for _ in range(count):
        hundreds, tens, units = draw.randrange(9), draw.randrange(8), draw.randrange(9)
        german = [de[hundreds], "hundert", de[units], "und", tens_de[tens]]
        pairs.append(([en[hundreds], "hundred", tens_en[tens], en[units]], german))
    return pairs


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, "folder of train, val and test_2016_flickr, .en and .de").parse_args(argv)
    compare(Translation(args.data), args)


if __name__ == "__main__":
    main()
