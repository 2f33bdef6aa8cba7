"""The IoU head: what it computes, how it starts, and which parameters learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from iounet import IoUHead

BOTH_LOSSES = pytest.mark.parametrize("loss", ["smooth_l1", "bce"])


def seeded(**options: Any) -> IoUHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return IoUHead(8, 5, **{"hidden": 64, "resolution": 3, **options})


def batch(count: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 8, 3, 3, generator=generator)
    return x, torch.randint(1, 5, (count,), generator=generator), torch.rand(count, generator=generator)


def test_shapes_are_the_papers() -> None:
    head = IoUHead(256, 81)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters() if name.endswith("weight")}
    assert shapes == {"fc1.weight": (1024, 256 * 49), "fc2.weight": (1024, 1024), "output.weight": (81, 1024)}


def test_hidden_layers_start_from_xavier_and_the_output_from_a_narrow_normal() -> None:
    head = seeded(hidden=1024, loss="bce")
    for layer in (head.fc1, head.fc2):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert not layer.bias.any()
    assert head.output.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.output.weight.abs().max() > 0.03  # no uniform distribution of that width reaches it
    assert not head.output.bias.any()


def test_the_output_is_two_hidden_layers_and_a_line() -> None:
    head, (x, _, _) = seeded(), batch()
    weights = dict(head.named_parameters())
    y = x.reshape(len(x), -1)
    for name in ("fc1", "fc2"):
        y = (y @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]).clamp(min=0)
    torch.testing.assert_close(head(x), y @ weights["output.weight"].T + weights["output.bias"])


@BOTH_LOSSES
def test_labels_compute_the_row_that_gathering_would_pick(loss: str) -> None:
    head, (x, labels, iou) = seeded(loss=loss).double(), batch()
    x, iou = x.double(), iou.double()
    full, own = head(x), head(x, labels)
    assert full.shape == (40, 5)
    torch.testing.assert_close(own, full.gather(1, labels[:, None])[:, 0])
    gradients = []
    for raw in (full, own):
        head.zero_grad()
        head.loss(raw, labels, iou).backward()
        gradients.append([p.grad.clone() for p in head.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("gathered", [True, False])
@BOTH_LOSSES
def test_other_classes_get_a_gradient_of_exactly_zero(loss: str, gathered: bool) -> None:
    head, (x, labels, iou) = seeded(loss=loss), batch()
    labels = torch.where(labels == 3, 1, labels)
    head.loss(head(x, labels) if gathered else head(x), labels, iou).backward()
    assert head.output.weight.grad is not None
    assert head.output.bias.grad is not None
    for row in (0, 3):
        assert not head.output.weight.grad[row].any()
        assert not head.output.bias.grad[row].any()
    for row in (1, 2, 4):
        assert head.output.weight.grad[row].any()


def test_one_output_serves_all_classes_if_not_class_aware() -> None:
    head, (x, labels, iou) = seeded(class_aware=False), batch()
    assert head(x).shape == (40, 1)
    torch.testing.assert_close(head(x, labels), head(x)[:, 0])
    assert torch.equal(head.loss(head(x), labels, iou), head.loss(head(x, labels + 1), labels, iou))


def test_smooth_l1_regresses_twice_the_iou_minus_one() -> None:
    head = seeded()
    raw, iou = torch.tensor([0.5, -1.0, 3.0]), torch.tensor([0.75, 0.25, 0.5])
    expected = (0 + 0.5 * 0.5**2 + (3 - 0.5)) / 3  # beta is 1
    assert head.loss(raw, torch.tensor([1, 2, 3]), iou).item() == pytest.approx(expected)
    torch.testing.assert_close(head.decode(raw), torch.tensor([0.75, 0.0, 2.0]))


def test_bce_is_the_cross_entropy_of_the_iou() -> None:
    head = seeded(loss="bce")
    raw, iou = torch.tensor([0.5, -1.0, 3.0]), torch.tensor([0.75, 0.25, 0.5])
    p = raw.sigmoid()
    expected = -(iou * p.log() + (1 - iou) * (1 - p).log()).mean()
    torch.testing.assert_close(head.loss(raw, torch.tensor([1, 2, 3]), iou), expected)
    torch.testing.assert_close(head.decode(raw), p)


@BOTH_LOSSES
def test_the_loss_is_least_where_the_decoded_output_is_the_iou(loss: str) -> None:
    head, labels, iou = seeded(loss=loss), torch.ones(9, dtype=torch.int64), torch.linspace(0.1, 0.9, 9).double()
    raw = (iou.logit() if loss == "bce" else 2 * iou - 1).requires_grad_()
    torch.testing.assert_close(head.decode(raw), iou)
    least = head.loss(raw, labels, iou)
    least.backward()
    torch.testing.assert_close(raw.grad, torch.zeros_like(raw))
    for shift in (-0.1, 0.1):
        assert head.loss(raw + shift, labels, iou) > least


@BOTH_LOSSES
def test_decoding_has_a_gradient_and_an_order_at_the_bounds(loss: str) -> None:
    raw = torch.tensor([-1.2, -1.0, 1.0, 1.1, 1.2], requires_grad=True)
    decoded = seeded(loss=loss).decode(raw)
    decoded.sum().backward()
    assert raw.grad is not None
    assert (raw.grad > 0.05).all()
    assert (decoded.diff() > 0).all()


@pytest.mark.parametrize("class_aware", [True, False])
@pytest.mark.parametrize("gathered", [True, False])
@BOTH_LOSSES
def test_without_boxes_the_loss_is_zero_and_connected(loss: str, gathered: bool, class_aware: bool) -> None:
    head, (x, labels, iou) = seeded(loss=loss, class_aware=class_aware), batch(0)
    value = head.loss(head(x, labels if gathered else None), labels, iou)
    assert value.item() == 0
    value.backward()
    for p in head.parameters():
        assert p.grad is not None
        assert not p.grad.any()


def test_the_loss_of_16_bit_outputs_is_computed_in_float32() -> None:
    head, (_, labels, iou) = seeded(), batch()
    raw = torch.randn(40, generator=torch.Generator().manual_seed(2)).bfloat16()
    value = head.loss(raw, labels, iou)
    assert value.dtype == torch.float32
    assert torch.equal(value, head.loss(raw.float(), labels, iou))


@pytest.mark.parametrize("class_aware", [True, False])
def test_under_autocast_the_output_of_a_label_keeps_the_parameters_precision(class_aware: bool) -> None:
    head, (x, labels, _) = seeded(class_aware=class_aware), batch()
    with torch.autocast("cpu", torch.bfloat16):
        raw = head(x, labels)
    assert raw.dtype == torch.float32
    assert len(raw.unique()) == len(raw)
    torch.testing.assert_close(raw, head(x, labels), rtol=0, atol=0.01 * raw.abs().max().item())


@pytest.mark.parametrize("gathered", [True, False])
def test_the_true_iou_gets_no_gradient(gathered: bool) -> None:
    head, (x, labels, iou) = seeded(), batch()
    iou.requires_grad_()
    head.loss(head(x, labels if gathered else None), labels, iou).backward()
    assert iou.grad is None


def test_it_learns() -> None:
    head, (x, labels, iou) = seeded(), batch()
    for _ in range(300):
        gradients = torch.autograd.grad(head.loss(head(x, labels), labels, iou), list(head.parameters()))
        with torch.no_grad():
            for p, gradient in zip(head.parameters(), gradients, strict=True):
                p -= 0.1 * gradient
    assert F.l1_loss(head.decode(head(x, labels)), iou) < 0.03


def test_it_compiles_whole() -> None:
    head, (x, labels, iou) = seeded(), batch()
    compiled = torch.compile(lambda x, labels, iou: head.loss(head(x, labels), labels, iou), fullgraph=True,
                             backend="aot_eager")  # fmt: skip
    torch.testing.assert_close(compiled(x, labels, iou), head.loss(head(x, labels), labels, iou))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "hidden must be positive, got 0"),
        ({"resolution": 0}, "resolution must be positive, got 0"),
        ({"loss": "l2"}, "loss must be one of smooth_l1, bce, got 'l2'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seeded(**options)


def test_bad_input_is_refused() -> None:
    head, (x, labels, iou) = seeded(), batch(4)
    with pytest.raises(ValueError, match=r"x must have shape \[K, 8, 3, 3\], got \[4, 72\]"):
        head(x.flatten(1))
    with pytest.raises(ValueError, match=r"labels must have shape \[4\], got \[3\]"):
        head(x, labels[:3])
    with pytest.raises(TypeError, match=r"labels must be int64, got torch\.int32"):
        head(x, labels.int())
    with pytest.raises(ValueError, match=r"labels must be in \[0, 5\), got 5"):
        head(x, torch.tensor([1, 2, 5, 0]))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 5\), got -1"):
        head.loss(head(x), torch.tensor([1, 2, -1, 0]), iou)
    with pytest.raises(ValueError, match=r"iou must have shape \[4\] as raw has rows, got \[3\]"):
        head.loss(head(x), labels, iou[:3])


def test_gradients_are_the_same_bits_every_time_with_several_threads() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        head = IoUHead(4, 3, hidden=256)
        x, labels, iou = torch.randn(4000, 4, 7, 7), torch.randint(1, 3, (4000,)), torch.rand(4000)
        runs = [torch.autograd.grad(head.loss(head(x, labels), labels, iou), [*head.parameters()]) for _ in range(4)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
