"""What the results have in common: rows and facts, written as JSON, CSV, a page, a data frame or a plot."""

from __future__ import annotations

import errno
import math
import os
import secrets
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from torch import Tensor

    from ._svg import Figure
    from ._table import Shown

Scalar: TypeAlias = str | int | float | bool | None
Row: TypeAlias = dict[str, Scalar]
T = TypeVar("T")

VERSION = 1
_LARGEST_FILE = 1 << 28
_STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")


class Column(NamedTuple):
    """How a column is shown to people: its heading, its unit, what it means; "%" shows a share of one as percent."""

    label: str
    unit: str = ""
    meaning: str = ""


class Tabular:
    """Mixin of a result that is a table. A subclass has a kind, rows and facts; the rest is optional."""

    kind: ClassVar[str]
    """Names the schema: `paramcorrupt/<kind>/1`."""

    columns: ClassVar[Mapping[str, Column]] = {}
    """How columns and facts are shown; one that is not here is shown under its own name."""

    highlights: ClassVar[tuple[str, ...]] = ()
    """The facts that stand on top of the page in large type."""

    printed: ClassVar[tuple[Shown, ...]] = ()
    """The columns of the table in a terminal; none: all of the rows."""

    def rows(self) -> list[Row]:
        """The table: a dictionary for each row, in which None is what does not exist."""
        raise NotImplementedError

    def facts(self) -> Row:
        """What is true of the whole: settings, seeds, the hash of the weights, summaries."""
        raise NotImplementedError

    def _lead(self) -> list[str]:
        """Sentences that say what was found. The first is the headline of the page."""
        return [f"{self.kind.capitalize()} of {len(self.rows()):,} rows."]

    def _table(self) -> list[Row]:
        """The rows as the page shows them."""
        return self.rows()

    def _figures(self) -> list[Figure]:
        """The figures of the page, of which the first is also the plot."""
        return []

    def __repr__(self) -> str:
        from ._table import sentences

        return f"<{type(self).__name__}: {sentences(self._lead()[:1])}>"

    def __str__(self) -> str:
        return self._text(10)

    def _printed(self) -> tuple[Sequence[Row], Sequence[Shown]]:
        """The rows and columns of the table in a terminal."""
        return self.rows(), self.printed

    def _text(self, top: int, more: str = "") -> str:
        """What was found, and the first `top` rows in columns, 0: all of them; `more` tells how to see the others."""
        from ._table import sentences, table

        return "\n\n".join(filter(None, (sentences(self._lead()), table(*self._printed(), top, more))))

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The whole result as JSON, also written to `path`.

        JSON has no NaN and no infinity: they are null, and `not_finite` lists where and what they were.
        """
        import json

        return written(json.dumps(self._document(), indent=1, ensure_ascii=False, allow_nan=False) + "\n", path)

    def _document(self) -> dict[str, Any]:
        from . import __version__

        facts, rows = self.facts(), self.rows()
        lost: list[list[Scalar]] = [["facts", 0, *pair] for pair in _lost(facts)]
        lost += [["rows", i, *pair] for i, row in enumerate(rows) for pair in _lost(row)]
        return {
            "schema": f"paramcorrupt/{self.kind}/{VERSION}",
            "version": __version__,
            "facts": _plain(facts),
            "rows": [_plain(row) for row in rows],
            "not_finite": lost,
        }

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The rows as CSV under a line of names, also written to `path`: an empty field is what does not exist."""
        import csv
        import io

        rows = self.rows()
        text = io.StringIO()
        writer = csv.DictWriter(text, _names(rows), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return written(text.getvalue(), path)

    def to_frame(self) -> pd.DataFrame:
        """The rows as a `pandas.DataFrame`, whose `attrs` are the facts; needs `paramcorrupt[table]`."""
        from ._extras import need

        rows = self.rows()
        frame = need("pandas", "table", "to_frame").DataFrame(rows, columns=_names(rows))
        frame.attrs.update(self.facts())
        return frame

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """A page with what was found, figures and the table, also written to `path`: one file that loads nothing."""
        from . import __version__, _html

        text = _html.page(
            self.kind.capitalize(),
            self._lead(),
            self.facts(),
            self._figures(),
            self._table(),
            columns=self.columns,
            highlights=self.highlights,
            version=__version__,
        )
        return written(text, path)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The first figure of the page on matplotlib axes, which are returned; needs `paramcorrupt[plot]`."""
        from ._plots import draw

        return draw(self._figures()[0], ax)


def read(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file of moderate size; ValueError, naming the file, when it is something else."""
    import json

    name = os.fspath(path)
    if os.stat(path).st_size > _LARGEST_FILE:
        raise ValueError(f"{name} must be a file of at most {_LARGEST_FILE >> 20} MiB, and is larger")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be JSON: {error}") from error


def schema(document: object) -> str:
    """The kind of result that a document is; "" for none of this version."""
    text = document.get("schema") if isinstance(document, dict) else None
    package, kind, version = text.split("/") if isinstance(text, str) and text.count("/") == 2 else ("", "", "")
    return kind if package == "paramcorrupt" and version == str(VERSION) else ""


def parsed(document: Any, kind: str, name: str) -> tuple[Row, list[Row]]:
    """The facts and rows of a document of this kind; ValueError, which names the document, for any other."""
    if schema(document) != kind:
        found = document.get("schema") if isinstance(document, dict) else None
        raise ValueError(f"{name} must have the schema paramcorrupt/{kind}/{VERSION}, got {found!r}")
    facts, rows = document.get("facts"), document.get("rows")
    if not (_is_row(facts) and isinstance(rows, list) and all(map(_is_row, rows))):
        raise ValueError(f"{name} must have facts and rows of numbers, strings, booleans and nulls")
    try:
        for where, i, key, value in document["not_finite"]:
            row = facts if where == "facts" else rows[i]
            if row[key] is not None or math.isfinite(number := float(value)):
                raise ValueError(key)
            row[key] = number
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{name} has a damaged list not_finite: {error!r}") from error
    return facts, rows


_TYPES: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "bool": bool}


def record(kind: type[T], row: Row) -> T:
    """The dataclass that was written as a row; ValueError unless it has the right names and types."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if row.keys() != set(names):
        raise ValueError(f"a row must have {', '.join(names)}, got {', '.join(row)}")
    for field in fields(kind):  # type: ignore[arg-type]
        name, _, optional = str(field.type).partition(" | ")
        x = row[field.name]
        fits = isinstance(x, _TYPES[name]) and isinstance(x, bool) == (name == "bool")
        if not fits and not (optional and x is None):
            raise ValueError(f"{field.name} of a row must be {field.type}, got {x!r}")
    return kind(**row)


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether this is a pipe, a terminal or an open file, to which is written as it is."""
    target = Path(os.path.realpath(path))
    return os.fspath(path).startswith(_STREAMS) or (target.exists() and not (target.is_file() or target.is_dir()))


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside `path` to write a file under, which takes its place when the body has succeeded.

    Whatever fails, an older file stays as it was, and nothing half-written is left.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if is_stream(path):
        yield Path(path)  # a pipe, a terminal or an open file cannot be replaced
        return
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        try:
            temporary.open("xb").close()
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None  # the name that the user knows
        mode = (target if target.exists() else temporary).stat().st_mode & 0o7777
        yield temporary
        temporary.chmod(mode)  # whoever wrote it may have put a file of other permissions there
        temporary.replace(target)
    finally:
        with suppress(OSError):  # it has its name, or there is no place for it
            temporary.unlink()


def weight_hash(model: Any) -> str:
    """The SHA-256 of the names, types, shapes and bytes of all parameters and buffers, in order; of a model in
    shards, that of what every process holds."""
    import hashlib

    import torch

    from ._sharded import Shards
    from ._tensors import parameters

    digest = hashlib.sha256()
    named = parameters(model, buffers=True, only_floating=False)
    for name, tensor in zip(named.names, named.tensors, strict=True):
        for x in _stored(tensor.detach()):
            digest.update(f"{name}\0{x.dtype}\0{tuple(x.shape)}\0".encode(errors="surrogatepass"))
            _add_bytes(digest, x)
    shards = Shards.of(named.tensors)
    if shards.mesh is not None:
        digest = hashlib.sha256(bytes(shards.rows(torch.tensor(list(digest.digest()))).flatten().tolist()))
    return digest.hexdigest()


def _stored(x: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of: itself, or those inside a subclass."""
    from ._shards import is_sharded, local

    if is_sharded(x):
        yield local(x)
    elif hasattr(x, "__tensor_flatten__"):
        for name in x.__tensor_flatten__()[0]:
            yield from _stored(getattr(x, name))
    else:
        yield x


def _add_bytes(digest: Any, x: Tensor) -> None:
    from ctypes import c_char

    host = x.resolve_conj().resolve_neg().cpu().contiguous()
    if host.numel():
        digest.update((c_char * (host.numel() * host.itemsize)).from_address(host.data_ptr()))


def _names(rows: list[Row]) -> list[str]:
    """The names of all columns, in the order in which they are met."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _lost(row: Row) -> list[tuple[str, str]]:
    """What JSON cannot say, and where it is."""
    return [(key, repr(x)) for key, x in row.items() if isinstance(x, float) and not math.isfinite(x)]


def _plain(row: Row) -> Row:
    return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in row.items()}


def _is_row(x: object) -> bool:
    return isinstance(x, dict) and all(v is None or isinstance(v, str | int | float) for v in x.values())


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def written(text: str, path: str | os.PathLike[str] | None) -> str:
    """The text, which is also in the file if there is a path."""
    if path is not None:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    return text
