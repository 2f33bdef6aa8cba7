"""A small Faster R-CNN with an IoU head, trained from nothing on scenes of overlapping shapes; a table and a picture.

Needs `iounet[detection,coco]`. `python detector.py` takes about ten minutes on one core, `--smoke` seconds.
"""

import dataclasses
import sys

import torch

from iounet import coco, data, detection, training, viz

RECOMMENDED = {"scale": "log", "step": 0.05, "on_degrade": "backtrack"}
ROWS = {
    "NMS": {"nms": "nms", "refine": False},
    "IoU-guided NMS": {"refine": False},
    "+ refinement as in the paper": {},
    "+ refinement as recommended": {"refine_options": RECOMMENDED},
}


def main(smoke: bool) -> None:
    torch.manual_seed(0)
    images, epochs, size = (8, 1, 96) if smoke else (300, 12, 256)
    train, test = (data.synthetic_scenes(n, seed, size, 4) for n, seed in ((images, 0), (images // 4, 1)))
    model = detection.small_fasterrcnn(len(train.classes) + 1, min_size=size, max_size=size)
    detection.add_iou_net(model, samples_per_image=128)
    training.fit(
        model,
        train,
        epochs=epochs,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        schedule="cosine",
        progress=not smoke,
    )

    model.eval()
    options = model.roi_heads.iou_options
    found = {}
    print(f"{'':30}" + "".join(f"{name:>7}" for name in ("AP", "AP50", "AP70", "AP90")))
    for name, changes in ROWS.items():
        model.roi_heads.iou_options = dataclasses.replace(options, **changes)
        with torch.inference_mode():
            found[name] = [model([image])[0] for image, _ in test]
        ids = [target["image_id"] for _, target in test]
        report = coco.evaluate(test.annotations(), coco.to_results(test, ids, found[name]))
        print(f"{name:30}" + "".join(f"{100 * x:7.1f}" for x in (report.ap, report.ap50, report.ap70, report.ap90)))

    image, target = test[0]
    before, after = (sure(found[name][0]) for name in ("NMS", "+ refinement as recommended"))
    viz.overlay(image, before, after, target).save("before_after.png")


def sure(detections: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: values[detections["scores"] > 0.3] for name, values in detections.items()}


if __name__ == "__main__":
    main("--smoke" in sys.argv[1:])
