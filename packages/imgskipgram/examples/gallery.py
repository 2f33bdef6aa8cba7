"""A folder of pictures, half of them without labels, becomes a gallery of what every word means.

    python gallery.py --out gallery            # then open gallery/index.html
    python gallery.py --out gallery --photos my_photos --backbone mobilenet_v3_small --corpus my_text.txt.gz

A picture in a folder has the folder's name as its label, one beside the folders has none. It is found all the same, for
explanations look at pictures and never at labels: the count is printed.
"""

from __future__ import annotations

import argparse
import tempfile
from html import escape
from pathlib import Path

from _scenes import look, scenes

from imgskipgram import ImageBank, ImageSkipGram


def drawn(folder: Path, count: int) -> list[str]:
    """Draw scenes, every other one into the folder of something that it shows; sentences like theirs are the corpus."""
    for i, scene in enumerate(scenes(count)):
        inside = folder if i % 2 else folder / scene.words[i // 2 % len(scene.words)]
        inside.mkdir(exist_ok=True)
        scene.picture.save(inside / f"{scene.sentence} {i}.png")
    return [scene.sentence for scene in scenes(5000, seed=1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the pages (default: a temporary one, which goes)")
    parser.add_argument("--photos", type=Path, help="folders of pictures, named by what they show (default: drawn)")
    parser.add_argument("--backbone", default="mobilenet_v3_small", help="for photos, a name of torchvision's")
    parser.add_argument("--corpus", help="for photos, a text with a sentence a line")
    parser.add_argument("--smoke", action="store_true", help="fewer pictures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.photos is None:
            pictures = Path(temporary, "pictures")
            pictures.mkdir()
            corpus = drawn(pictures, 200 if options.smoke else 1000)
            model = ImageSkipGram(vector_size=24).fit(corpus, ImageBank.from_folder(pictures, look))
        else:
            bank = ImageBank.from_folder(options.photos, options.backbone, on_error="skip")
            model = ImageSkipGram().fit(options.corpus, bank)
        print(model, model.bank.report_)
        out = options.out or Path(temporary, "gallery")
        out.mkdir(exist_ok=True)
        write(model, out)
        print(f"{len(list(out.iterdir()))} files in {out}, of which index.html leads to the others")


def write(model: ImageSkipGram, out: Path) -> None:
    """A page and a contact sheet of every word that is a label and of some that are none, and a list of them."""
    labels = {word for words in model.bank.words for word in words}
    names = sorted(labels.intersection(model.wv.index_to_key))[:100]
    others = [word for word in model.wv.index_to_key if word not in labels][:20]
    for word in names + others:
        found = model.explain(word, topn=12, diversity=0.1)
        found.to_html(out / f"{word}.html")
        found.contact_sheet().save(out / f"{word}.png")
        if word in labels:
            free = [name for index, name, _ in found.images if not model.bank.words[index]]
            named = sum(word in name for name in free)
            print(f"{word}: {len(free)} of {len(found.images)} pictures have no label, {named} of them show it by name")
        else:
            print(f"{word}: no label; by way of", *(step for step, _, _ in found.path))
    middle = model.wv.get_mean_vector(names[:2])  # any vector can be explained, such as that between two words
    model.explain(middle).to_html(out / f"{names[0]} + {names[1]}.html")
    links = [f'<li><a href="{escape(page.name)}">{escape(page.stem)}</a></li>' for page in sorted(out.glob("*.html"))]
    (out / "index.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>Gallery</title><ul>{''.join(links)}</ul>"
    )


if __name__ == "__main__":
    main()
