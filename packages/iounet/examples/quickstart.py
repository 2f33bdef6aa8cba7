"""IoU-Net in thirty lines: a head learns how well a box is placed, and then moves boxes to where it is sure of them."""

import torch

import iounet

torch.manual_seed(0)


def scenes(count):
    """Maps with one bright rectangle each, in noise, and its box."""
    side = torch.rand(count, 2) * 24 + 12
    corner = torch.rand(count, 2) * (56 - side) + 4
    boxes = torch.cat((corner, corner + side), 1)
    pixel = torch.arange(64.0)
    x, y = (
        (pixel + 0.5 - low[:, None]).clamp(0, 1) * (high[:, None] - pixel + 0.5).clamp(0, 1)
        for low, high in (boxes[:, ::2].unbind(1), boxes[:, 1::2].unbind(1))
    )
    return (y[:, :, None] * x[:, None, :] + 0.1 * torch.randn(count, 64, 64))[:, None], boxes


def with_image(boxes):
    return torch.cat((torch.arange(len(boxes))[:, None] + 0.0, boxes), 1)


pool = iounet.PrRoIPool2d(7, spatial_scale=1.0)
head = iounet.IoUHead(in_channels=1, num_classes=2, hidden=128)
optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3)
for _ in range(300):
    maps, gt = scenes(16)
    boxes, iou = iounet.sample_jittered_boxes(gt, 8, low=0.5)  # uniform in IoU
    rows = with_image(gt).repeat_interleave(8, 0)
    rows[:, 1:] = boxes.flatten(0, 1)
    labels = torch.ones(len(rows), dtype=torch.int64)
    loss = head.loss(head(pool(maps, rows), labels), labels, iou.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def predictor(maps, boxes, labels):
    return head.decode(head(pool(maps, boxes), labels))


maps, gt = scenes(200)
start, before = (x[:, 0] for x in iounet.sample_jittered_boxes(gt, 1, low=0.5, high=0.8))
rule = {"scale": "log", "step": 0.05, "on_degrade": "backtrack"}
result = iounet.refine_boxes(predictor, maps, with_image(start), torch.ones(200, dtype=torch.int64), **rule)
overlap = (torch.minimum(result.boxes[:, 3:], gt[:, 2:]) - torch.maximum(result.boxes[:, 1:3], gt[:, :2])).clamp(min=0)
union = (gt[:, 2:] - gt[:, :2]).prod(1) + (result.boxes[:, 3:] - result.boxes[:, 1:3]).prod(1) - overlap.prod(1)
after = overlap.prod(1) / union
print(f"mean IoU with the rectangles: {before.mean():.3f} before refinement, {after.mean():.3f} after")
print(f"predicted: {result.initial_iou.mean():.3f} before, {result.iou.mean():.3f} after")
