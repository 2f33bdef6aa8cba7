"""How fast segmenters learn, from nothing and from corrections, and that threads change no bit of what they learn."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from corpora import CLOSED, Words, corpora, made_up
from harness import (
    Context,
    Figure,
    MissingError,
    Outcome,
    Study,
    UnequalError,
    Workload,
    at_least,
    at_most,
    median_interval,
)

from cws_multidomain import Segmenter, fine_tune, train

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = ("cws-multidomain", "numpy", "spacy-pkuseg")
OURS, PKUSEG = "cws-multidomain", "spacy-pkuseg"


def sentences(context: Context, characters: int) -> tuple[list[Words], str]:
    """So many characters: of the corpora of --data, then made up."""
    chosen: list[Words] = []
    with suppress(MissingError):
        sets = corpora(context.data)
        chosen = [words for name in CLOSED for words in (*sets[name].train, *sets[name].test)]
        chosen = chosen[:: max(1, sum(len("".join(words)) for words in chosen) // characters)]
    real = sum(len("".join(words)) for words in chosen)
    if real < characters:
        chosen = chosen + made_up(characters - real, seed=2)
    while sum(len("".join(words)) for words in chosen) > 1.05 * characters:
        chosen = chosen[: int(0.97 * len(chosen))]
    share = min(1.0, real / characters)
    return chosen, "made up" if not real else "real text" if share == 1 else f"{100 * share:.0f} % real text"


def size(corpus: list[Words]) -> int:
    return sum(len(word) for words in corpus for word in words)


def cpu(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


# --- against spacy-pkuseg ---

_PKUSEG = """
import sys, time, spacy_pkuseg
start = time.process_time()
spacy_pkuseg.train(sys.argv[1], sys.argv[2], sys.argv[3], train_iter=int(sys.argv[4]))
print("CPU", time.process_time() - start)
"""


def train_pkuseg(corpus: list[Words], directory: Path, epochs: int) -> tuple[Path, float]:
    """Its model, trained in a process of its own since it writes files and prints, and the CPU seconds of that."""
    text, short, model = directory / "train.txt", directory / "test.txt", directory / "model"
    for path, part in ((text, corpus), (short, corpus[:2])):
        path.write_text("".join(" ".join(words) + "\n" for words in part), encoding="utf-8")
    command = [sys.executable, "-c", _PKUSEG, *map(str, (text, short, model, epochs))]
    environment = {**os.environ, "TMPDIR": str(directory)}
    done = subprocess.run(command, check=True, capture_output=True, cwd=directory, env=environment)
    return model, float(done.stdout.split()[-1])


def against_pkuseg(context: Context, outcome: Outcome) -> None:
    import spacy_pkuseg  # noqa: F401

    corpus, source = sentences(context, context.pick(600, 35_000, 150_000))
    epochs, rounds = context.pick((1, 1), (5, 1), (20, 2))
    times: dict[str, list[float]] = {OURS: [], PKUSEG: []}
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in (OURS, PKUSEG) if number % 2 == 0 else (PKUSEG, OURS):
                mine = name == OURS
                spent = cpu(lambda: train(corpus, epochs=epochs, threads=1)) if mine else 0.0
                times[name].append(spent if mine else train_pkuseg(corpus, Path(folder), epochs)[1])
        context.progress((number + 1) / rounds)
    ratios = [b / a for a, b in zip(times[OURS], times[PKUSEG], strict=True)]
    target = at_least(100) if context.profile == "full" else None  # a few epochs are mostly preparation
    figure = Figure("", OURS, PKUSEG, "x the characters/s", *median_interval(ratios), target, headline=True)
    figure.samples = [round(ratio, 3) for ratio in ratios]
    figure.note = f"{size(corpus):,} characters, {source}; {epochs} epochs, from the file or lists to the model"
    outcome.figures.append(figure)
    outcome.clock = "CPU time of train() on both sides"
    for name, spent in times.items():
        outcome.bars[name] = epochs * size(corpus) / min(spent) / 1e3
    outcome.bars_unit = "thousand characters x epochs per second, one core, features extracted anew"


# --- alone ---


def pace(context: Context, outcome: Outcome) -> None:
    """All of train(): encoding, features, jackknife, epochs, packing."""
    wanted = context.pick(2000, 400_000, 4_000_000)
    corpus, source = sentences(context, wanted)
    spent = cpu(lambda: train(corpus, epochs=20, threads=1))
    figure = Figure("20 epochs on 4 million characters", OURS, "", " s CPU", spent, target=at_most(60))
    figure.note = f"{source}, one core"
    if wanted < 4_000_000:
        figure.value = spent * 4e6 / size(corpus)
        figure.note += f"; in proportion, from {size(corpus):,} characters in {spent:.1f} s"
    outcome.figures.append(figure)
    speed = 20 * size(corpus) / spent / 1e6
    outcome.figures.append(Figure("characters x epochs", OURS, "", " million/s", speed))


def corrections(context: Context, outcome: Outcome) -> None:
    """100 sentences that the shipped model gets wrong, from now on right."""
    start = Segmenter.load()
    pool = made_up(20_000, seed=3)
    with suppress(MissingError):
        pool = corpora(context.data)["Zhuxian"].train
    wrong = [words for words in pool if 8 <= len(words) <= 60 and start.cut("".join(words)) != words][:100]
    texts = ["".join(words) for words in wrong]
    walls, cpus, made = [], [], []
    for _ in range(context.pick(1, 3, 7)):
        begun = time.perf_counter()
        cpus.append(cpu(lambda: made.append(fine_tune(start, wrong, domain="corrected"))))
        walls.append(time.perf_counter() - begun)
    right = sum(a == b for a, b in zip(made[0].with_domain("corrected").cut_many(texts), wrong, strict=True))
    before, after = (model.with_domain("general").cut_many(texts) for model in (start, made[0]))
    moved = sum(a != b for a, b in zip(before, after, strict=True))
    if right < len(wrong) / 2 or moved > len(wrong) / 20:
        raise UnequalError(f"{right} of {len(wrong)} sentences were corrected, and {moved} changed in general")
    outcome.equal = (
        f"{right} of {len(wrong)} sentences are now right in their domain. In general, whose weights stay but for the "
        f"int8 scale, {moved} changed."
    )
    figure = Figure(f"fine-tuning from {len(wrong)} sentences", OURS, "", " s CPU", *median_interval(cpus), at_most(1))
    figure.note = f"{size(wrong):,} characters; wall {min(walls):.2f} s"
    outcome.figures.append(figure)


def same_bits(context: Context, outcome: Outcome) -> None:
    """Two domains, 8 sentences at a time; one shard as well."""
    corpus, _ = sentences(context, context.pick(1500, 20_000, 100_000))
    domains = {"a": corpus[::2], "b": corpus[1::2]}
    for shards in (1, 8):
        models = []
        for threads in (1, 2, 16):
            segmenter = train(domains, epochs=3, threads=threads, shards=shards)
            with tempfile.TemporaryDirectory() as folder:
                segmenter.save(Path(folder, "model.cws"))
                models.append(Path(folder, "model.cws").read_bytes())
        if len(set(models)) != 1:
            raise UnequalError(f"models trained by 1, 2 and 16 threads differ with {shards} shards")
    outcome.equal = "Model files trained with 1, 2 and 16 threads: equal byte for byte, with 1 and with 8 shards."
    outcome.figures.append(Figure("", "1, 2 and 16 threads", "", note="equal bytes", verdict="met"))


WORKLOADS: tuple[Workload, ...] = (
    Study("training", "The same sentences and epochs, one core.", against_pkuseg),
    Study("training alone", "One domain, default options, one core.", pace),
    Study("fine-tuning", "From sentences that the shipped model cuts wrong, into a domain of their own.", corrections),
    Study("training, bit for bit", "What threads must not change.", same_bits),
)
