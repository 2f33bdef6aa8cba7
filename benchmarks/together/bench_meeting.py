"""Packages that serve each other: AdaMod trains iounet and vade-robust, cut words become vectors, scans look inside."""

from __future__ import annotations

from functools import partial

from harness import FULL, Race, Study, Versus, Workload
from meeting_head import cells, scenes
from meeting_mixture import compare
from meeting_scan import detector, mixture, scanned
from meeting_words import PEER, quality, same_work, whole

PACKAGES = ("torch", "torchvision", "scikit-learn", "gensim", "jieba")

WORKLOADS: tuple[Workload, ...] = (
    Study(
        "AdaMod trains an IoU head",
        "iounet's head on drawn shapes, constant rates without warm-up; a fixed bank of filters stands in for the "
        "backbone, so that no optimizer has prepared what the head learns from. Mean error of the predicted IoU of "
        "boxes whose IoU is uniform from .5 to 1, on other scenes; mean and standard deviation of the seeds, gains "
        "seed by seed. The best rate is chosen on what is reported, for each optimizer alike.",
        scenes,
    ),
    Study(
        "AdaMod trains an IoU head on blood cells",
        "The same on BCCD at half its size: 205 images to learn from, 72 to be judged on.",
        cells,
        FULL,
    ),
    Study(
        "AdaMod trains a VaDE",
        "scikit-learn's digits: vade-robust's pretrained networks and its loss in a loop of one's own, since the "
        "estimator takes no optimizer. Labels score the finished runs only.",
        compare,
    ),
    Study(
        "Chinese words: meaning",
        "Text is cut by each, and imgskipgram trains on what comes out: 50 dimensions, window 5, 5 epochs. Purity: of "
        "the five nearest of the words that are judged, the share of the word's own class. A word that was cut into "
        "pieces has the mean of their vectors.",
        quality,
    ),
    Race(
        "Chinese text to vectors",
        "Sentences to vectors of 50 dimensions in one call, window 5, 5 epochs; each package in its default way, the "
        "model and the dictionary loaded before.",
        whole,
        same_work,
        (
            Versus(PEER, kind="speed", headline=True),
            Versus("jieba, imgskipgram", kind="speed", name="what the cutting gives"),
            Versus("cws-multidomain, gensim", kind="speed", name="what the training gives"),
        ),
        seconds=1.5,
    ),
    Study(
        "paramcorrupt scans an iounet detector",
        "A small Faster R-CNN with an IoU head, trained on drawn shapes; each tensor changed by 2 % of its norm. The "
        "loss is the sum of all five that it trains on, in training mode, on fresh scenes.",
        partial(scanned, detector, "keep"),
    ),
    Study(
        "paramcorrupt scans a vade-robust model",
        "A VaDE of scikit-learn's digits, each tensor of its networks changed by 2 % of its norm. The loss is that of "
        "the model without noise: reconstruction and the divergence from its mixture.",
        partial(scanned, mixture, "eval"),
    ),
)
