"""An IoU head inside of torchvision's two-stage detectors, trained together with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, keypointrcnn_inference, maskrcnn_inference
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from .._head import IoUHead
from .._pooling import MultiScalePrRoIPool
from ._options import Options
from ._rescoring import Rescorer
from ._samples import jittered_loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._options import Key, Loss, Nms, Score, Target
    from ._rescoring import Detections

__all__ = ["IoURoIHeads", "add_iou_net"]

_Model = TypeVar("_Model", bound=nn.Module)


def add_iou_net(
    model: _Model,
    *,
    nms: Nms = "iou",
    key: Key = "iou",
    iou_threshold: float | None = None,
    refine: bool = True,
    refine_top: int = 100,
    refine_options: Mapping[str, Any] | None = None,
    score: Score = "class",
    samples_per_image: int = 1000,
    loss: Loss = "smooth_l1",
    loss_weight: float = 5.0,
    target: Target = "source",
    max_candidates: int = 1000,
) -> _Model:
    r"""Give a torchvision Faster, Mask or Keypoint R-CNN (v1 or v2) an IoU head, in place.

    In training the model returns one loss more,

    .. math::
        \mathtt{loss\_iou} = \lambda \, \mathrm{loss}(\mathrm{head}(\mathrm{pool}(F, b))_{c}, \mathrm{IoU}(b, g)),

    over boxes b jittered around ground truth g of class c. In evaluation candidates above the score threshold pass NMS
    guided by their predicted IoU, then the best ascend it; detections have a field ``ious``, and masks and keypoints
    are those of the refined boxes. Everything that the model had stays, also its keys in ``state_dict()``: new are
    ``roi_heads.iou_head.*``. Its NMS threshold, score threshold and number of detections are read at each call, and so
    are the options: ``model.roi_heads.iou_options = dataclasses.replace(model.roi_heads.iou_options, refine=False)``.

    Args:
        model: a detector whose ``roi_heads`` are torchvision's, with a feature pyramid or a single map.
        nms: "iou" (default) ranks candidates by `key`, and a box inherits the best score of those that it removes;
            "nms" ranks by class score, as torchvision; "soft" is linear Soft-NMS.
        key: of "iou": the predicted IoU (default, the paper's), or "product" with the class score.
        iou_threshold: of the NMS (default None: the model's ``roi_heads.nms_thresh``; 0.3 for "soft", its paper's).
        refine: whether detections are refined by :func:`iounet.refine_boxes` (default True).
        refine_top: the best detections of an image are refined (default 100, the paper's).
        refine_options: keyword arguments of :func:`iounet.refine_boxes`, ``step`` to ``starts`` (default None: the
            paper's). ``dict(scale="log", step=0.05, on_degrade="backtrack")`` moves boxes of all sizes alike and never
            down.
        score: the cluster's class score (default "class", the paper's), or "product" with the final predicted IoU.
        samples_per_image: training boxes, spread evenly over the ground truth (default 1000, of the reproduction).
        loss: "smooth_l1" (default, the paper's) or "bce", of :class:`iounet.IoUHead`.
        loss_weight: :math:`\lambda` (default 5, of the reproduction; the paper gives none).
        target: the IoU of training is with the "source" of the jitter (default), or "max" over the ground truth of the
            class.
        max_candidates: in each image, IoUs are predicted of so many candidates of the highest score (default 1000).

    A target may hold "jitter_seed", an int that decides its training boxes (default: torch's global generator), and
    "iscrowd", a bool for each box: none is trained on a crowd. An image without ground truth adds nothing to the loss.

    Returns:
        The model itself.

    Raises:
        TypeError: the model has no such ``roi_heads``; use :class:`StandaloneIoUNet`.
        ValueError: the model has an IoU head already, or an option is out of its range. It is unchanged then.

    Example::

        model = torchvision.models.detection.fasterrcnn_resnet50_fpn_v2(weights="DEFAULT")
        iounet.detection.add_iou_net(model, refine_options=dict(scale="log", step=0.05, on_degrade="backtrack"))
        sum(model(images, targets).values()).backward()  # with "loss_iou"
        detections = model.eval()(images)  # with "ious"

    Reference: B. Jiang et al., Acquisition of Localization Confidence for Accurate Object Detection,
    https://arxiv.org/abs/1807.11590
    """
    options = Options(
        nms=nms,
        key=key,
        iou_threshold=iou_threshold,
        refine=refine,
        refine_top=refine_top,
        refine_options=refine_options,
        score=score,
        samples_per_image=samples_per_image,
        loss=loss,
        loss_weight=loss_weight,
        target=target,
        max_candidates=max_candidates,
    )
    detector: Any = model
    heads: Any = getattr(detector, "roi_heads", None)
    if isinstance(heads, IoURoIHeads):
        raise ValueError("model must not have an IoU head yet, got one that add_iou_net was applied to")
    if type(heads) is not RoIHeads:
        raise TypeError(
            f"model must have torchvision's RoIHeads as roi_heads, got {type(model).__name__} with "
            f"{type(heads).__name__}; use iounet.detection.StandaloneIoUNet for other detectors"
        )
    box_pool, predictor = heads.box_roi_pool, heads.box_predictor
    if not isinstance(getattr(predictor, "cls_score", None), nn.Linear):
        raise TypeError(
            "model.roi_heads.box_predictor must have a Linear cls_score, as FastRCNNPredictor has, "
            f"got {type(predictor).__name__}"
        )
    pool = MultiScalePrRoIPool(
        box_pool.featmap_names, 7, canonical_scale=box_pool.canonical_scale, canonical_level=box_pool.canonical_level
    )
    head = IoUHead(detector.backbone.out_channels, predictor.cls_score.out_features, loss=loss)
    heads.iou_roi_pool = pool.train(heads.training)
    heads.iou_head = head.to(predictor.cls_score.weight).train(heads.training)
    heads.iou_options = options
    heads.__class__ = IoURoIHeads
    return model


class IoURoIHeads(RoIHeads):  # type: ignore[misc]  # torchvision has no types
    """RoIHeads with an IoU head; :func:`add_iou_net` turns the one into the other."""

    iou_roi_pool: MultiScalePrRoIPool
    iou_head: IoUHead
    iou_options: Options

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Detections], dict[str, Tensor]]:
        if self.training:
            result, losses = super().forward(features, proposals, image_shapes, targets)
            losses["loss_iou"] = jittered_loss(
                self.iou_roi_pool, self.iou_head, features, image_shapes, targets or [], self.iou_options
            )
            return result, losses
        x = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        class_logits, box_regression = self.box_predictor(x)
        candidates = self._candidates(class_logits, box_regression, proposals, image_shapes)
        rescore = Rescorer(self.iou_roi_pool, self.iou_head, features, image_shapes, self.iou_options)
        result = rescore(candidates, self.nms_thresh, self.detections_per_img)
        boxes = [one["boxes"] for one in result]
        if self.has_mask():
            logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
            for one, masks in zip(result, maskrcnn_inference(logits, [one["labels"] for one in result]), strict=True):
                one["masks"] = masks
        if self.has_keypoint():
            logits = self.keypoint_predictor(self.keypoint_head(self.keypoint_roi_pool(features, boxes, image_shapes)))
            for one, keypoints, scores in zip(result, *keypointrcnn_inference(logits, boxes), strict=True):
                one |= {"keypoints": keypoints, "keypoints_scores": scores}
        return result, {}

    def _candidates(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: Sequence[Tensor],
        image_shapes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """The boxes of every class but the background whose score is above the threshold, class within proposal."""
        counts = [len(one) for one in proposals]
        # Under autocast deltas have 16 bits, and so would the boxes: too few for their pixels.
        boxes = self.box_coder.decode(box_regression.to(proposals[0].dtype), proposals).split(counts)
        scores = class_logits.softmax(-1).split(counts)
        found = []
        for box, score, shape in zip(boxes, scores, image_shapes, strict=True):
            row, label = (score[:, 1:] > self.score_thresh).nonzero(as_tuple=True)
            label = label + 1
            box, score = clip_boxes_to_image(box[row, label], shape), score[row, label]
            large = remove_small_boxes(box, min_size=1e-2)
            found.append({"boxes": box[large], "scores": score[large], "labels": label[large]})
        return found
