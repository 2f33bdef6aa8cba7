"""Models and data sets of Hugging Face: what their files say about themselves makes batches that a loss understands."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ._extras import need
from .objective import IGNORED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_LABELS = ("label", "labels", "target", "y")
_SPLITS = ("validation", "valid", "dev", "test")
_LONGEST = 1024  # tokens of a text, where neither model nor tokenizer has a limit


def pretrained(reference: str, trained: bool) -> nn.Module:
    """The model of a folder or an id, in the class that its configuration names; its own weights if `trained`."""
    transformers = need("transformers", "hf", f"model {reference!r}")
    if Path(reference).is_dir() and not Path(reference, "config.json").is_file():
        raise FileNotFoundError(f"model {reference!r} must have a config.json, as models of Hugging Face do")
    with _no_bars(transformers.utils.logging):
        try:
            config = transformers.AutoConfig.from_pretrained(reference)
            name = (config.architectures or ["AutoModelForCausalLM"])[0]
            kind = getattr(transformers, name, None)
            if kind is None:
                raise ValueError(f"transformers {transformers.__version__} has no {name}")
            if not trained:
                model: nn.Module = kind(config) if config.architectures else kind.from_config(config)
                return model.eval()
            model, found = kind.from_pretrained(reference, dtype="auto", output_loading_info=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"model {reference!r} cannot be loaded from Hugging Face: {reason}") from error
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"model {reference!r} must have all of its weights, got none for {', '.join(missing[:3])}{more}"
        )
    return model.eval()


@contextmanager
def _no_bars(logging: Any) -> Iterator[None]:
    """Without the bars of loading, which are not wanted where stderr is a file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def classify(model: Any, batch: Any) -> tuple[Tensor, Any, Any]:
    """The step of an `Objective` for classifiers: the cross entropy of their logits and the labels of a batch."""
    if not isinstance(batch, dict):
        inputs, labels = batch
        logits = model(inputs).logits
    else:
        labels = batch["labels"]
        logits = model(**{key: x for key, x in batch.items() if key != "labels"}).logits
    losses = cross_entropy(logits.float(), labels, reduction="none")
    right = (logits.argmax(1) == labels) & logits.isfinite().all(1)
    return losses.sum(dtype=torch.float64), (labels != IGNORED).sum(), right.sum()


# --- data -----------------------------------------------------------------------------------------------------------


class Batches:
    """Rows of a data set, a batch at a time, as often as they are asked for."""

    def __init__(self, table: Any, batch_size: int, collate: Callable[[dict[str, list[Any]]], Any]) -> None:
        self._table, self._size, self._collate = table, batch_size, collate

    def __len__(self) -> int:
        return -(-len(self._table) // self._size)

    def __iter__(self) -> Iterator[Any]:
        for first in range(0, len(self._table), self._size):
            yield self._collate(self._table[first : first + self._size])


def dataset(reference: str, split: str | None) -> Any:
    """The table in a folder that `save_to_disk` wrote, or that has files of data."""
    datasets = need("datasets", "hf", f"data {reference!r}")
    saved = any(Path(reference, name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    shown = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        found = datasets.load_from_disk(reference) if saved else datasets.load_dataset(reference)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"data {reference!r} must be a data set of Hugging Face: {reason}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    if not isinstance(found, dict):
        if split is not None:
            raise ValueError(f"split must be left out for data without splits, as {reference!r} is, got {split!r}")
        return found
    names = list(found)
    chosen = split or next((name for name in _SPLITS if name in names), names[0] if len(names) == 1 else "")
    if chosen not in names:
        raise ValueError(f"split must be one of {', '.join(names)} for {reference!r}, got {split!r}")
    return found[chosen]


def batches(reference: str, table: Any, batch_size: int, limit: int | None, model: str | None) -> Batches:
    """Batches of the kind that the columns are for."""
    names = table.column_names
    label = next((name for name in _LABELS if name in names), None)
    if "text" in names and "input_ids" not in names:
        if model is None:
            raise ValueError(f"data {reference!r} has text, which needs a model of Hugging Face for its tokenizer")
        table = table.select([i for i, text in enumerate(table["text"]) if text.strip()])
    if not len(table):
        raise ValueError(f"data {reference!r} must have at least one row, got none")
    if limit is not None:
        table = table.select(range(min(limit, len(table))))
    if "input_ids" in names:
        return Batches(
            table, batch_size, lambda rows: _language(rows["input_ids"], rows.get("labels") or rows.get("label"))
        )
    if "text" in names:
        encode = _tokenizer(str(model), reference)
        return Batches(table, batch_size, lambda rows: _language(encode(rows["text"]), rows[label] if label else None))
    inputs = [name for name in names if name != label and name not in ("id", "idx", "index")]
    if label is None or len(inputs) != 1:
        raise ValueError(
            f"data {reference!r} must have the column input_ids or text, or one column beside label, got "
            f"{', '.join(names)}: write a function of module:callable that makes batches"
        )
    return Batches(table, batch_size, lambda rows: (_stack(rows[inputs[0]]), torch.tensor(rows[label])))


def _tokenizer(model: str, reference: str) -> Callable[[list[str]], list[list[int]]]:
    transformers = need("transformers", "hf", f"data {reference!r}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        config = transformers.AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"data {reference!r} has text, for which {model!r} must have a tokenizer") from error
    longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", _LONGEST) or _LONGEST)

    def encode(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
        return ids

    return encode


def _language(ids: Sequence[Sequence[int]], labels: Any) -> dict[str, Tensor]:
    """Rows of tokens as a batch: padded, masked, with labels that leave the padding out."""
    known = _padded(ids, 0)
    mask = _padded([[1] * len(row) for row in ids], 0)
    if labels is None:
        target = known.masked_fill(mask == 0, IGNORED)
    elif isinstance(labels[0], int):
        target = torch.tensor(labels)
    else:
        target = _padded(labels, IGNORED)
    return {"input_ids": known, "attention_mask": mask, "labels": target}


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], dtype=torch.int64)


def _stack(values: list[Any]) -> Tensor:
    """Numbers, lists of them, or images, which become (channels, height, width) in [0, 1]."""
    if not hasattr(values[0], "getbands"):
        return torch.tensor(values)
    images = []
    for image in values:
        width, height = image.size
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        images.append(pixels.view(height, width, -1).permute(2, 0, 1).float() / 255)
    return torch.stack(images)
