"""Training by several processes, on one machine or many: each has a part of the corpus, vectors are averaged."""

from __future__ import annotations

from dataclasses import replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from ._checks import check_integer
from ._corpus import count
from ._rows import exported, rounded
from ._state import begun, check_images
from ._team import Team
from ._training import Place, Plan, Totals, Trainer
from ._vocabulary import Counts, Vocabulary, choose

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from ._corpus import CacheDir, Corpus, Tokens
    from ._options import Options
    from .bank import ImageBank
    from .model import ImageSkipGram

__all__ = ["fit"]

_OWN = ("callbacks", "trim_rule", "workers")  # options in which processes may differ
_FASTEST = 0.2  # rate: 8 parts of 860,000 tokens were as good as one process with it, 16 diverged with twice as much


def fit(
    model: ImageSkipGram,
    corpus_shard: Corpus,
    images: ImageBank | None = None,
    *,
    group: Any = None,
    sync_every: int = 1_000_000,
    text_column: str = "text",
    cache_dir: CacheDir = None,
    progress: bool = False,
) -> ImageSkipGram:
    """Train one model by all processes of a group; each calls this with its own part of the corpus.

    The words of all parts make one vocabulary, that of the parts one after another. Every process trains its part with
    its own threads; all come to the same share of their parts, where vectors are averaged:

        x = sum_r w_r x_r,  w_r = tokens of process r / tokens of all.

    An average of n equal parts moves 1/n as far as one process would that trains them in turn; so rates are multiplied
    by 1 / sum_r w_r^2, which is n for equal parts, but not beyond an `alpha` of 0.2, as 0.4 diverged. With the default
    `alpha` 8 equal parts learn in an epoch what one process would; more are faster still, but need more epochs.

    Samples are those of the whole corpus: they depend on a sentence's place in it, not on processes. In the end all
    have the same bits, of `wv`, `syn1neg`, `image_vectors` and `losses_`. With one process this is `model.fit`.

    Args:
        model: with the same options in all processes; only `workers`, `callbacks` and `trim_rule` may differ (the
            rule of the first process counts). Callbacks are called in all.
        corpus_shard: this process's part, as in `model.fit`; it may be empty.
        images: a bank, the same in all processes, or None.
        group: a process group of torch.distributed (default: that of all processes), with any backend.
        sync_every: tokens, counted over all processes, between two averages (default 1,000,000; an average of 34,000
            words and 100 dimensions, 31 MB, took two processes of one machine as long as training 50,000 tokens). With
            images, vectors are averaged at each 5 % of the training as well, where images are placed anew.
        text_column: as in `model.fit`.
        cache_dir: as in `model.fit`, but the numbers are always kept.
        progress: show a bar in the process with rank 0.

    Returns:
        The model.

    Raises:
        ImportError: torch is missing: `pip install 'imgskipgram[gpu]'`.
        RuntimeError: there is no process group; or another process failed, of which the message has the rank and the
            reason. The model is then as after the last epoch that was finished, in all processes. Where a process is
            killed, the others wait as long as the backend does (the group's `timeout`).
        ValueError: options or banks differ; else as `model.fit`, for all parts together.

    Example: a file that `torchrun --nproc-per-node 4 file.py` runs

        import torch.distributed as processes
        from datasets import load_dataset
        from imgskipgram import ImageSkipGram, distributed

        processes.init_process_group("gloo")
        rows = load_dataset("allenai/c4", "en", split="train", streaming=True)
        part = rows.shard(processes.get_world_size(), processes.get_rank())
        model = distributed.fit(ImageSkipGram(workers=8), part)
        if processes.get_rank() == 0:
            model.save("model.npz")

    Reference:
        Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019; Goyal et al., "Accurate, Large Minibatch
        SGD", arXiv:1706.02677 (2017), for the rates.
    """
    with Team(group) as team:
        sync_every = check_integer("sync_every", sync_every, 1, 2**63 - 1)
        check_images(images)
        if cache_dir is False:
            raise ValueError("cache_dir must be a folder or None where several processes train, got False")
        if team.size == 1:
            return model.fit(corpus_shard, images, text_column=text_column, cache_dir=cache_dir, progress=progress)
        options = model._options
        _check_same(team, options, images)
        found, tokens = count(corpus_shard, options.trim, text_column=text_column, cache_dir=cache_dir)
        vocabulary = _vocabulary(team, found, options)
        tokens.renumber(vocabulary.numbers(found.words))
        sizes = team.gathered((len(tokens.ids), len(tokens.offsets) - 1))
        tokens.first = sum(sentences for _, sentences in sizes[: team.rank])
        grounding = model._ground(images, vocabulary)
        total = sum(size for size, _ in sizes)
        before = dict(vars(model))
        vars(model).update(begun(options, vocabulary))
        model._run(
            before,
            tokens,
            partial(iter, (tokens,)),
            grounding,
            Plan(options.epochs, total, options.alpha, options.min_alpha),
            "exact",
            False,
            partial(
                _Part,
                team=team,
                model=model,
                share=len(tokens.ids) / total,
                faster=_faster([size for size, _ in sizes], options.alpha),
                sync_every=sync_every,
                progress=progress,
            ),
        )
        if (placed := model._placed()) is not None:
            team.spread(*placed)
    return model


class _Part(Trainer):
    """Trains one process's part of the corpus and averages vectors with the others'."""

    def __init__(
        self,
        *arguments: Any,
        team: Team,
        model: ImageSkipGram,
        share: float,
        faster: float,
        sync_every: int,
        progress: bool,
    ) -> None:
        super().__init__(*arguments)
        self._team, self._model, self._share, self._faster = team, model, share, faster
        self._sync_every = sync_every
        self._shown = progress and team.rank == 0

    def epoch(self, feed: Iterable[Tokens], plan: Plan, number: int, wait: Any) -> tuple[Totals, int]:
        """One pass over all parts, and how many tokens they have; the plan is that of all parts."""
        from tqdm import tqdm

        (tokens,) = feed
        own = len(tokens.ids)
        alpha, min_alpha = self._faster * plan.alpha, self._faster * plan.min_alpha
        place = Place(number, alpha, min_alpha, plan.done * own, plan.epochs * own)
        marks = set(plan.marks()) if self._shared is not None else set()
        cuts = sorted(marks.union(range(0, plan.tokens, self._sync_every)))
        sentences = [int(np.searchsorted(tokens.offsets, np.uint64(cut * own // plan.tokens))) for cut in cuts]
        totals = Totals()
        with tqdm(total=plan.tokens, unit="tokens", unit_scale=True, disable=not self._shown) as bar:
            bar.set_description(f"epoch {plan.done + 1}/{plan.epochs}")
            ends = [*zip(cuts[1:], sentences[1:], strict=True), (plan.tokens, len(tokens.offsets) - 1)]
            for cut, begin, (next_cut, end) in zip(cuts, sentences, ends, strict=True):
                if self._shared is not None and cut in marks:
                    self._place(self._shared.pull(self.engine.vectors()))
                part = replace(tokens, offsets=tokens.offsets[begin : end + 1], first=tokens.first + begin)
                totals = totals.plus(wait(partial(self.engine.run, part, self.z, place)))
                self._average()
                bar.update(next_cut - cut)
        return self._together(totals), sum(self._team.gathered(tokens.raw))

    def _average(self) -> None:
        """Vectors become their means, in place; those of 16 bits by way of 32."""
        v, u = self.engine.finish()
        for rows in self._trained(v, u):
            mean = exported(rows, rows.shape[1]) if rows.dtype == np.uint16 else rows
            self._team.average(self._share, mean)
            if mean is not rows:
                rows[...] = rounded(mean, "bfloat16")
        self._begin(v, u)

    def _together(self, totals: Totals) -> Totals:
        """Sums over all parts; and what the first process has takes the others' place, to the last bit."""
        v, u = self.engine.finish()
        self._team.spread(*self._trained(v, u))
        self._begin(v, u)
        return reduce(Totals.plus, self._team.gathered(totals))

    def _trained(self, v: NDArray[Any], u: NDArray[Any]) -> list[NDArray[Any]]:
        return [v, u, self.z] if self._free and self.z is not None else [v, u]

    def _begin(self, v: NDArray[Any], u: NDArray[Any]) -> None:
        self.engine.start(v, u, np.ascontiguousarray(self._model._wv.vectors_lockf, np.float32))


def _faster(sizes: Sequence[int], alpha: float) -> float:
    """What rates are multiplied by, so that an average moves as far as one process would."""
    return min(sum(sizes) ** 2 / sum(size**2 for size in sizes), max(1.0, _FASTEST / alpha))


def _check_same(team: Team, options: Options, images: ImageBank | None) -> None:
    mine = {name: value for name, value in options.arguments().items() if name not in _OWN}
    others = team.gathered({**mine, "images": _digest(images)})
    for name, first in others[0].items():
        for rank, other in enumerate(others):
            if other[name] != first:
                shown = "" if name == "images" else f", got {first!r} with rank 0 and {other[name]!r} with rank {rank}"
                raise ValueError(f"{name} must be the same in all processes{shown}")


def _digest(images: ImageBank | None) -> str | None:
    if images is None:
        return None
    from hashlib import sha256

    digest = sha256(repr((images.features.shape, images.words, images.ids)).encode(errors="surrogatepass"))
    digest.update(images.features.data)
    return digest.hexdigest()


def _vocabulary(team: Team, found: Counts, options: Options) -> Vocabulary:
    """The words of all parts, in the order in which they come where parts follow each other."""
    counts = dict[str, int]()
    raw = sentences = 0
    for rank in range(team.size):
        words, numbers, tokens, lines = team.shared(partial(_listed, found), rank)
        for word, number in zip(words, numbers, strict=True):
            counts[word] = counts.get(word, 0) + number
        raw, sentences = raw + tokens, sentences + lines
    everything = replace(Counts.of(counts), raw=raw, sentences=sentences)

    def chosen() -> tuple[list[str], NDArray[np.uint64]]:
        vocabulary, _ = choose(everything, options.trim)
        return vocabulary.words, vocabulary.counts

    return Vocabulary(*team.shared(chosen), raw, sentences)


def _listed(found: Counts) -> tuple[list[str], list[int], int, int]:
    order = np.argsort(found.births, kind="stable")
    order = order[found.counts[order] > 0]
    return [found.words[i] for i in order], found.counts[order].tolist(), found.raw, found.sentences
