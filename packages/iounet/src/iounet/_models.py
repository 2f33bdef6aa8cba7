"""The detectors of the command line, made, loaded and remembered: torchvision's and the small one."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from ._files import read_weights
from .detection import StandaloneIoUNet, add_iou_net, small_fasterrcnn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["MODELS", "Recipe", "build", "create", "restore"]

MODELS = ("small", *models.list_models(module=models.detection))
_FIXED_SIZE = ("ssd300_vgg16", "ssdlite320_mobilenet_v3_large")
_MOST = 100_000  # of classes, and of pixels; more is a damaged file


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is needed to build a model again, saved with its weights."""

    model: str
    classes: tuple[str, ...]  # of the labels from 1 on
    iou_net: str = "none"
    loss: Literal["smooth_l1", "bce"] = "smooth_l1"
    min_size: int | None = None
    max_size: int | None = None
    image_mean: tuple[float, ...] | None = None  # of red, green and blue; None is torchvision's
    image_std: tuple[float, ...] | None = None
    frozen_eps: float | None = None  # of the backbone's batch norms if they are frozen

    def to_config(self) -> dict[str, Any]:
        return {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> Recipe:
        """The recipe in a file that may be hostile."""
        try:
            values: dict[str, Any] = {field.name: config[field.name] for field in fields(cls)}
            values |= {name: tuple(x) for name, x in values.items() if isinstance(x, list)}
            recipe = cls(**values)
            colours = (recipe.image_mean, recipe.image_std)
            good = (
                recipe.model in MODELS
                and recipe.iou_net in ("none", "joint", "standalone")
                and recipe.loss in ("smooth_l1", "bce")
                and isinstance(recipe.classes, tuple)
                and 0 < len(recipe.classes) < _MOST
                and all(isinstance(name, str) for name in recipe.classes)
                and all(x is None or (isinstance(x, int) and 0 < x < _MOST) for x in (recipe.min_size, recipe.max_size))
                and all(x is None or (len(x) == 3 and all(0 <= y < _MOST for y in x)) for x in colours)
                and (recipe.frozen_eps is None or 0 <= recipe.frozen_eps < 1)
            )
        except (KeyError, TypeError):
            good = False
        if not good:
            raise ValueError(f"{source} must hold a model that `iounet train` made, got another config")
        return recipe


def build(recipe: Recipe, **options: Any) -> nn.Module:
    """The model with random weights; `options` are of its IoU head."""
    inputs = _inputs(recipe)
    count = len(recipe.classes) + 1
    model: Any
    if recipe.model == "small":
        model = small_fasterrcnn(count, **inputs)
    else:
        model = models.get_model(recipe.model, weights=None, weights_backbone=None, num_classes=count, **inputs)
        if recipe.frozen_eps is not None:
            _freeze_norms(model.backbone, recipe.frozen_eps)
    net: nn.Module = _with_iou_net(model, recipe, options)
    return net


def create(
    recipe: Recipe, weights: str, *, classes: Sequence[str] | None = None, **options: Any
) -> tuple[nn.Module, Recipe, list[str]]:
    """A model that starts from weights.

    Args:
        recipe: its `classes` are those of the data, and `frozen_eps` is found here.
        weights: "none", "backbone" (torchvision's, of ImageNet), the name of torchvision's weights of a detector
            ("DEFAULT", "COCO_V1"), or a file.
        classes: names of the labels of a file that does not tell them itself.
        options: of the IoU head.

    Returns:
        The model; the recipe that `build` makes it of, in which the classes are those of the weights if the data's are
        among them, so that nothing learnt is lost; and the names of tensors that did not fit and stay random.
    """
    detector = replace(recipe, iou_net="none")
    if weights == "none":
        if recipe.iou_net == "standalone":
            raise ValueError("--weights must be of a trained detector for --iou-net standalone, got none")
        return build(recipe, **options), recipe, []
    if weights == "backbone":
        donor = _torchvision(detector, weights=None, weights_backbone="DEFAULT", num_classes=len(recipe.classes) + 1)
        detector = replace(detector, frozen_eps=_frozen_eps(donor))
        donated = donor.state_dict()
    elif os.path.isfile(weights):
        donor = None
        donated, known, detector = _of_file(weights, detector, classes)
        detector = replace(detector, classes=_class_space(recipe.classes, known))
    else:
        entry = _named_weights(recipe.model, weights)
        donor = _torchvision(detector, weights=entry)
        known = _classes(entry)
        detector = replace(detector, classes=_class_space(recipe.classes, known), frozen_eps=_frozen_eps(donor))
        donated = donor.state_dict()
    model = build(detector)
    if donor is not None:
        trained = {name for name, p in donor.named_parameters() if p.requires_grad}
        for name, p in model.named_parameters():
            p.requires_grad_(name in trained)
    left = _take(model, donated)
    left = [name for name in left if not name.endswith("num_batches_tracked")]
    if left and recipe.iou_net == "standalone":
        raise ValueError(f"--weights must have all of a detector that stays as it is, but nothing fits {left[0]}")
    recipe = replace(recipe, classes=detector.classes, frozen_eps=detector.frozen_eps)
    model = _with_iou_net(model, recipe, options)
    if recipe.iou_net != "none":
        _take(model, {name: x for name, x in donated.items() if "iou_head." in name or name.startswith("lateral.")})
    return model, recipe, left


def restore(weights: str, model: str | None, classes: Sequence[str] | None) -> tuple[nn.Module, Recipe]:
    """The model of a file that `iounet train` wrote, or a torchvision detector with named weights or a state dict.

    Args:
        weights: a file, or the name of torchvision's weights.
        model: the detector, where the file does not tell it.
        classes: names of its labels, where neither the file nor torchvision tells them.
    """
    if os.path.isfile(weights):
        state, config = read_weights(weights)
        if config:
            recipe = Recipe.from_config(config, weights)
        elif model is None or classes is None:
            raise ValueError(f"--model and --data must be given for {weights}, which does not tell what it is of")
        else:
            recipe = Recipe(model, tuple(classes), frozen_eps=_guessed_eps(state))
        if model not in (None, recipe.model):
            raise ValueError(f"--model must be that of {weights}, {recipe.model}, got {model}")
        net = build(recipe)
        if left := [name for name in _take(net, state) if not name.endswith("num_batches_tracked")]:
            raise ValueError(f"{weights} must have the tensors of {recipe.model}, got none that fits {left[0]}")
        return net, recipe
    if model is None:
        raise ValueError(f"--weights must be a file, or a name of torchvision's with --model, got {weights!r}")
    entry = _named_weights(model, weights)
    net = models.get_model(model, weights=entry)
    known = _classes(entry)
    return net, Recipe(model, known, frozen_eps=_frozen_eps(net))


# ---- the parts


def _with_iou_net(model: Any, recipe: Recipe, options: Mapping[str, Any]) -> Any:
    if recipe.iou_net == "joint":
        return add_iou_net(model, loss=recipe.loss, **options)
    if recipe.iou_net == "standalone":
        return StandaloneIoUNet.from_detector(model, loss=recipe.loss, **options)
    return model


def _inputs(recipe: Recipe) -> dict[str, Any]:
    """What is not torchvision's default in the images that the detector sees."""
    if recipe.model in _FIXED_SIZE and (recipe.min_size or recipe.max_size):
        raise ValueError(f"--min-size and --max-size must not be given for {recipe.model}, whose input size is fixed")
    names = ("min_size", "max_size", "image_mean", "image_std")
    return {name: getattr(recipe, name) for name in names if getattr(recipe, name) is not None}


def _torchvision(recipe: Recipe, **arguments: Any) -> nn.Module:
    if recipe.model == "small":
        raise ValueError("--weights must be none or a file for the model small, got backbone")
    model: nn.Module = models.get_model(recipe.model, **arguments, **_inputs(recipe))
    return model


def _named_weights(model: str, name: str) -> Any:
    if model == "small":
        raise ValueError(f"--weights must be none or a file for the model small, got {name!r}")
    names = models.get_model_weights(model)
    if name not in names.__members__:
        allowed = ", ".join(names.__members__)
        raise ValueError(f"--weights must be none, backbone, {allowed} or a file for {model}, got {name!r}")
    return names[name]


def _classes(entry: Any) -> tuple[str, ...]:
    """What torchvision's weights know; the first of their categories is the background, whatever its name."""
    return tuple(entry.meta["categories"][1:])


def _of_file(
    path: str, recipe: Recipe, classes: Sequence[str] | None
) -> tuple[dict[str, Tensor], tuple[str, ...], Recipe]:
    """The tensors by the names that they have in the bare detector, its classes, and how its backbone is frozen."""
    state, config = read_weights(path)
    if not config:
        return state, tuple(classes or recipe.classes), replace(recipe, frozen_eps=_guessed_eps(state))
    of = Recipe.from_config(config, path)
    if of.model != recipe.model:
        raise ValueError(f"--model must be that of {path}, {of.model}, got {recipe.model}")
    sizes = {name: getattr(recipe, name) or x for name, x in _inputs(of).items()}
    state = {name.removeprefix("source."): x for name, x in state.items()}
    return state, of.classes, replace(recipe, frozen_eps=of.frozen_eps, **sizes)


def _class_space(wanted: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The classes that the weights know if all that are wanted are among them, else those that are wanted."""
    return tuple(known) if set(wanted) <= set(known) else tuple(wanted)


def _take(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Load the tensors that fit; the names of the model's others."""
    own = model.state_dict()
    fitting = {name: x for name, x in weights.items() if name in own and own[name].shape == x.shape}
    model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def _frozen_eps(model: nn.Module) -> float | None:
    return next((float(m.eps) for m in model.modules() if isinstance(m, FrozenBatchNorm2d)), None)


def _guessed_eps(state: Mapping[str, Tensor]) -> float | None:
    """Frozen batch norms, unlike others, do not count batches."""
    body = [name for name in state if name.startswith("backbone.")]
    counted = any(name.endswith("num_batches_tracked") for name in body)
    return None if counted or not any(name.endswith("running_mean") for name in body) else 1e-5


def _freeze_norms(module: nn.Module, eps: float) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps))
        else:
            _freeze_norms(child, eps)
