"""Checkpoints as files: one with a change applied, and the difference of two. No more than a part is in memory."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from ._comparing import open_source, report_rows, tensor_rows
from ._edits import Tally, edits_of
from ._patching import check_output, write_edited
from ._safetensors import read_checkpoint, read_metadata, write_tensors
from ._table import Shown
from ._tabular import Column, Row, Tabular, parsed, read
from ._weights import is_pickle, read_weights, unwrapped
from .corruption import Corruption
from .faults import Faults
from .restoring import Applied, corrupted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ._svg import Figure

__all__ = ["Difference", "apply", "diff"]


def apply(
    checkpoint: str | os.PathLike[str],
    change: Corruption | Faults | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    trust: bool = False,
    progress: bool | None = None,
) -> Applied:
    """Write a checkpoint in which the weights are changed as `corrupted` changes them in memory.

    Every byte that the change does not touch is that of the checkpoint: header, order, metadata, other tensors. The
    output appears when it is complete; nothing half-written is left if anything fails. In memory is 1 MiB of a
    tensor at a time, besides the change.

    Args:
        checkpoint: a safetensors file, an index of shards, or a folder with either; or a file of `torch.save`.
        change: a :class:`Corruption` or :class:`Faults`, or the file that their `save` wrote.
        output: where to write: a file for a file; for shards a folder, which also gets the configuration that lies
            beside them. Never the checkpoint itself. Of a file of `torch.save` it is a .safetensors with the names
            that the weights have without a prefix such as `module.`.
        trust: run the code that a pickle asks for; without (default), such a file is refused.
        progress: whether a bar is shown on stderr (default: where that is a terminal).

    Returns:
        What has arrived: rounding can swallow a small change.

    Raises:
        OSError: a file is missing, or the output cannot be written.
        ValueError, TypeError: a file is damaged, or the change does not fit the checkpoint. Nothing was written then.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from safetensors.torch import load_file
        >>> from paramcorrupt import bitflip
        >>> from paramcorrupt.checkpoints import apply
        >>> folder = tempfile.TemporaryDirectory()
        >>> clean, bad = Path(folder.name, "clean.pt"), Path(folder.name, "bad.safetensors")
        >>> torch.save({"w": torch.ones(2)}, clean)
        >>> plan = bitflip({"w": torch.empty(2, device="meta")}, bits="sign", count=2, seed=0)
        >>> apply(clean, plan, bad).changed
        2
        >>> load_file(bad)["w"].tolist()
        [-1.0, -1.0]
        >>> folder.cleanup()
    """
    if not isinstance(change, Corruption | Faults):
        change = read_change(change)
    if is_pickle(checkpoint):
        return _apply_loaded(unwrapped(read_weights(checkpoint, trust=trust)), change, output)
    layout = read_checkpoint(checkpoint)
    check_output(layout, output)
    tally = Tally(change.p if isinstance(change, Corruption) else math.nan)
    write_edited(layout, edits_of(change, layout.tensors, tally), output, "apply", progress)
    return Applied(tally.changed, tally.norm)


def _apply_loaded(weights: dict[str, Tensor], change: Corruption | Faults, output: str | os.PathLike[str]) -> Applied:
    """Of weights in memory, all of which are written."""
    if Path(output).suffix != ".safetensors":
        raise ValueError(f"output must end in .safetensors, for no pickle is written, got {os.fspath(output)}")
    weights = {name: x.detach().clone(memory_format=torch.contiguous_format) for name, x in weights.items()}
    with corrupted(weights, change) as applied:
        write_tensors(weights, output)
    return applied


def read_change(path: str | os.PathLike[str]) -> Corruption | Faults:
    """What `Corruption.save` or `Faults.save` wrote; ValueError for anything else."""
    written = read_metadata(path).get("paramcorrupt", "")
    if '"paramcorrupt/faults/' in written:
        return Faults.load(path)
    if '"paramcorrupt/corruption/' in written:
        return Corruption.load(path)
    raise ValueError(f"{os.fspath(path)} must be a corruption or a plan of faults that their `save` wrote")


@dataclass(frozen=True, repr=False)
class Difference(Tabular):
    """What is not the same in two checkpoints, or in two reports.

    Attributes:
        a, b: the files.
        tensors: a row for each tensor, or for each row of the reports.
        of: "checkpoints", or the kind of the reports.
    """

    a: str
    b: str
    tensors: tuple[Row, ...]
    of: str = "checkpoints"

    kind: ClassVar[str] = "difference"
    columns: ClassVar[Mapping[str, Column]] = {
        "tensor": Column("Tensor"),
        "state": Column("State"),
        "dtype": Column("Type"),
        "shape": Column("Shape"),
        "numel": Column("Elements"),
        "changed": Column("Changed", "", "elements whose bits differ, or whose values do where the dtypes differ"),
        "l2": Column("||b - a||", "", "over the elements that are finite in both"),
        "relative": Column("Relative", "", "||b - a|| / ||a||"),
        "max": Column("max |b - a|", "", "over the elements that are finite in both"),
        "nonfinite": Column("Not finite", "", "elements that are finite in a and NaN or infinite in b"),
        "bits": Column("Bits", "", "that differ"),
    }
    printed: ClassVar[tuple[Shown, ...]] = (
        Shown("tensor", "tensor"),
        Shown("state", "state"),
        Shown("dtype", "dtype"),
        Shown("shape", "shape"),
        Shown("changed", "changed"),
        Shown("bits", "bits"),
        Shown("l2", "||b - a||"),
        Shown("relative", "relative"),
        Shown("max", "max"),
        Shown("nonfinite", "not finite"),
    )

    def rows(self) -> list[Row]:
        """A row for each tensor: its state (same, changed, reshaped, added, removed), and how far it moved."""
        return [dict(row) for row in self.tensors]

    def facts(self) -> Row:
        """The files, and sums over all tensors."""
        facts: Row = {"a": self.a, "b": self.b, "of": self.of, "rows": len(self.tensors)}
        if self.of != "checkpoints":
            return facts | {"differ": sum(row["state"] != "same" for row in self.tensors)}
        for state in ("changed", "reshaped", "added", "removed"):
            facts[state] = sum(row["state"] == state for row in self.tensors)
        facts["elements"] = int(sum(self._numbers("changed")))
        facts["bits"] = int(sum(self._numbers("bits")))
        return facts | {"l2": math.hypot(*self._numbers("l2"))}

    def _printed(self) -> tuple[list[Row], tuple[Shown, ...]]:
        """What differs, the most first."""
        rows = [row for row in self.rows() if row["state"] != "same"]
        rows.sort(key=lambda row: row.get("relative") or 0.0, reverse=True)
        return rows, self.printed if self.of == "checkpoints" else ()

    def _numbers(self, column: str) -> list[float]:
        values = [row.get(column) for row in self.tensors]
        return [x for x in values if isinstance(x, int | float)]

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return all(row["state"] == "same" for row in self.tensors)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Difference:
        """What `to_json` wrote; ValueError for anything else."""
        facts, rows = parsed(read(path), cls.kind, os.fspath(path))
        try:
            a, b, of = (str(facts[key]) for key in ("a", "b", "of"))
            return cls(a, b, tuple(row | {"state": row["state"]} for row in rows), of)
        except KeyError as error:
            raise ValueError(f"{os.fspath(path)} must have the fact or column {error}") from error

    def _lead(self) -> list[str]:
        if self.is_empty:
            return ["Nothing differs."]
        moved = sum(row["state"] != "same" for row in self.tensors)
        rows = "tensors" if self.of == "checkpoints" else "rows"
        return [f"{moved:,} of {len(self.tensors):,} {rows} differ."]

    def _figures(self) -> list[Figure]:
        from ._svg import Bars, Series

        moved = [(str(row["tensor"]), float(row["relative"])) for row in self.tensors if row.get("relative")]  # type: ignore[arg-type]
        if self.of != "checkpoints" or not moved:
            return []
        names, values = zip(*sorted(moved, key=lambda pair: -pair[1]), strict=True)
        note = "||b - a|| / ||a|| of every tensor that differs."
        return [Bars("How far tensors moved", names, [Series("relative change", values)], note=note)]


def diff(
    a: str | os.PathLike[str], b: str | os.PathLike[str], *, trust: bool = False, progress: bool | None = None
) -> Difference:
    r"""What a second checkpoint changes in a first one, tensor by tensor; or a second report in a first one.

    .. math:: \|b - a\|_2, \qquad \|b - a\|_2 / \|a\|_2, \qquad \max |b - a|

    Args:
        a, b: safetensors (a file, an index of shards, or a folder), or files of `torch.save`; or two JSON reports of
            this package, of one kind. Tensors of different dtypes are compared by value, those of one also by bits.
        trust: run the code that a pickle asks for; without (default), such a file is refused.
        progress: whether a bar is shown on stderr (default: where that is a terminal).

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is damaged, or the reports are of different kinds.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from paramcorrupt.checkpoints import diff
        >>> folder = tempfile.TemporaryDirectory()
        >>> a, b = Path(folder.name, "a.pt"), Path(folder.name, "b.pt")
        >>> torch.save({"w": torch.tensor([3.0, 4.0])}, a)
        >>> torch.save({"w": torch.tensor([3.0, 3.5])}, b)
        >>> row, = diff(a, b).rows()
        >>> row["changed"], row["l2"], row["relative"]
        (1, 0.5, 0.1)
        >>> folder.cleanup()
    """
    reports = [_is_report(path) for path in (a, b)]
    if reports[0] != reports[1]:
        raise ValueError(f"diff must have two checkpoints or two reports, got {os.fspath(a)} and {os.fspath(b)}")
    if reports[0]:
        kind, rows = report_rows(a, b)
        return Difference(os.fspath(a), os.fspath(b), tuple(rows), kind)
    with ExitStack() as stack:
        first, second = open_source(a, stack, trust), open_source(b, stack, trust)
        return Difference(os.fspath(a), os.fspath(b), tuple(tensor_rows(first, second, progress)))


def _is_report(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix == ".json" and not Path(path).name.endswith(".index.json")
