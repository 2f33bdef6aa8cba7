"""Pictures as files and bytes: opened, checked, made small."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._extras import need

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 192  # pixels of a thumbnail's longer side: sharp where a gallery shows it at 96 on a fine screen
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def opened(source: Any, name: str) -> Image:
    """A picture, upright and in RGB, from a path, bytes or a picture of Pillow's; OSError with its name if broken."""
    pillow = need("PIL.Image", "images", "reading pictures")
    ops = need("PIL.ImageOps", "images", "reading pictures")
    try:
        if source is None:
            raise ValueError("there is none")
        if not isinstance(source, pillow.Image):
            source = pillow.open(io.BytesIO(source if isinstance(source, bytes) else Path(source).read_bytes()))
        upright = ops.exif_transpose(source)
        if "transparency" in upright.info or upright.mode in {"RGBA", "LA", "PA"}:
            ground = pillow.new("RGBA", upright.size, "white")
            upright = pillow.alpha_composite(ground, upright.convert("RGBA"))
        return upright.convert("RGB")  # type: ignore[no-any-return]
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise OSError(f"{name}: not a picture that can be read: {error}") from error


def thumbnail(picture: Image) -> bytes:
    """The picture with at most 192 pixels a side, as WebP."""
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def encoded(thumbnail_: Any, row: int) -> bytes | None:
    """A thumbnail that a caller gives: bytes as they are, a path or a picture made small, None for none."""
    if thumbnail_ is None:
        return None
    if isinstance(thumbnail_, bytes):
        if media_type(thumbnail_) is None:
            raise ValueError(f"thumbnails must be PNG, JPEG, WebP or GIF, got {thumbnail_[:8]!r} in row {row}")
        return thumbnail_
    return thumbnail(opened(thumbnail_, str(thumbnail_) if isinstance(thumbnail_, str | Path) else f"thumbnail {row}"))


def media_type(data: bytes) -> str | None:
    """The type of an encoded picture that browsers show, by its first bytes."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None
