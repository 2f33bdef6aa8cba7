"""Image files as RGB tensors, turned as their boxes were drawn; needs Pillow."""

from __future__ import annotations

import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from PIL import Image

File: TypeAlias = "Path | bytes"  # a path, or what is in the file
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_TURNS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


def need_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError("image files need Pillow: pip install 'iounet[detection]'") from error


def size_of(file: File, name: str) -> tuple[int, int]:
    """Width and height as the image is displayed, from its header alone."""
    with _opened(file, name) as image:
        return (image.height, image.width) if _orientation(image) in _TURNS else image.size


def read_rgb(file: File, name: str, size: tuple[int, int]) -> Tensor:
    """float32[3, H, W] in 0..1 of that size (width, height).

    The EXIF orientation is applied, as viewers and annotation tools do, unless `size` is that of the stored pixels.

    Raises:
        FileNotFoundError: the image is missing.
        ValueError: it has another size, or cannot be decoded.
    """
    from PIL import ImageOps

    with _opened(file, name) as image:
        as_stored = image.size == size and size[0] != size[1] and _orientation(image) in _TURNS
        turned = image if as_stored else ImageOps.exif_transpose(image)
        if turned.size != size:
            found, told = (" x ".join(map(str, sides)) for sides in (turned.size, size))
            raise ValueError(f"{name} is {found}, its annotations are for {told} pixels")
        pixels = bytearray(_rgb(turned, name).tobytes())
    values = torch.frombuffer(pixels, dtype=torch.uint8).view(size[1], size[0], 3)
    return values.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


@contextmanager
def _opened(file: File, name: str) -> Iterator[Image.Image]:
    """The image; whatever Pillow finds wrong with it, then or as it is read, becomes one error with its name."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"image file {name} is missing") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, ValueError) and str(error).startswith(name):  # our own
            raise
        raise ValueError(f"{name} cannot be decoded: {error}") from error


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(0x0112, 1))


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """Eight bits per channel; of 16-bit greyscale the high ones, which `convert` alone would clip to white."""
    if image.mode == "F":
        raise ValueError(f"{name} holds floating-point pixels of unknown range: save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return image.convert("RGB")
