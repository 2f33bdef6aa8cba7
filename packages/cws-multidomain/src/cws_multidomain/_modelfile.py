"""Model files: the container of sections, and `Weights` as the tables that the engine reads in place; no decoding."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from . import _core
from ._weights import Component, Gate, Weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Sections = Mapping[str, bytes]

__all__ = ["PackedLexicon", "checked", "dictionary", "pack", "read", "replace", "to_bytes", "unpack", "write"]

MAGIC = b"CWSMODEL"
VERSION = 1
_OTHER, _DIGIT, _LATIN, _CHARACTERS = 0, 3, 4, 5
_NO_KEY = 0xFFFFFFFF
_SAMPLED = 10_000  # rows of a table that its rounding is judged by
_JOINT_LIMIT = 8191  # as in model.h
_OWN = ("metadata", "shape", "numbers", "symbols", "canonical", "unigram", "bigram", "skip", "transition", "gate", "d")


# ---- the container


def to_bytes(metadata: Mapping[str, Any], sections: Sections) -> bytes:
    """A model file with these sections, `metadata` among them as JSON."""
    everything = {"metadata": json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode(), **sections}
    place = _aligned(64 + 40 * len(everything))
    table, body = b"", b""
    for name, data in everything.items():
        if not name.isprintable() or len(raw := name.encode()) > 24:
            raise ValueError(f"a section's name must be printable and have at most 24 bytes, got {name!r}")
        table += struct.pack("<24sQQ", raw, place + len(body), len(data))
        body += data + bytes(_aligned(len(data)) - len(data))
    content = table + bytes(place - 64 - len(table)) + body
    head = struct.pack("<8sIIQI", MAGIC, VERSION, len(everything), 64 + len(content), _core.crc32c(content))
    return head + struct.pack("<I", _core.crc32c(head)) + bytes(32) + content


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file aside, then rename it: there is the old one or the new one, never half of it."""
    target = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, target)
    except BaseException:
        with suppress(FileNotFoundError):  # Ctrl-C may come right after the file got its name
            os.unlink(name)
        raise


def read(path: str | os.PathLike[str]) -> _core.Model:
    """Map a model file and check it.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: it is truncated, damaged, newer, or contradicts itself; the message has the file and the field.
    """
    path = os.fspath(path)
    with open(path, "rb"):
        pass
    return checked(_core.Model.map(path), path)


def checked(model: _core.Model, name: str) -> _core.Model:
    """The model, if its metadata names as many domains as it has; a ValueError with its name otherwise."""
    sections = model.sections
    try:
        about = json.loads(sections["metadata"].tobytes()) if "metadata" in sections else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{name}: section "metadata" is no JSON: {error}') from None
    domains = about.get("domains") if isinstance(about, dict) else None
    count = int(sections["shape"].view("<u4")[1])
    if not isinstance(domains, list) or not all(isinstance(domain, str) for domain in domains):
        raise ValueError(f'{name}: section "metadata" has no list of domains')
    if len(domains) != count or len(set(domains)) != count:
        raise ValueError(f'{name}: section "metadata" must name {count} domains, got {", ".join(map(repr, domains))}')
    return model


def replace(model: _core.Model, sections: Sections, metadata: Mapping[str, Any] | None = None) -> bytes:
    """The model file with some sections added or exchanged, such as those of a tagger."""
    old = {name: data.tobytes() for name, data in model.sections.items()}
    about = json.loads(old.pop("metadata")) if metadata is None else metadata
    old.pop("metadata", None)
    return to_bytes(about, {**old, **sections})


def _aligned(size: int) -> int:
    return -(-size // 64) * 64


# ---- Weights to tables


def pack(weights: Weights, sections: Sections | None = None) -> bytes:
    """A model file: int8 tables with one scale, perfect hashes, automata.

    Args:
        weights: what training returned.
        sections: more of them, kept and handed through.
    """
    shared, domains = weights.components[0], weights.components[1:]
    n_symbols = weights.n_symbols
    _check(weights)
    scale = _scale(weights)
    out: dict[str, bytes] = {}
    out["shape"] = _bytes(
        [n_symbols, len(domains), len(weights.lexicons), len(shared.skip_keys) > 0, weights.gate is not None, 1, 0, 0],
        "<u4",
    )
    plane, others, canonical = _symbol_tables(weights.symbols, n_symbols)
    out["symbols"] = _bytes(plane, "<u2")
    out["symbols.others"] = _bytes(sorted(others), "<u4")
    out["symbols.of_others"] = _bytes([others[c] for c in sorted(others)], "<u2")
    out["canonical"] = _bytes(canonical, "<u4")
    out["transition"] = _bytes(np.rint(shared.transition * scale), "<i4")
    for k, domain in enumerate(domains, 1):
        exact = np.rint((shared.transition + domain.transition) * scale)
        out[f"d{k}.transition"] = _bytes(exact - np.rint(shared.transition * scale), "<i4")

    def rows(name: str, shared_rows: NDArray[Any], at: list[NDArray[Any]], parts: list[NDArray[Any]]) -> NDArray[Any]:
        """The rows of the shared table as int8, and of each domain what it adds to them."""
        own = _centred(shared_rows)
        whole = _int8(own * scale)
        for k, (where, part) in enumerate(zip(at, parts, strict=True), 1):
            exact = _int8((own[where] + _centred(part)) * scale).astype(np.int32)
            delta = np.clip(exact - whole[where], -127, 127).astype(np.int8)
            moved = np.flatnonzero(delta.any(axis=tuple(range(1, delta.ndim))))
            order = moved[np.argsort(slot_of[name][where[moved]], kind="stable")]
            out[f"d{k}.{name}.index"] = _bytes(slot_of[name][where[order]], "<u4")
            out[f"d{k}.{name}.rows"] = delta[order].tobytes()
        return whole

    slot_of: dict[str, NDArray[np.uint32]] = {"unigram": np.arange(n_symbols, dtype=np.uint32)}
    everywhere = np.arange(n_symbols)
    whole = rows("unigram", shared.unigram, [everywhere] * len(domains), [d.unigram for d in domains])
    out["unigram"] = whole.tobytes()

    def hashed(
        name: str, keys: NDArray[np.uint32], table: NDArray[Any], parts: list[tuple[NDArray[np.uint32], NDArray[Any]]]
    ) -> None:
        pilots, shape, slots = _core.perfect_hash(np.ascontiguousarray(keys, np.uint32))
        slot_of[name] = slots
        where = [np.searchsorted(keys, part_keys) for part_keys, _ in parts]
        whole = rows(name, table, where, [part for _, part in parts])
        placed = np.zeros((int(shape[0]) + 1, *table.shape[1:]), np.int8)
        placed[slots] = whole
        placed_keys = np.full(int(shape[0]), _NO_KEY, np.uint32)
        placed_keys[slots] = keys
        out[f"{name}.hash"] = _bytes(shape, "<u4")
        out[f"{name}.pilots"] = _bytes(pilots, "<u2")
        out[f"{name}.keys"] = _bytes(placed_keys, "<u4")
        out[f"{name}.rows"] = placed.tobytes()

    hashed("bigram", shared.bigram_keys, shared.bigram, [(d.bigram_keys, d.bigram) for d in domains])
    if len(shared.skip_keys):
        hashed("skip", shared.skip_keys, shared.skip, [(d.skip_keys, d.skip) for d in domains])
    for i, words in enumerate(weights.lexicons):
        own = np.clip(np.rint(_centred(shared.joint[i]) * scale), -_JOINT_LIMIT, _JOINT_LIMIT)
        out[f"joint{i}"] = _bytes(own, "<i2")
        for k, d in enumerate(domains, 1):
            exact = np.rint((_centred(shared.joint[i]) + _centred(d.joint[i])) * scale)
            out[f"d{k}.joint{i}"] = _bytes(np.clip(exact, -_JOINT_LIMIT, _JOINT_LIMIT) - own, "<i2")
        parts = [(d.charmark_keys[i], d.charmark[i]) for d in domains]
        hashed(f"charmark{i}", shared.charmark_keys[i], shared.charmark[i], parts)
        if isinstance(words, PackedLexicon) and words.model.n_symbols == n_symbols:
            out.update(words.sections(f"lexicon{i}"))
        else:
            _pack_lexicon(f"lexicon{i}", words, plane, others, canonical, out)
    gate_scale, threshold = 1.0, 0.6
    if weights.gate is not None:
        threshold = weights.gate.threshold
        largest = float(np.abs(weights.gate.table).max(initial=0.0))
        gate_scale = 32767 / largest if largest else 1.0
        width = -(-len(domains) // 4) * 4
        table = np.zeros((8192, width), np.int16)
        table[:, : len(domains)] = np.rint(weights.gate.table * gate_scale)
        out["gate.table"] = _bytes(table, "<i2")
        out["gate.bias"] = _bytes(weights.gate.bias, "<f8")
    out["numbers"] = _bytes([scale, weights.temperature, gate_scale, threshold], "<f8")
    return to_bytes({**weights.metadata, "domains": list(weights.domains)}, {**out, **(sections or {})})


def _check(weights: Weights) -> None:
    if len(weights.components) != 1 + len(weights.domains):
        raise ValueError(
            f"weights must have a component for each of {len(weights.domains)} domains and a shared one, "
            f"got {len(weights.components)}"
        )
    if weights.gate is not None and weights.gate.table.shape != (8192, len(weights.domains)):
        raise ValueError(f"the gate's table must be [8192, domains], got {list(weights.gate.table.shape)}")
    for component in weights.components:
        rows = (component.unigram, component.bigram, component.skip, component.transition)
        for table in (*rows, *component.joint, *component.charmark):
            if not np.isfinite(table).all():
                raise ValueError("weights must be finite")


def _scale(weights: Weights) -> float:
    """Units of score per nat: such that rounding and cutting off the largest weights together cost the least."""
    shared, tables = weights.components[0], []
    for part in (None, *weights.components[1:]):
        tables += [_centred(shared.unigram) + (0 if part is None else _centred(part.unigram))]
        if part is not None:  # what domains add must fit, too
            tables += [_centred(x) for x in (part.unigram, part.bigram, part.skip, *part.charmark)]
        names = [("bigram", part.bigram_keys if part else None), ("skip", part.skip_keys if part else None)]
        for name, keys in names:
            rows = _centred(getattr(shared, name))
            if part is not None and keys is not None:
                rows = rows[np.searchsorted(getattr(shared, f"{name}_keys"), keys)] + _centred(getattr(part, name))
            tables.append(rows)
        for i, rows in enumerate(shared.charmark):
            rows = _centred(rows)
            if part is not None:
                at = np.searchsorted(shared.charmark_keys[i], part.charmark_keys[i])
                rows = rows[at] + _centred(part.charmark[i])
            tables.append(rows)
    largest = max(float(np.abs(t).max(initial=0.0)) for t in tables)
    values = np.concatenate([np.abs(t[:: 1 + len(t) // _SAMPLED]).ravel() for t in tables])
    if largest == 0.0:
        return 32.0
    best = (np.inf, 1.0)
    for part_of_largest in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
        scale = 127 / (largest * part_of_largest)
        error = float(np.square(np.minimum(np.rint(values * scale), 127) / scale - values).sum())
        best = min(best, (error, scale))
    return best[1]


def _centred(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Rows whose largest and smallest weight are opposite; no path's score changes against another's."""
    wide = np.asarray(rows, np.float32)
    return np.asarray(wide - (wide.max(-1, keepdims=True) + wide.min(-1, keepdims=True)) / 2, np.float32)


def _int8(values: NDArray[Any]) -> NDArray[np.int8]:
    return np.asarray(np.clip(np.rint(values), -127, 127), np.int8)


def _bytes(values: Any, dtype: str) -> bytes:
    return np.ascontiguousarray(values).astype(dtype).tobytes()


def _symbol_tables(
    symbols: Mapping[int, int], n_symbols: int
) -> tuple[NDArray[np.uint16], dict[int, int], NDArray[np.uint32]]:
    """Symbols of the basic plane, of other code points, and the canonical code point of each symbol."""
    plane = np.zeros(0x10000, np.uint16)
    others: dict[int, int] = {}
    canonical = np.zeros(n_symbols, np.uint32)
    for c, symbol in symbols.items():
        if not _CHARACTERS <= symbol < n_symbols:
            raise ValueError(f"a symbol must be from {_CHARACTERS} to {n_symbols - 1}, got {symbol} for U+{c:04X}")
        if not canonical[symbol]:
            canonical[symbol] = c
        if c < 0x10000:
            plane[c] = symbol
        else:
            others[c] = symbol
    plane[ord("0") : ord("9") + 1] = _DIGIT
    plane[ord("A") : ord("Z") + 1] = plane[ord("a") : ord("z") + 1] = _LATIN
    plane[0xFF01:0xFF5F] = plane[0x21:0x7F]
    return plane, others, canonical


def _pack_lexicon(
    name: str,
    words: Sequence[tuple[str, int]],
    plane: NDArray[np.uint16],
    others: Mapping[int, int],
    canonical: NDArray[np.uint32],
    out: dict[str, bytes],
) -> None:
    """The automaton; counts of words that are their own canonical form, in its order; the other words as text."""
    names = [word for word, _ in words]
    points = np.frombuffer("".join(names).encode("utf-32-le", "surrogatepass"), "<u4")
    symbols = plane[np.minimum(points, 0xFFFF)]
    for at in np.flatnonzero(points > 0xFFFF).tolist():
        symbols[at] = others.get(int(points[at]), _OTHER)
    known = np.cumsum(np.append(0, symbols == _OTHER))
    exact = np.cumsum(np.append(0, (symbols < _CHARACTERS) | (canonical[symbols] != points)))
    ends = np.cumsum([0, *map(len, names)])
    unknown, inexact = (np.diff(of[ends]) > 0 for of in (known, exact))
    raw, edges = symbols.astype(">u2").tobytes(), (2 * ends).tolist()
    counts: dict[bytes, int] = {}
    extras: list[str] = []
    for number, (word, count) in enumerate(words):
        key = raw[edges[number] : edges[number + 1]]
        if not key or unknown[number]:
            extras.append(f"{word}\t{count}\n")
        elif inexact[number]:
            counts.setdefault(key, 0)
            extras.append(f"{word}\t{count}\n")
        else:
            counts[key] = count + 1
    keys = sorted(counts)
    flat = np.frombuffer(b"".join(keys), ">u2").astype(np.uint16)
    splits = np.concatenate([[0], np.cumsum([len(k) // 2 for k in keys], dtype=np.int64)]).astype(np.int64)
    first, edges, pilots, shape = _core.build_lexicon(flat, splits, len(canonical)).arrays()
    out[f"{name}.hash"] = _bytes(shape, "<u4")
    out[f"{name}.first"] = _bytes(first, "<u4")
    out[f"{name}.edges"] = edges.tobytes()
    out[f"{name}.pilots"] = _bytes(pilots, "<u2")
    out[f"{name}.counts"] = _varints([counts[k] for k in keys])
    out[f"{name}.extras"] = "".join(extras).encode("utf-8", "surrogatepass")


def _varints(values: Sequence[int]) -> bytes:
    out = bytearray()
    for value in values:
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


def _from_varints(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    if not len(data):
        return np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.flatnonzero(data < 0x80)[:-1] + 1])
    shift = np.arange(len(data)) - np.repeat(starts, np.diff(starts, append=len(data)))
    parts = (data & 0x7F).astype(np.int64) << (7 * shift)
    return np.add.reduceat(parts, starts)


# ---- tables to Weights


def dictionary(model: _core.Model, lexicon: int = 0) -> dict[str, int]:
    """The words of a lexicon, exactly as they were given, with their counts."""
    points, splits, counts = dictionary_arrays(model, lexicon)
    text = points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
    words = (text[begin:end] for begin, end in pairwise(splits.tolist()))
    return dict(zip(words, counts.tolist(), strict=True))


def dictionary_arrays(
    model: _core.Model, lexicon: int = 0
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """The code points of the words, one word after the other; where each begins and the last ends; their counts."""
    sections = model.sections
    symbols, splits = model.lexicon_words(lexicon)
    counts = _from_varints(_array(sections, f"lexicon{lexicon}.counts", "<u1"))
    if len(counts) != len(splits) - 1:
        items = f"{len(counts)} items where {len(splits) - 1} are needed"
        raise ValueError(f'section "lexicon{lexicon}.counts" has {items}')
    lengths = np.diff(splits)
    own = counts > 0  # others are only there because words in the extras have their symbols
    points = _array(sections, "canonical", "<u4", model.n_symbols)[symbols[np.repeat(own, lengths)]]
    try:
        extras = _array(sections, f"lexicon{lexicon}.extras", "<u1").tobytes().decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise ValueError(f'section "lexicon{lexicon}.extras" is not UTF-8 at byte {error.start}') from None
    pairs = [line.rpartition("\t") for line in extras.split("\n")[:-1]]
    more = "".join(word for word, _, _ in pairs).encode("utf-32-le", "surrogatepass")
    every = np.concatenate([lengths[own], np.array([len(word) for word, _, _ in pairs], np.int64)])
    return (
        np.concatenate([points, np.frombuffer(more, "<u4")]).astype(np.uint32),
        np.concatenate([[0], np.cumsum(every)]),
        np.concatenate([counts[own] - 1, np.array([int(count) for _, _, count in pairs], np.int64)]),
    )


def _array(sections: Mapping[str, NDArray[np.uint8]], name: str, dtype: str, count: int | None = None) -> NDArray[Any]:
    """A section that the engine does not read, and has not checked."""
    if name not in sections:
        raise ValueError(f'section "{name}" is missing')
    items, rest = divmod(len(sections[name]), np.dtype(dtype).itemsize)
    if rest or count not in (None, items):
        raise ValueError(f'section "{name}" has a wrong size')
    return sections[name].view(dtype)


class PackedLexicon(Sequence[tuple[str, int]]):
    """The words and counts of a model's lexicon, which are read when they are asked for."""

    def __init__(self, model: _core.Model, index: int) -> None:
        self.model, self.number = model, index
        self._words: list[tuple[str, int]] | None = None

    @property
    def words(self) -> list[tuple[str, int]]:
        if self._words is None:
            self._words = list(dictionary(self.model, self.number).items())
        return self._words

    def __len__(self) -> int:
        return len(self.words)

    @overload
    def __getitem__(self, index: int) -> tuple[str, int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, int]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, int] | list[tuple[str, int]]:
        return self.words[index]

    def marks(self, symbols: NDArray[np.uint16]) -> NDArray[np.uint8]:
        return self.model.lexicon_marks(self.number, symbols)

    def sections(self, name: str) -> dict[str, bytes]:
        """The sections of the lexicon under another name."""
        own = f"lexicon{self.number}."
        found = self.model.sections.items()
        return {f"{name}.{key[len(own) :]}": data.tobytes() for key, data in found if key.startswith(own)}


def unpack(model: _core.Model) -> Weights:
    """The weights of a model, as its int8 tables have them."""
    sections = model.sections
    metadata = json.loads(sections["metadata"].tobytes())
    domains = metadata.pop("domains")
    scale = model.scale
    plane = sections["symbols"].view("<u2")
    canonical = _array(sections, "canonical", "<u4", model.n_symbols)
    others = zip(
        sections["symbols.others"].view("<u4").tolist(), sections["symbols.of_others"].view("<u2").tolist(), strict=True
    )
    pairs = [(c, int(plane[c])) for c in np.flatnonzero(plane >= _CHARACTERS).tolist() if not 0xFF01 <= c <= 0xFF5E]
    found = dict([*pairs, *others])
    symbols = {int(c): s for s, c in enumerate(canonical.tolist()) if s >= _CHARACTERS and found.get(c) == s}
    symbols.update({c: s for c, s in found.items() if c not in symbols})

    def keyed(name: str, shape: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        keys = sections[f"{name}.keys"].view("<u4")
        slots = np.flatnonzero(keys != _NO_KEY)
        slots = slots[np.argsort(keys[slots], kind="stable")]
        return keys, slots, sections[f"{name}.rows"].view(np.int8).reshape(-1, *shape)

    def component(k: int) -> Component:
        def table(name: str, shape: tuple[int, ...]) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
            if f"{name}.keys" not in sections:
                return np.zeros(0, np.uint32), np.zeros((0, *shape), np.float32)
            keys, slots, rows = keyed(name, shape)
            if k:
                slots = sections[f"d{k}.{name}.index"].view("<u4")
                order = np.argsort(keys[slots], kind="stable")
                slots = slots[order]
                rows = sections[f"d{k}.{name}.rows"].view(np.int8).reshape(-1, *shape)[order]
                return keys[slots].astype(np.uint32), (rows / scale).astype(np.float32)
            return keys[slots].astype(np.uint32), (rows[slots] / scale).astype(np.float32)

        unigram = np.zeros((model.n_symbols, 5, 4), np.float32)
        if k:
            at = sections[f"d{k}.unigram.index"].view("<u4")
            unigram[at] = sections[f"d{k}.unigram.rows"].view(np.int8).reshape(-1, 5, 4) / scale
        else:
            unigram[:] = sections["unigram"].view(np.int8).reshape(-1, 5, 4) / scale
        prefix = f"d{k}." if k else ""
        lexicons = range(model.n_lexicons)
        charmarks = [table(f"charmark{i}", (4,)) for i in lexicons]
        bigram_keys, bigram = table("bigram", (4, 4))
        skip_keys, skip = table("skip", (4,))
        joint = [(sections[f"{prefix}joint{i}"].view("<i2") / scale).astype(np.float32) for i in lexicons]
        return Component(
            unigram,
            bigram_keys,
            bigram,
            skip_keys,
            skip,
            [x.reshape(5, 125, 5, 4) for x in joint],
            [keys for keys, _ in charmarks],
            [rows for _, rows in charmarks],
            (sections[f"{prefix}transition"].view("<i4") / scale).astype(np.float32).reshape(4, 4),
        )

    numbers = sections["numbers"].view("<f8")
    gate = None
    if model.gated:
        table = sections["gate.table"].view("<i2").reshape(8192, -1)[:, : len(domains)]
        bias = sections["gate.bias"].view("<f8").astype(np.float32)
        gate = Gate((table / numbers[2]).astype(np.float32), bias, float(numbers[3]))
    return Weights(
        symbols=symbols,
        lexicons=[PackedLexicon(model, i) for i in range(model.n_lexicons)],
        components=[component(k) for k in range(1 + len(domains))],
        domains=domains,
        gate=gate,
        temperature=model.temperature,
        metadata=metadata,
    )


def more_sections(model: _core.Model) -> dict[str, bytes]:
    """The sections that are not the engine's own."""
    return {
        name: data.tobytes()
        for name, data in model.sections.items()
        if name.split(".")[0].rstrip("0123456789") not in (*_OWN, "joint", "charmark", "lexicon")
    }
