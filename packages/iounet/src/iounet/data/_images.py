"""Image files as RGB tensors, turned as their boxes were drawn; needs Pillow."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
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
        turned = image.getexif().get(0x0112) in _TURNS
        return (image.height, image.width) if turned else image.size


def read_rgb(file: File, name: str, size: tuple[int, int]) -> Tensor:
    """float32[3, H, W] in 0..1 of that size (width, height).

    The EXIF orientation is applied, as viewers and annotation tools do, unless `size` is that of the stored pixels.

    Raises:
        ValueError: the image has another size, or cannot be decoded.
    """
    from PIL import ImageOps

    with _opened(file, name) as image:
        stored = image.size
        if stored != size or stored[0] == stored[1] or image.getexif().get(0x0112) not in _TURNS:
            turned = ImageOps.exif_transpose(image)
        else:
            turned = image
        if turned.size != size:
            found = " x ".join(map(str, turned.size))
            raise ValueError(f"{name} is {found}, its annotations are for {' x '.join(map(str, size))} pixels")
        try:
            pixels = bytearray(_rgb(turned, name).tobytes())
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{name} cannot be decoded: {error}") from error
    values = torch.frombuffer(pixels, dtype=torch.uint8).view(size[1], size[0], 3)
    return values.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _opened(file: File, name: str) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except FileNotFoundError:
        raise FileNotFoundError(f"image file {name} is missing") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{name} is not a readable image: {error}") from error


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """Eight bits per channel; of 16-bit greyscale the high ones, which `convert` alone would clip to white."""
    if image.mode == "F":
        raise ValueError(f"{name} holds floating-point pixels of unknown range: save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return image.convert("RGB")
