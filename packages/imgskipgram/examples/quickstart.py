"""Train on text, then with pictures (drawn by Pillow); see what a word means; write it as a page; save, and load."""

import tempfile
from pathlib import Path

from _scenes import look, scenes
from gensim.test.utils import datapath

from imgskipgram import ImageBank, ImageSkipGram

news = ImageSkipGram(epochs=20, seed=1).fit(datapath("lee_background.cor"))  # wv is gensim's KeyedVectors
print(news)
print("near to Israeli:", *(word for word, _ in news.wv.most_similar("Israeli", topn=4)))

drawn = scenes(2000)
seen = drawn[:200]
bank = ImageBank.from_features(
    look([scene.picture for scene in seen]),
    words=[scene.words for scene in seen],
    ids=[scene.sentence + f" ({i})" for i, scene in enumerate(seen)],
    thumbnails=[scene.picture for scene in seen],
)
model = ImageSkipGram(vector_size=24, epochs=10).fit([scene.sentence for scene in drawn], bank)
print(model, {name: round(loss, 3) for name, loss in model.losses_[-1].items()})
for word in ("blue", "triangle"):
    print(f"{word}:", "; ".join(name for _, name, _ in model.explain(word, topn=3).images))

with tempfile.TemporaryDirectory() as folder:
    model.explain("blue").to_html(Path(folder, "blue.html"))  # one file, which any browser shows
    model.save(Path(folder, "model.npz"))
    again = ImageSkipGram.load(Path(folder, "model.npz"))
    print("loaded, it explains the same:", again.explain("blue").images == model.explain("blue").images)
