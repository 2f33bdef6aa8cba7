"""What turns pictures into features: a callable, a torch module, or a pretrained network by name."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from ._extras import need

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from PIL.Image import Image

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, which nearly every pretrained network expects
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def features(backbone: Any) -> Callable[[list[Image]], NDArray[np.float32]]:
    """A function from pictures to their features, float32 `[n, df]`, which checks what the backbone returns.

    Args:
        backbone: a callable `list[PIL.Image] -> ndarray (n, df)`, a `torch.nn.Module` (pictures come as 224 x 224 crops
            with ImageNet's normalisation), a name of torchvision's, or `"timm:<name>"`. Names take the pretrained
            weights, their own preprocessing, and what comes before the classifier.
    """
    compute = _compute(backbone)

    def checked(pictures: list[Image]) -> NDArray[np.float32]:
        found = np.asarray(compute(pictures), np.float32)
        if found.ndim != 2 or len(found) != len(pictures):
            raise ValueError(
                f"backbone must return features of shape ({len(pictures)}, df) for {len(pictures)} pictures,"
                f" got {found.shape}"
            )
        return found

    return checked


def _compute(backbone: Any) -> Callable[[list[Image]], Any]:
    if isinstance(backbone, str):
        kind, _, name = backbone.rpartition(":")
        if kind not in {"", "timm"}:
            raise ValueError(f'backbone must be a name of torchvision\'s or "timm:<name>", got {backbone!r}')
        return _timm(name) if kind else _torchvision(name)
    torch = sys.modules.get("torch")  # a module can only come from someone who has imported it
    if torch is not None and isinstance(backbone, torch.nn.Module):
        return _module(torch, backbone, lambda picture: torch.from_numpy(_prepared(picture)))
    if not callable(backbone):
        raise TypeError(f"backbone must be a name, a torch.nn.Module or a callable, got {type(backbone).__name__}")
    return backbone  # type: ignore[no-any-return]


def _torchvision(name: str) -> Callable[[list[Image]], Any]:
    models = need("torchvision.models", "images", f"backbone {name!r}")
    torch = need("torch", "images", f"backbone {name!r}")
    if name not in (known := models.list_models(module=models)):
        from difflib import get_close_matches

        close = ", ".join(get_close_matches(name, known, cutoff=0.4)) or "see torchvision.models.list_models()"
        raise ValueError(f"backbone must be a name of torchvision's, got {name!r}; close: {close}")
    weights = models.get_model_weights(name).DEFAULT
    network = models.get_model(name, weights=weights)
    return _module(torch, _beheaded(torch, network, name), weights.transforms())


def _beheaded(torch: Any, network: Any, name: str) -> Any:
    """The network without its last linear layer, which is its classifier."""
    linear = [key for key, part in network.named_modules() if isinstance(part, torch.nn.Linear)]
    if not linear:
        raise ValueError(
            f"backbone must end in a linear classifier, got {name!r}; pass it as a module without its head"
        )
    network.set_submodule(linear[-1], torch.nn.Identity())
    return network


def _timm(name: str) -> Callable[[list[Image]], Any]:
    if find_spec("timm") is None:
        raise ImportError(f"backbone 'timm:{name}' needs timm: pip install timm 'imgskipgram[images]'", name="timm")
    torch, timm = import_module("torch"), import_module("timm")
    network = timm.create_model(name, pretrained=True, num_classes=0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    return _module(torch, network, transform)


def _module(torch: Any, network: Any, prepare: Callable[[Image], Any]) -> Callable[[list[Image]], Any]:
    def compute(pictures: list[Image]) -> Any:
        first = next(network.parameters(), None)
        batch = torch.stack([prepare(picture) for picture in pictures])
        training = network.training
        network.eval()
        try:
            with torch.inference_mode():
                out = network(batch if first is None else batch.to(first.device, first.dtype))
        finally:
            network.train(training)
        if not isinstance(out, torch.Tensor):
            raise ValueError(f"backbone must return a tensor, got {type(out).__name__}; wrap it in a callable")
        return (out.mean((2, 3)) if out.dim() == 4 else out).float().cpu().numpy()

    return compute


def _prepared(picture: Image) -> NDArray[np.float32]:
    """The middle 224 of 256 pixels of the shorter side, channels first."""
    scale = 256 / min(picture.size)
    width, height = (max(224, round(side * scale)) for side in picture.size)
    left, top = (width - 224) // 2, (height - 224) // 2
    small = picture.resize((width, height)).crop((left, top, left + 224, top + 224))
    return np.ascontiguousarray(((np.asarray(small, np.float32) / 255 - _MEAN) / _DEVIATION).transpose(2, 0, 1))
