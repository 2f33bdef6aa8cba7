"""Each word's neighbours in a Chinese text: one package cuts the words, another learns their vectors."""

import sys
from pathlib import Path

from cws_multidomain import Segmenter
from imgskipgram import ImageSkipGram

path, *words = sys.argv[1:]
sentences = Segmenter.load().cut_many(Path(path).read_text(encoding="utf-8").splitlines())
vectors = ImageSkipGram(min_count=1, epochs=50, seed=1).fit(sentences).wv
for word in words:
    print(word, *(neighbour for neighbour, _ in vectors.most_similar(word, topn=3)))
