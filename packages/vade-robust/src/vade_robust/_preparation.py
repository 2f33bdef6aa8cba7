"""What rows are turned into before the networks see them, fitted in one pass over them, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Preparation:
    """What turns rows into the networks' input, and back.

    kind: "bernoulli" (rows in [0, 1]) or "gaussian" (centred by column, divided by one scalar).
    pixel: what uint8 values are divided by (bernoulli): 255, and 1 if the fitted ones were 0 and 1.
    unit: what a decoded mean is multiplied by (bernoulli): `pixel` if the fitted rows were uint8, else 1.
    shift [P], scale []: float64, because those of large or tiny units do not fit into float32's precision.
    low, high [P]: float32, the range of the fitted rows after preparation (bernoulli: 0 and 1).
    """

    kind: str
    pixel: float
    unit: float
    shift: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Prepared rows (b, *shape) in float32, of rows as the user has them."""
        if self.kind == "bernoulli":
            prepared = rows.to(torch.float32)
            return prepared.div_(self.pixel) if rows.dtype == torch.uint8 and self.pixel != 1 else prepared
        shape = rows.shape[1:]
        exact = rows.to(torch.float64, copy=True)
        return exact.sub_(self._to(self.shift, rows).view(shape)).div_(self._to(self.scale, rows)).to(torch.float32)

    def restore(self, prepared: Tensor) -> Tensor:
        """Rows in the user's units, float32, of prepared rows (b, *shape)."""
        if self.kind == "bernoulli":
            return prepared * self.unit if self.unit != 1 else prepared
        exact = prepared.to(torch.float64) * self._to(self.scale, prepared)
        return exact.add_(self._to(self.shift, prepared).view(prepared.shape[1:])).to(torch.float32)

    @property
    def log_volume(self) -> float:
        """log |d user's row / d prepared row|, in nats: what a density of prepared rows is lowered by (gaussian)."""
        return self.shift.numel() * math.log(float(self.scale)) if self.kind == "gaussian" else 0.0

    def tensors(self) -> dict[str, Tensor]:
        """What to keep as buffers and to save (with `kind`, `pixel` and `unit`); their dtypes must stay."""
        return {"shift": self.shift, "scale": self.scale, "low": self.low, "high": self.high}

    @staticmethod
    def _to(value: Tensor, like: Tensor) -> Tensor:
        return value.to(like.device)


@dataclass
class Scan:
    """What a pass over raw rows tells of them."""

    rows: int = 0
    low: float = math.inf
    high: float = -math.inf
    bytes_only: bool = True  # all were uint8
    whole: bool = True  # all were integers or booleans
    moments: Moments | None = None


@dataclass
class Moments:
    """Means and sums of squared deviations by column, merged from chunks (Chan, Golub and LeVeque, 1979); float64."""

    rows: int
    mean: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor

    def merged(self, other: Moments) -> Moments:
        rows = self.rows + other.rows
        difference = other.mean - self.mean
        return Moments(
            rows,
            self.mean + difference * (other.rows / rows),
            self.squares + other.squares + difference.square() * (self.rows * other.rows / rows),
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
        )


def standardise(scan: Scan) -> Preparation:
    moments = scan.moments
    assert moments is not None
    constant = moments.low == moments.high  # its mean is not rounded, and its variance no remainder of rounding
    mean = torch.where(constant, moments.low, moments.mean)
    variance = float(torch.where(constant, 0.0, moments.squares / moments.rows).mean())
    if not math.isfinite(variance):
        raise ValueError(f"X is too large for its variance to be a number: its values reach {scan.high:g}; rescale it")
    scale = torch.tensor(math.sqrt(variance) if variance > 0 else 1.0, dtype=torch.float64)
    low, high = ((x - mean) / scale for x in (moments.low, moments.high))
    return Preparation("gaussian", 1.0, 1.0, mean, scale, low.float(), high.float())


def look(scan: Scan, place: str, raw: Tensor, moments: bool) -> None:
    """Adds a chunk to what is known, and refuses NaN and infinity."""
    if not raw.numel():
        return
    scan.bytes_only &= raw.dtype == torch.uint8
    scan.whole &= not raw.is_floating_point()
    exact = raw.flatten(1)
    if exact.dtype in (torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16):
        exact = exact.to(torch.float64 if exact.dtype.itemsize > 2 else torch.float32)
    low, high = (float(x) for x in exact.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        first = int((~exact.isfinite()).any(1).nonzero()[0])
        value = exact[first][~exact[first].isfinite()][0]
        start = place.removeprefix("row ")
        place = f"row {int(start) + first}" if start.isdigit() else f"{place}, row {first} of it"
        raise ValueError(not_finite(float(value), place))
    scan.rows += len(raw)
    scan.low, scan.high = min(scan.low, low), max(scan.high, high)
    if moments:
        exact = exact.to("cpu", torch.float64)
        mean = exact.mean(0)
        new = Moments(len(exact), mean, (exact - mean).square_().sum(0), exact.amin(0), exact.amax(0))
        scan.moments = new if scan.moments is None else scan.moments.merged(new)


def not_finite(value: float, place: str) -> str:
    return f"Input X contains {'NaN' if math.isnan(value) else 'infinity (inf)'} in {place}"


def check_range(scan: Scan, pixel: float, place: str = "") -> None:
    low, high = (scan.low, scan.high) if not scan.bytes_only else (scan.low / pixel, scan.high / pixel)
    if scan.rows and not (low >= 0 and high <= 1):
        raise ValueError(
            f"a bernoulli reconstruction needs X in [0, 1], got values from {low:g} to {high:g}{place}: scale to "
            "[0, 1] or use reconstruction='gaussian'"
        )
