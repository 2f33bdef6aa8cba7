"""Chinese word segmentation by one compact CRF with shared and per-domain weights."""

__all__: list[str] = []
__version__ = "1.0.0"
