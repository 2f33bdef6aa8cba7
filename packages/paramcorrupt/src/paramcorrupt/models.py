"""Models, losses and data by references, as the command line takes them: yours, Hugging Face's, torchvision's."""

from __future__ import annotations

import inspect
import os
import re
import sys
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ._extras import need
from ._weights import load_weights, read_weights
from .objective import Objective

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

__all__ = ["data", "load", "loss"]

_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load(
    reference: str,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    *,
    trust: bool = False,
) -> nn.Module:
    """The model that a reference names.

    Args:
        reference: one of

            - "package.module:callable": called without arguments it returns a `torch.nn.Module`, or it is one. The
              current folder is searched, too;
            - "torchvision:resnet18", with its default weights, "torchvision:resnet18:IMAGENET1K_V1" with others, or
              "torchvision:resnet18:none" untrained; needs `paramcorrupt[vision]`;
            - a folder or an id of Hugging Face, whose architecture is that of its configuration, in the dtype of its
              weights; needs `paramcorrupt[hf]`.
        weights: a file, a folder or an index of weights to use instead: safetensors, or a .pt, .pth, .th, .bin or .ckpt
            of `torch.save`. A prefix that all of its names have, such as `module.`, is removed if they fit so.
        device: where the model goes.
        trust: run the code that a pickle of weights asks for; without (default), such a file is refused.

    Raises:
        OSError, ValueError, TypeError: the reference names nothing, or no model; the weights do not fit it.
        ImportError: an extra is missing.

    Example:
        >>> from paramcorrupt import models
        >>> models.load("torch.nn:Identity")
        Identity()
    """
    from ._hub import pretrained

    if reference.startswith("torchvision:"):
        model = _torchvision(reference, weights is None)
    elif reference and Path(reference).is_dir():
        model = pretrained(reference, weights is None)
    elif ":" in reference:
        model = _made(reference, "model")
        if not isinstance(model, nn.Module):
            raise TypeError(f"model {reference!r} must give a torch.nn.Module, got {type(model).__name__}")
    elif Path(reference).suffix in (".safetensors", ".pt", ".pth", ".th"):
        raise ValueError(f"model must be a reference such as module:callable, got weights alone, {reference}")
    elif _HUB.fullmatch(reference):
        model = pretrained(reference, weights is None)
    else:
        raise ValueError(
            f"model must be module:callable, torchvision:NAME, or a folder or an id of Hugging Face, got {reference!r}"
        )
    if weights is not None:
        load_weights(model, read_weights(weights, trust=trust), os.fspath(weights))
    return model.to(device)


def data(
    reference: str,
    *,
    batch_size: int | None = None,
    limit: int | None = None,
    split: str | None = None,
    model: str | None = None,
) -> Iterable[Any]:
    """The batches that a reference names, which can be gone through again and again.

    Args:
        reference: one of

            - "package.module:callable": called without arguments it returns batches that can be iterated again (a list,
              a DataLoader), or a `torch.utils.data.Dataset` of examples, or it is one of these;
            - a folder with a data set of Hugging Face (`save_to_disk`, or files of JSON, CSV, Parquet); needs
              `paramcorrupt[hf]`. Columns `input_ids` (or `text`, for a tokenizer) make batches for "lm"; any other
              column with `label` makes batches (input, target).
        batch_size: examples of a batch, of a data set (default 32).
        limit: how many examples are taken, the first ones (default all).
        split: of a folder with several (default: validation, or else test).
        model: the reference of the model, whose tokenizer is used for `text`.

    Raises:
        OSError, ValueError, TypeError: the reference names nothing, or no data; columns that cannot be used.
        ImportError: an extra is missing.

    Example:
        >>> import sys, types, torch
        >>> from paramcorrupt import models
        >>> sys.modules["mine"] = types.SimpleNamespace(batches=[(torch.ones(3, 2), torch.zeros(3))] * 2)
        >>> [len(x) for x, target in models.data("mine:batches", limit=4)]
        [3, 1]
    """
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if reference and Path(reference).is_dir():
        from ._hub import batches, dataset

        return batches(reference, dataset(reference, split), batch_size or 32, limit, model)
    if ":" not in reference:
        raise ValueError(f"data must be module:callable, or a folder that exists, got {reference!r}")
    if split is not None:
        raise ValueError(f"split must be left out for data of module:callable, got {split!r}")
    found = _made(reference, "data")
    from torch.utils.data import DataLoader, Dataset, Subset

    if isinstance(found, nn.Module):
        raise TypeError(f"data {reference!r} must give batches, got the module {type(found).__name__}")
    if isinstance(found, Dataset) and hasattr(found, "__len__"):
        size: int = len(found)
        chosen = found if limit is None else Subset(found, range(min(limit, size)))
        return DataLoader(chosen, batch_size or 32)
    if batch_size is not None:
        raise ValueError(f"batch_size must be left out for data that comes in batches, as {reference!r} gives them")
    return found if limit is None else _First(found, limit)


def loss(reference: str, model: nn.Module | None = None) -> Any:
    """The loss that a reference names, or what is usual for a model.

    Args:
        reference: "cross_entropy", "lm", "auto", or "package.module:callable", which is a callable (output, target) or
            an `Objective`. "auto" is "lm" for language models of Hugging Face, the cross entropy of labels for its
            classifiers, and "cross_entropy" for all other models.
        model: what "auto" is for.

    Raises:
        ValueError, TypeError: the reference names nothing, or no loss.

    Example:
        >>> from paramcorrupt import models
        >>> models.loss("torch.nn.functional:mse_loss").__name__
        'mse_loss'
    """
    if reference == "auto":
        if not hasattr(getattr(model, "config", None), "architectures"):
            return "cross_entropy"
        from ._hub import classify

        return Objective(classify) if type(model).__name__.endswith("Classification") else "lm"
    if ":" not in reference:
        return reference
    found = _named(reference, "loss")
    if not callable(found) and not isinstance(found, Objective):
        raise TypeError(f"loss {reference!r} must be callable or an Objective, got {type(found).__name__}")
    return found() if isinstance(found, type) and issubclass(found, nn.Module) else found


# --- module:callable ------------------------------------------------------------------------------------------------


def _named(reference: str, what: str) -> Any:
    """The attribute of a module, which may lie in the current folder."""
    name, _, path = reference.partition(":")
    if not all(part.isidentifier() for part in [*name.split("."), *path.split(".")]):
        raise ValueError(f"{what} must be a reference such as package.module:callable, got {reference!r}")
    invalidate_caches()
    try:
        with _current_folder():
            found: Any = import_module(name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses another
        raise ValueError(
            f"{what} {reference!r} needs the module {error.name!r}, which is neither installed nor in {Path.cwd()}"
        ) from None
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{what} {reference!r} names {part!r}, which is not there{_near(part, found)}")
        found = getattr(found, part)
    return found


def _made(reference: str, what: str) -> Any:
    """What is named, or what it returns when it is a function or a class."""
    found = _named(reference, what)
    if not callable(found) or (isinstance(found, nn.Module) and what == "model"):
        return found
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise TypeError(f"{what} {reference!r} must be callable without arguments: {error}") from None
    except ValueError:
        pass  # of what is written in C the signature is not known
    with _current_folder():
        return found()


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules of the current folder can be imported."""
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _near(name: str, owner: Any) -> str:
    """The most similar names that there are."""
    from difflib import get_close_matches

    names = [x for x in dir(owner) if not x.startswith("_") and not inspect.ismodule(getattr(owner, x, None))]
    near = get_close_matches(name, names)
    return f": did you mean {' or '.join(near)}?" if near else ""


class _First:
    """The first examples of batches."""

    def __init__(self, batches: Iterable[Any], limit: int) -> None:
        self._batches, self._limit = batches, limit
        if iter(batches) is batches:
            raise TypeError(f"data must be re-iterable, such as a list of batches, got {type(batches).__name__}")

    def __iter__(self) -> Iterator[Any]:
        left = self._limit
        for batch in self._batches:
            size = _size(batch)
            yield batch if size <= left else _cut(batch, left)
            left -= size
            if left <= 0:
                return


def _size(batch: Any) -> int:
    """The first dimension of the first tensor of a batch, or 1."""
    if hasattr(batch, "shape"):
        return int(batch.shape[0]) if len(batch.shape) else 1
    inner = list(batch.values()) if hasattr(batch, "values") else batch
    return _size(inner[0]) if isinstance(inner, tuple | list) and inner else 1


def _cut(batch: Any, size: int) -> Any:
    if hasattr(batch, "shape"):
        return batch[:size] if len(batch.shape) else batch
    if hasattr(batch, "items"):
        return {key: _cut(x, size) for key, x in batch.items()}
    return type(batch)(_cut(x, size) for x in batch) if isinstance(batch, tuple | list) else batch


# --- torchvision ----------------------------------------------------------------------------------------------------


def _torchvision(reference: str, trained: bool) -> nn.Module:
    _, name, *rest = reference.split(":")
    models = need("torchvision", "vision", reference).models
    wanted = rest[0] if rest else "DEFAULT"
    if len(rest) > 1 or not name:
        raise ValueError(f"model must be torchvision:NAME or torchvision:NAME:WEIGHTS, got {reference!r}")
    if name not in models.list_models():
        raise ValueError(f"model {reference!r} is none of torchvision's{_near(name, models)}")
    if not trained or wanted == "none":
        return models.get_model(name, weights=None)  # type: ignore[no-any-return]
    try:
        return models.get_model(name, weights=wanted)  # type: ignore[no-any-return]
    except (KeyError, ValueError) as error:
        has = ", ".join([*models.get_model_weights(name).__members__, "none"])
        raise ValueError(f"model {reference!r} has no weights {wanted!r}: it has {has}") from error
    except OSError as error:
        raise OSError(f"weights of {reference!r} cannot be fetched ({error}): pass a file of weights") from error
