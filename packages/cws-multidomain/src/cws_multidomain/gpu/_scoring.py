"""Cuts many texts on a device by the integers of a model file: the tags of the engine in C++, no user words."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from .. import _core
    from ..segmenter import Segmenter

_NO_KEY = 0xFFFFFFFF
_LONGEST_MARK = 6
_JOINTS = 5 * 125 * 5
_JOINT_LIMIT = 8191
_TRANSITION_LIMIT = 1 << 20
_GATE_SYMBOLS = 4096
_POINTS = 0x110000
_CELLS = 1 << 22  # positions of a padded bucket
# The tags B, M, E, S that the engine's marks of a position permit: free, no boundary before it, a boundary before it.
_PERMITTED = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
_ILLEGAL = torch.tensor([[1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0]], dtype=torch.bool)  # from, to


class Lexicon:
    """The words of 2 to 6 symbols of a lexicon as a trie, whose edges are sorted.

    Args:
        symbols, splits: words end to end.
        device: where the trie is.
    """

    def __init__(self, symbols: NDArray[np.uint16], splits: NDArray[np.int64], device: torch.device) -> None:
        lengths = np.diff(splits)
        kept = (lengths >= 2) & (lengths <= _LONGEST_MARK)
        starts, lengths = splits[:-1][kept], lengths[kept]
        node = np.zeros(len(starts), np.int64)
        edges: list[NDArray[np.int64]] = []
        size, ends = 1, np.zeros(0, np.int64)
        for depth in range(_LONGEST_MARK):
            deeper = np.flatnonzero(lengths > depth)
            keys, place = np.unique(
                node[deeper] << 16 | symbols[starts[deeper] + depth].astype(np.int64), return_inverse=True
            )
            node[deeper] = size + place
            ends = np.concatenate([ends, node[deeper][lengths[deeper] == depth + 1]])
            edges.append(keys)
            size += len(keys)
        self.edges = torch.from_numpy(np.concatenate(edges)).to(device)  # child k + 1 by (parent << 16 | symbol)
        self.is_word = torch.zeros(size, dtype=torch.bool, device=device)
        self.is_word[torch.from_numpy(ends).to(device)] = True

    def marks(self, symbols: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the longest word that begins at, ends at, strictly contains each position."""
        n = len(symbols)
        begins, ends, insides = (torch.zeros(n, dtype=torch.int64, device=symbols.device) for _ in range(3))
        at = torch.arange(n, device=symbols.device)
        node = torch.zeros(0, dtype=torch.int64, device=symbols.device)
        if not len(self.edges):
            return begins, ends, insides
        for depth in range(_LONGEST_MARK):
            node = torch.zeros_like(at) if depth == 0 else node
            inside = at + depth < end[at]
            at, node = at[inside], node[inside]
            key = node << 16 | symbols[at + depth].to(torch.int64)
            place = torch.searchsorted(self.edges, key).clamp(max=len(self.edges) - 1)
            found = self.edges[place] == key
            at, node = at[found], place[found] + 1
            word = at[self.is_word[node]]
            index = min(depth + 1, 5) - 1  # lengths ascend, so the longest is written last
            begins[word] = index
            ends[word + depth] = index
            for j in range(1, depth):
                insides[word + j] = index
        return begins, ends, insides


class Scorer:
    """A model on a device.

    Args:
        model: as the engine maps it.
        device: where to score.
    """

    def __init__(self, model: _core.Model, device: str | torch.device = "cuda") -> None:
        self.device = torch.device(device)
        self._sections: Mapping[str, NDArray[np.uint8]] = model.sections
        sections = self._sections
        shape = sections["shape"].view("<u4")
        self._n_symbols, self._n_domains, self._n_lexicons = (int(x) for x in shape[:3])
        self._has_skip, self.gated = bool(shape[3]), bool(shape[4])
        points = np.zeros(_POINTS, np.int32)
        points[: 1 << 16] = sections["symbols"].view("<u2")
        points[sections["symbols.others"].view("<u4")] = sections["symbols.of_others"].view("<u2")
        self._symbol_of = torch.from_numpy(points).to(self.device)

        # Rows of the int8 table: unigrams, pairs, skip-grams, then the character marks of each lexicon.
        self._first = {"bigram": 5 * self._n_symbols}
        next_row = self._first["bigram"] + 4 * len(sections["bigram.keys"].view("<u4"))
        hashed = [("bigram", 4)]
        if self._has_skip:
            self._first["skip"] = next_row
            next_row += len(sections["skip.keys"].view("<u4"))
            hashed.append(("skip", 1))
        size = max(len(self._hash_table(name, rows)) for name, rows in hashed)
        self._keys = torch.stack([self._hash_table(name, rows, size) for name, rows in hashed]).to(self.device)
        self._lexicons, self._charmark_keys = [], []
        for k in range(self._n_lexicons):
            self._lexicons.append(Lexicon(*model.lexicon_words(k), self.device))
            keys = sections[f"charmark{k}.keys"].view("<u4")
            self._first[f"charmark{k}"] = next_row
            slots = np.flatnonzero(keys != _NO_KEY)
            slots = slots[np.argsort(keys[slots], kind="stable")]
            sorted_keys = torch.from_numpy(keys[slots].astype(np.int64)).to(self.device)
            self._charmark_keys.append((sorted_keys, torch.from_numpy(slots + next_row).to(self.device)))
            next_row += len(keys)
        self._mixtures: dict[tuple[float, ...], tuple[Tensor, Tensor, Tensor]] = {}
        if self.gated:
            numbers = sections["numbers"].view("<f8")
            table = sections["gate.table"].view("<i2").reshape(8192, -1)[:, : self._n_domains]
            self._gate_table = torch.from_numpy(table.astype(np.int64)).to(self.device)
            self._gate_bias = torch.from_numpy(sections["gate.bias"].view("<f8").copy()).to(self.device)
            self._gate_scale, self._threshold = float(numbers[2]), float(numbers[3])

    def _hash_table(self, name: str, rows: int, size: int = 16) -> Tensor:
        keys = self._sections[f"{name}.keys"].view("<u4")
        slots = np.flatnonzero(keys != _NO_KEY)
        values = self._first[name] + rows * slots
        found = torch.from_numpy(keys[slots].astype(np.int64))
        return _reference.hash_table(found, torch.from_numpy(values.astype(np.int64)), size)

    # ---- tables of a mixture, rounded as the engine rounds them (csrc/model.h)

    def tables(self, weights: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
        """int8 rows, int16 rows of the joint marks, int32 transitions of `shared + sum_k weights[k] * domain_k`."""
        key = tuple(weights)
        if key not in self._mixtures:
            names = [("unigram", 20), ("bigram", 16), *([("skip", 4)] if self._has_skip else [])]
            names += [(f"charmark{k}", 4) for k in range(self._n_lexicons)]
            rows = np.concatenate([self._rows(name, width, key) for name, width in names])
            joint = [self._dense(f"joint{k}", "<i2", _JOINT_LIMIT, key).reshape(-1, 4) for k in range(self._n_lexicons)]
            joint = [x.astype(np.int16) for x in joint] or [np.zeros((0, 4), np.int16)]
            trans = torch.from_numpy(self._dense("transition", "<i4", _TRANSITION_LIMIT, key).astype(np.int32)).view(
                4, 4
            )
            trans = trans.masked_fill(_ILLEGAL, _reference.FORBIDDEN)
            made = (torch.from_numpy(rows), torch.from_numpy(np.concatenate(joint)), trans)
            self._mixtures[key] = tuple(x.to(self.device) for x in made)  # type: ignore[assignment]
        return self._mixtures[key]

    def _rows(self, name: str, width: int, weights: Sequence[float]) -> NDArray[np.int8]:
        own = self._sections[name if name == "unigram" else f"{name}.rows"].view(np.int8).reshape(-1, width)
        if name != "unigram":
            own = own[:-1]  # the row of what is absent
        active = [k for k, w in enumerate(weights) if w != 0]
        if active:
            sums = np.zeros(own.shape, np.float64 if len(active) == 1 else np.float32)
            for k in active:
                index = self._sections[f"d{k + 1}.{name}.index"].view("<u4")
                delta = self._sections[f"d{k + 1}.{name}.rows"].view(np.int8).reshape(-1, width)
                sums[index] += (weights[k] * delta.astype(np.float64)).astype(sums.dtype)
            own = np.clip(own + np.rint(sums), -127, 127).astype(np.int8)
        return own.reshape(-1, 4)

    def _dense(self, name: str, dtype: str, limit: int, weights: Sequence[float]) -> NDArray[np.float64]:
        own = self._sections[name].view(dtype).astype(np.float64)
        active = [k for k, w in enumerate(weights) if w != 0]
        if active:
            sums = np.zeros(len(own))
            for k in active:
                sums += weights[k] * self._sections[f"d{k + 1}.{name}"].view(dtype)
            own = np.clip(own + np.rint(sums), -limit, limit)
        return own

    # ---- scores

    def symbols(self, points: NDArray[np.uint32]) -> Tensor:
        """The symbols of code points."""
        return self._symbol_of[torch.from_numpy(points.astype(np.int64)).to(self.device)]

    def ids(self, symbols: Tensor, splits: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of the int8 table and of the joint one that fire at each position, -1 if absent."""
        columns = [_ops.ngram_ids(symbols, splits, self._keys)]
        joints = []
        sizes = splits.diff()
        start = splits[:-1].repeat_interleave(sizes, output_size=len(symbols))
        end = splits[1:].repeat_interleave(sizes, output_size=len(symbols))
        here = torch.arange(len(symbols), device=self.device)
        for k, lexicon in enumerate(self._lexicons):
            begins, ends, insides = lexicon.marks(symbols, end)
            mark = 25 * begins + 5 * ends + insides
            before = torch.where(here > start, ends.roll(1), 0)
            after = torch.where(here + 1 < end, begins.roll(-1), 0)
            joints.append(k * _JOINTS + (before * 125 + mark) * 5 + after)
            keys, rows = self._charmark_keys[k]
            if len(keys):
                key = mark << 16 | symbols.to(torch.int64)
                place = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
                columns.append(torch.where(keys[place] == key, rows[place], -1).to(torch.int32)[:, None])
        joint = (
            torch.stack(joints, 1) if joints else torch.zeros((len(symbols), 0), dtype=torch.int64, device=self.device)
        )
        return torch.cat(columns, 1), joint.to(torch.int32)

    def domains(self, symbols: Tensor, splits: Tensor, line_of: Tensor, lines: int) -> NDArray[np.int64]:
        """For each line, what the gate says of its first 4,096 symbols: a domain from 1 on, or 0 for "general"."""
        line = line_of.repeat_interleave(splits.diff(), output_size=len(symbols))
        sizes = torch.bincount(line, minlength=lines)
        number = torch.arange(len(symbols), device=self.device) - (sizes.cumsum(0) - sizes)[line]
        heard = number < _GATE_SYMBOLS
        line, number, one = line[heard], number[heard], symbols[heard].to(torch.int64)
        first = one * 0x9E3779B1
        sums = torch.zeros((lines, self._n_domains), dtype=torch.int64, device=self.device)
        sums.index_add_(0, line, self._gate_table[(first & 0xFFFFFFFF) >> 19])  # integers: any order gives the same
        follows = number > 0
        second = first.roll(1) + one * 0x85EBCA77
        sums.index_add_(0, line[follows], self._gate_table[(second[follows] & 0xFFFFFFFF) >> 19])
        n = sizes.clamp(1, _GATE_SYMBOLS).double()
        scores = self._gate_bias + sums.double() / (self._gate_scale * n)[:, None]
        p = torch.softmax(scores, 1).cpu().numpy()
        best = p.argmax(1)
        return np.where(p[np.arange(lines), best] >= self._threshold, best + 1, 0)

    def tags(
        self,
        points: NDArray[np.uint32],
        splits: NDArray[np.int64],
        settled: NDArray[np.uint8],
        line_of: NDArray[np.int64],
        weights: Sequence[float] | None,
    ) -> NDArray[np.int8]:
        """The best tags of sentences that lie end to end.

        Args:
            points: code points without whitespace.
            splits: [S + 1], where the sentences begin and end; none is empty.
            settled: what rules say of the boundary before each: 0 nothing, 1 none, 2 one.
            line_of: the line of each sentence, ascending, for the gate.
            weights: of the domains; None: what the gate says.
        """
        out = np.zeros(len(points), np.int8)
        if not len(points):
            return out
        symbols, on_device = self.symbols(points), torch.from_numpy(splits).to(self.device)
        ids, joint_ids = self.ids(symbols, on_device)
        lengths = np.diff(splits)
        choice = np.zeros(len(lengths), np.int64)
        if weights is None and self.gated:
            lines = torch.from_numpy(line_of).to(self.device)
            choice = self.domains(symbols, on_device, lines, int(line_of[-1]) + 1)[line_of]
        permitted = _PERMITTED.to(self.device)[torch.from_numpy(settled.astype(np.int64)).to(self.device)]
        first, last = on_device[:-1], on_device[1:] - 1
        permitted[first] = _PERMITTED[2].to(self.device)
        permitted[last] &= torch.tensor([False, False, True, True], device=self.device)
        result = torch.zeros(len(points), dtype=torch.int8, device=self.device)
        for k in np.unique(choice).tolist():
            mixture = list(weights or [0.0] * self._n_domains)
            if k:
                mixture[k - 1] = 1.0
            rows, joint, trans = self.tables(mixture)
            scores = _ops.emit(ids, rows)
            if joint_ids.shape[1]:
                scores += _ops.emit(joint_ids, joint)
            for those in buckets(lengths, np.flatnonzero(choice == k)):
                sizes = lengths[those]
                column = np.repeat(np.arange(len(those)), sizes)
                line = np.arange(len(column)) - (np.cumsum(sizes) - sizes)[column]
                place = torch.from_numpy(splits[those][column] + line).to(self.device)
                where = torch.from_numpy(line).to(self.device), torch.from_numpy(column).to(self.device)
                shape = (int(sizes.max()), len(those), 4)
                padded = torch.zeros(shape, dtype=torch.int32, device=self.device)
                padded[where] = scores[place]
                mask = torch.ones(shape, dtype=torch.bool, device=self.device)
                mask[where] = permitted[place]
                found, _ = _ops.crf_viterbi(padded, trans, torch.from_numpy(sizes).to(self.device), mask)
                result[place] = found[where]
        return result.cpu().numpy()


def buckets(lengths: NDArray[np.int64], chosen: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Sentences of similar length together, so that at most half of a padded bucket is padding."""
    order = chosen[np.argsort(-lengths[chosen], kind="stable")]
    at = 0
    while at < len(order):
        longest = int(lengths[order[at]])
        similar = int(np.searchsorted(-lengths[order], -(longest // 2), side="left"))
        end = min(max(similar, at + 1), at + max(1, _CELLS // longest))
        yield order[at:end]
        at = end


def cut_many(segmenter: Segmenter, texts: Sequence[str], device: str, characters: int) -> list[list[str]]:
    """The tokens of texts; see :func:`cws_multidomain.gpu.cut_many`."""
    scorer = Scorer(segmenter._model, device)
    domain = segmenter.domain
    weights = None if domain == "auto" else _weights(segmenter)
    spaces = _spaces()
    out: list[list[str]] = []
    begin = 0
    while begin < len(texts):
        end, size = begin + 1, len(texts[begin])
        while end < len(texts) and size + len(texts[end]) <= characters:
            size += len(texts[end])
            end += 1
        out += _cut(scorer, segmenter, list(texts[begin:end]), weights, spaces)
        begin = end
    return out


def _cut(
    scorer: Scorer, segmenter: Segmenter, texts: list[str], weights: Sequence[float] | None, spaces: NDArray[np.bool_]
) -> list[list[str]]:
    text = "".join(texts)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    text_of = np.repeat(np.arange(len(texts)), [len(x) for x in texts])
    kept = np.flatnonzero(~spaces[points])
    if not len(kept):
        return [[] for _ in texts]
    edge = np.ones(len(kept), bool)
    edge[1:] = (np.diff(kept) > 1) | (np.diff(text_of[kept]) > 0)
    splits = np.append(np.flatnonzero(edge), len(kept)).astype(np.int64)
    breaks = np.zeros(len(points) + 1, np.int64)
    breaks[1:] = np.cumsum(points == 10)
    _, line_of = np.unique(breaks[kept[splits[:-1]]] + text_of[kept[splits[:-1]]], return_inverse=True)
    settled = segmenter._core.masks(texts)
    tags = scorer.tags(points[kept], splits, settled, line_of.astype(np.int64), weights)
    starts = np.flatnonzero((tags == 0) | (tags == 3))
    ends = np.append(starts[1:], len(kept)) - 1
    words = [text[a:b] for a, b in zip(kept[starts].tolist(), (kept[ends] + 1).tolist(), strict=True)]
    cuts = np.searchsorted(text_of[kept[starts]], np.arange(len(texts) + 1)).tolist()
    return [words[a:b] for a, b in pairwise(cuts)]


def _weights(segmenter: Segmenter) -> list[float]:
    """The weights of the domains, as the engine has them."""
    from ..segmenter import _mixture

    made: Any = _mixture(segmenter._domain, segmenter._domains)
    return [float(x) for x in made]


def _spaces() -> NDArray[np.bool_]:
    table = np.zeros(_POINTS, bool)
    table[[c for c in range(0x3001) if chr(c).isspace()]] = True
    return table
