"""The head that predicts a box's IoU with its object from pooled features."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["IoUHead"]

Loss = Literal["smooth_l1", "bce"]


class IoUHead(nn.Module):
    r"""Predicts for each box and class the IoU of the box with its object.

    .. math::
        r = W_3\, \mathrm{relu}(W_2\, \mathrm{relu}(W_1 x)), \qquad
        \mathrm{IoU} = (r_c + 1) / 2 \;\text{("smooth_l1")} \quad\text{or}\quad \sigma(r_c) \;\text{("bce")}

    Args:
        in_channels: channels of the pooled features.
        num_classes: classes as the detector counts them, 0 the background.
        resolution: side of the pooled features (default 7, the paper's).
        hidden: width of both hidden layers (default 1024, the paper's).
        class_aware: one output per class (default, the paper's), or one for all of them.
        loss: "smooth_l1" (default, the paper's; beta 1, target 2 IoU - 1) or "bce" (target IoU), which took published
            reproductions further at AP90.

    Hidden layers start from Xavier's uniform distribution, the output from N(0, 0.01); biases from 0.

    Raises:
        ValueError: a size that is not positive, an unknown loss.

    Example:
        >>> head = IoUHead(16, num_classes=3, hidden=32)
        >>> x, labels, iou = torch.randn(5, 16, 7, 7), torch.tensor([1, 2, 2, 1, 1]), torch.rand(5)
        >>> raw = head(x, labels)
        >>> head.loss(raw, labels, iou).backward()
        >>> head.decode(raw).shape
        torch.Size([5])

    Reference: B. Jiang et al., Acquisition of Localization Confidence for Accurate Object Detection,
    https://arxiv.org/abs/1807.11590
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        resolution: int = 7,
        hidden: int = 1024,
        class_aware: bool = True,
        loss: Loss = "smooth_l1",
    ) -> None:
        sizes = {"in_channels": in_channels, "num_classes": num_classes, "resolution": resolution, "hidden": hidden}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        if loss not in get_args(Loss):
            raise ValueError(f"loss must be one of {', '.join(get_args(Loss))}, got {loss!r}")
        super().__init__()
        self.in_channels, self.num_classes, self.resolution = in_channels, num_classes, resolution
        self.class_aware, self.loss_kind = class_aware, loss
        self.fc1 = nn.Linear(in_channels * resolution**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, num_classes if class_aware else 1)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    def extra_repr(self) -> str:
        return f"loss={self.loss_kind!r}, class_aware={self.class_aware}"

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Raw outputs of pooled features ``x[K, C, r, r]``.

        Without labels ``[K, num_classes]``, or ``[K, 1]`` if the head is not class-aware. With integer labels ``[K]``
        only the output of each box's own class is computed -> ``[K]``, in the parameters' dtype also under autocast (in
        bfloat16 a hundred IoUs would share one value); the others get no gradient.
        """
        shape = (self.in_channels, self.resolution, self.resolution)
        if x.shape[1:] != shape:
            raise ValueError(f"x must have shape [K, {', '.join(map(str, shape))}], got {list(x.shape)}")
        if labels is not None:
            self._check_labels(labels, len(x))
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        if labels is None:
            raw: Tensor = self.output(x)
            return raw
        rows = labels if self.class_aware else torch.zeros_like(labels)
        # An embedding: the gradient of an index adds in the order in which threads come.
        weight, bias = F.embedding(rows, self.output.weight), F.embedding(rows, self.output.bias[:, None])
        return (x * weight).sum(1) + bias[:, 0]

    def decode(self, raw: Tensor) -> Tensor:
        """The IoU that raw outputs stand for.

        With "smooth_l1" the line (raw + 1) / 2, which is not clamped and may leave [0, 1] a little: at a bound the
        gradient of a clamped IoU is 0, so that refinement would stop, and the best boxes would tie in NMS. Clamp what
        is shown to a user.
        """
        return raw.sigmoid() if self.loss_kind == "bce" else (raw + 1) / 2

    def loss(self, raw: Tensor, labels: Tensor, iou: Tensor) -> Tensor:
        """Mean loss of raw outputs, ``[K]`` or of all classes as :meth:`forward` gives them, for true IoU ``[K]``.

        Only the output of a box's label counts. Without boxes it is 0, and connected to the parameters.
        """
        if iou.shape != raw.shape[:1]:
            raise ValueError(f"iou must have shape {list(raw.shape[:1])} as raw has rows, got {list(iou.shape)}")
        self._check_labels(labels, len(raw))
        if raw.ndim == 2:
            raw = raw.gather(1, labels[:, None])[:, 0] if self.class_aware else raw[:, 0]
        wide = torch.promote_types(raw.dtype, torch.float32)
        raw, iou = raw.to(wide), iou.detach().to(wide)
        if self.loss_kind == "bce":
            total = F.binary_cross_entropy_with_logits(raw, iou, reduction="sum")
        else:
            total = F.smooth_l1_loss(raw, 2 * iou - 1, reduction="sum")
        return total / max(len(raw), 1)

    def _check_labels(self, labels: Tensor, count: int) -> None:
        if labels.shape != (count,):
            raise ValueError(f"labels must have shape [{count}], got {list(labels.shape)}")
        if labels.dtype != torch.int64:
            raise TypeError(f"labels must be int64, got {labels.dtype}")
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and self.class_aware and count:
            low, high = labels.aminmax()
            if low < 0 or high >= self.num_classes:
                wrong = int(low if low < 0 else high)
                raise ValueError(f"labels must be in [0, {self.num_classes}), got {wrong}")
