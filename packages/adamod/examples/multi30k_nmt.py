"""German-English translation with a Transformer: AdaMod against Adam with and without a warm-up, in BLEU.

    python multi30k_nmt.py --data DIR            # train.de train.en val.* test_2016_flickr.*, plain or .xz
    python multi30k_nmt.py --data bentrevett/multi30k
    python multi30k_nmt.py --data DIR --width 512 --layers 6 --ffn 1024 --steps 20000 --lrs 5e-4   # for a GPU

Post-LN, label smoothing .1, dropout .3, betas (.9, .98), weight decay 1e-4, and a learning rate that is constant for
the first 8 % of the steps and falls with their inverse square root after: the published IWSLT'14 settings, made small.
The defaults take about a minute per run on one core and stop long before the end of training.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _experiment import arguments, evaluating, experiment, hub, optimizer_for, parse, positive, read_text
from _report import Measure, draw_curves, draw_ranking, save
from matplotlib.figure import Figure
from sacrebleu import corpus_bleu
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Words = list[str]
Pairs = list[tuple[Words, Words]]  # German, English
PAD, BOS, EOS, UNK = range(4)
LOSS = Measure("val_loss", "validation loss (nats per word)", higher=False)
BLEU = Measure("bleu", "test BLEU", higher=True, digits=2)


def read_pairs(data: str | None) -> tuple[Pairs, Pairs, Pairs]:
    """Training, validation and test pairs, lower-cased; files are taken as tokenised, the hub's texts are not."""
    if data is None:
        return numerals(1500, 0), numerals(100, 1), numerals(100, 2)
    folder = Path(data)
    if not any(folder.glob("train.de*")):
        splits = hub(data)
        train, val, test = (tokenised(splits[name]) for name in ("train", "validation", "test"))
        return train, val, test

    def read(stem: str) -> Pairs:
        german, english = (lines(folder / f"{stem}.{language}") for language in ("de", "en"))
        if len(german) != len(english):
            raise ValueError(f"{stem} must have as many German as English lines, got {len(german)} and {len(english)}")
        return list(zip(german, english, strict=True))

    return read("train"), read("val"), read("test_2016_flickr")


def lines(path: Path) -> list[Words]:
    path = path if path.exists() else path.with_name(f"{path.name}.xz")
    return [line.split() for line in read_text(path).lower().splitlines()]


def tokenised(rows: Any) -> Pairs:
    def words(text: str) -> Words:
        return re.findall(r"\w+|[^\w\s]", text.lower())

    pairs = (row.get("translation", row) for row in rows)
    return [(words(pair["de"]), words(pair["en"])) for pair in pairs]


def numerals(count: int, seed: int) -> Pairs:
    """The built-in language pair: numbers in words, `zwei hundert drei und vierzig` is `two hundred forty three`."""
    de = ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]
    en = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    tens_de = ["_", "_", "zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]
    tens_en = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    draw, pairs = random.Random(seed), []
    for _ in range(count):
        hundreds, tens, units = draw.randint(1, 9), draw.randint(2, 9), draw.randint(1, 9)
        german = [de[hundreds], "hundert", de[units], "und", tens_de[tens]]
        pairs.append((german, [en[hundreds], "hundred", tens_en[tens], en[units]]))
    return pairs


class Vocabulary:
    """Words seen at least `least` times in training; all others are one unknown word, which counts as wrong."""

    def __init__(self, sentences: Sequence[Words], least: int) -> None:
        counts = Counter(word for sentence in sentences for word in sentence)
        self.words = ["<pad>", "<bos>", "<eos>", "<unk>", *(w for w, n in counts.most_common() if n >= least)]
        self.codes = {word: code for code, word in enumerate(self.words)}

    def encode(self, sentence: Words) -> Tensor:
        return torch.tensor([BOS, *(self.codes.get(word, UNK) for word in sentence), EOS])

    def decode(self, codes: Sequence[int]) -> str:
        return " ".join(self.words[code] for code in codes)


class Translator(nn.Module):
    """The Transformer of 2017 (post-LN) with learned positions; target embedding and output share their weights."""

    def __init__(self, source: int, target: int, width: int, layers: int, ffn: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(source, width), nn.Embedding(target, width)
        self.positions, self.dropout, self.scale = nn.Embedding(256, width), nn.Dropout(dropout), math.sqrt(width)
        self.transformer = nn.Transformer(width, 4, layers, layers, ffn, dropout, batch_first=True)
        for layer in [*self.transformer.encoder.layers, *self.transformer.decoder.layers]:
            layer.dropout.p = 0.0  # as published, no dropout inside the feed-forward and attention layers
            for attention in (layer.self_attn, getattr(layer, "multihead_attn", layer.self_attn)):
                attention.dropout = 0.0
        for embedding in (self.source, self.target, self.positions):
            nn.init.normal_(embedding.weight, std=width**-0.5)

    def embed(self, embedding: nn.Embedding, codes: Tensor) -> Tensor:
        places = self.positions.weight[: codes.shape[1]]
        return self.dropout(self.scale * (embedding(codes) + places))  # type: ignore[no-any-return]

    def encode(self, source: Tensor) -> Tensor:
        return self.transformer.encoder(  # type: ignore[no-any-return]
            self.embed(self.source, source), src_key_padding_mask=source == PAD
        )

    def decode(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        ahead = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool, device=target.device).triu(1)
        return self.transformer.decoder(  # type: ignore[no-any-return]
            self.embed(self.target, target), memory, tgt_mask=ahead, memory_key_padding_mask=source == PAD
        )

    def loss(self, source: Tensor, target: Tensor, smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
        states = self.decode(target[:, :-1], self.encode(source), source)
        wanted = target[:, 1:]
        real = wanted != PAD  # the padding costs no output layer
        logits = states[real] @ self.target.weight.T
        return nn.functional.cross_entropy(logits, wanted[real], label_smoothing=smoothing, reduction=reduction)

    def translate(self, source: Tensor, longest: int = 60) -> list[list[int]]:
        """Greedy decoding."""
        memory = self.encode(source)
        target = torch.full((len(source), 1), BOS, device=source.device)
        done = torch.zeros(len(source), dtype=torch.bool, device=source.device)
        while not done.all() and target.shape[1] <= min(longest, source.shape[1] + 20):
            logits = self.decode(target, memory, source)[:, -1] @ self.target.weight.T
            word = logits.argmax(1).masked_fill(done, PAD)
            target = torch.cat([target, word[:, None]], 1)
            done |= word == EOS
        return [[code for code in line if code > EOS] for line in target.tolist()]


def padded(pairs: Sequence[tuple[Tensor, Tensor]], device: str) -> tuple[Tensor, Tensor]:
    source, target = (nn.utils.rnn.pad_sequence(list(side), True, PAD) for side in zip(*pairs, strict=True))
    return source.to(device), target.to(device)


def batches(pairs: Sequence[tuple[Tensor, Tensor]], size: int, seed: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Endless batches of sentences of like length: pools of fifty batches are sorted, cut, and shuffled."""
    draw = random.Random(seed)
    while True:
        order = draw.sample(pairs, len(pairs))
        for start in range(0, len(order), 50 * size):
            pool = sorted(order[start : start + 50 * size], key=lambda pair: len(pair[0]))
            cuts = [pool[i : i + size] for i in range(0, len(pool), size)]
            yield from draw.sample(cuts, len(cuts))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(
        __doc__.splitlines()[0],
        data="folder with train.de, train.en, val.* and test_2016_flickr.* (plain or .xz), or a Hugging Face data set",
        optimizers="AdamW AdamW+warmup RAdam AdaMod-.99 AdaMod AdaMod-.9999 AdaMod-paper AdaMod-bf16 AdaMod-int8",
        lrs=[1e-3, 3e-3, 1e-2],
        search_seeds=1,
    )
    parser.add_argument("--steps", type=positive, default=700)
    parser.add_argument("--batch", type=positive, default=32, help="sentences per step")
    parser.add_argument("--width", type=positive, default=64, help="of the model, a multiple of 4")
    parser.add_argument("--layers", type=positive, default=2, help="of the encoder and of the decoder")
    parser.add_argument("--ffn", type=positive, default=128, help="width of the feed-forward layers")
    parser.add_argument("--min-frequency", type=positive, default=5, help="of a word in the vocabulary")
    small = {"seeds": 2, "steps": 40, "width": 32, "layers": 1, "ffn": 64}
    args = parse(parser, argv, optimizers=["AdamW", "AdaMod"], lrs=[1e-2], sgd_lrs=[1e-1], **small)

    torch.backends.mha.set_fastpath_enabled(False)  # inference by nested tensors, a prototype that warns
    texts = read_pairs(args.data)
    german, english = (Vocabulary([pair[side] for pair in texts[0]], args.min_frequency) for side in (0, 1))
    train, val, test = ([(german.encode(de)[:256], english.encode(en)[:256]) for de, en in pairs] for pairs in texts)
    references = [" ".join(pair[1]) for pair in texts[2]]
    hold, every = max(1, args.steps * 8 // 100), max(1, args.steps // 10)

    def run(name: str, lr: float, seed: int, tick: Callable[[float], None]) -> dict[str, Any]:
        model = Translator(len(german.words), len(english.words), args.width, args.layers, args.ffn).to(args.device)
        optimizer, schedule = optimizer_for(
            name, model, lr, betas=(0.9, 0.98), weight_decay=1e-4, warmup=hold,
            decay=lambda step: math.sqrt(hold / max(hold, step + 1)),
        )  # fmt: skip
        curve, source = [], batches(train, args.batch, seed)
        for step in range(1, args.steps + 1):
            loss = model.loss(*padded(next(source), args.device), smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            tick(loss.item())
            if step % every == 0:
                with evaluating(model, optimizer):
                    curve.append(evaluate(model, val, args.device))
        with evaluating(model, optimizer):
            translations = translate(model, [de for de, _ in test], english, args.device)
        bleu = corpus_bleu(translations, [references], tokenize="none", force=True).score
        return {"val_loss": curve[-1], "bleu": bleu, "val_curve": curve, "examples": translations[:3]}

    report = experiment("multi30k_nmt", args, run, steps=args.steps, select=LOSS, measures=[LOSS, BLEU])

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_ranking(left, report["best"], BLEU)
    left.set_title("Each at its best learning rate")
    steps = range(every, args.steps + 1, every)
    draw_curves(right, report["runs"], report["best"], "val_curve", steps)
    right.set(title="Validation while training", xlabel="step", ylabel=LOSS.label)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return save(report, figure, args.out)


def evaluate(model: Translator, pairs: list[tuple[Tensor, Tensor]], device: str) -> float:
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))
    words = sum(len(target) - 1 for _, target in pairs)
    cuts = (padded(pairs[i : i + 64], device) for i in range(0, len(pairs), 64))
    return sum(model.loss(*cut, reduction="sum").item() for cut in cuts) / words


def translate(model: Translator, sources: list[Tensor], vocabulary: Vocabulary, device: str) -> list[str]:
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    translations = [""] * len(sources)
    for start in range(0, len(order), 100):
        part = order[start : start + 100]
        batch = nn.utils.rnn.pad_sequence([sources[i] for i in part], True, PAD).to(device)
        for i, codes in zip(part, model.translate(batch), strict=True):
            translations[i] = vocabulary.decode(codes)
    return translations


if __name__ == "__main__":
    main()
