"""Captioned pictures of a Hugging Face data set, streamed: captions are the corpus, some pictures the bank.

python dataset.py jxie/flickr8k --split train --text-column caption_0 --images 2000 --save flickr.npz
python dataset.py --smoke
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from _scenes import look, scenes

from imgskipgram import ImageBank, ImageSkipGram

if TYPE_CHECKING:
    from collections.abc import Iterator


class Rows:
    """Rows as a streaming data set gives them, each time anew."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for scene in scenes(300):
            yield {"image": scene.picture, "caption": scene.sentence, "shows": scene.words}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="of the data set")
    parser.add_argument("--config")
    parser.add_argument("--split", default="train")
    parser.add_argument("--text-column", default="caption")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--label-column", help="of a class or several (default: pictures are labelled by captions)")
    parser.add_argument("--backbone", default="mobilenet_v3_small", help="a name of torchvision's, or timm:NAME")
    parser.add_argument("--images", type=int, default=1000, help="pictures in the bank")
    parser.add_argument("--words", nargs="*", default=["dog", "water", "playing"], help="to explain")
    parser.add_argument("--save", help="the model")
    parser.add_argument("--smoke", action="store_true", help="drawn pictures, no download")
    options = parser.parse_args()
    if options.smoke:
        rows: Any = Rows()
        captions, label, backbone, words = rows, "shows", look, ["red", "circle"]
    elif options.name is None:
        parser.error("the name of a data set is needed, or --smoke")
    else:
        from datasets import load_dataset

        rows = load_dataset(options.name, options.config, split=options.split, streaming=True)
        captions = rows.select_columns([options.text_column])  # pictures are not decoded for the text
        label, backbone, words = options.label_column, options.backbone, options.words
    # Without classes, labels are the words of captions that two pictures have at least, and 5 % of them at most.
    labels = {"label_column": label} if label else {"text_column": options.text_column}
    bank = ImageBank.from_hf(rows, backbone, image_column=options.image_column, limit=options.images, **labels)
    model = ImageSkipGram(vector_size=100, min_count=2, epochs=10)
    model.fit(captions, bank, text_column=options.text_column, progress=not options.smoke)
    print(model, bank.report_)
    for word in words:
        found = model.explain(word, topn=4)
        rows_found, steps = (name for _, name, _ in found.images), (step for step, _, _ in found.path)
        print(f"{word}: rows", *rows_found, "by way of", *steps)
    if options.save:
        model.save(options.save)


if __name__ == "__main__":
    main()
