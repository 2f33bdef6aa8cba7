"""The model: word vectors trained on a corpus, with or without images, and what explains them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ._checks import check_choice, check_integer
from ._engine import check_device
from ._options import LOSSES, Options, check_rates
from ._rows import exported
from ._state import OPTIONS, State, begun, check_images, holding

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Literal

    from numpy.typing import ArrayLike, NDArray

    from ._corpus import Corpus
    from ._vocabulary import TrimRule
    from .bank import ImageBank
    from .explanation import Explanation

__all__ = ["ImageSkipGram"]


class ImageSkipGram(State):
    """Skip-gram with negative sampling, and with images in the same space that explain its vectors.

    The centre word w of a window is the target, each word c around it the input:

        L = -log s(u_w . v_c) - sum_k log s(-u_nk . v_c) + lambda * L_image(w),  P(n) ~ count(n)^ns_exponent,

    s the logistic function. With z_i the vector of one image of w, drawn at random, and z_k those of `image_negative`
    images of others, L_image is, by `objective`,

        "nce"      -log s(v_w . z_i) - sum_k log s(-v_w . z_k): an image is one more context;
        "margin"   sum_k max(0, 0.5 - cos(v_w, z_i) + cos(v_w, z_k));
        "infonce"  the cross-entropy of softmax(cos(v_w, z) / 0.07) for the own image;
        "none"     0: text alone; images are still placed among the words, afterwards, so that they explain.

    Every option is an attribute too and may be set, as `model.workers = 4`.

    Args:
        vector_size: D, numbers in a vector (default 100, gensim's).
        window: words on each side at most (default 5, gensim's); each centre draws a width from 1 to this.
        min_count: rarer words are left out (default 5, gensim's).
        negative: K, words drawn as negatives (default 5, gensim's).
        sample: t; a word with count c of N is kept with probability min(1, (sqrt(c / tN) + 1) tN / c) (default 1e-3,
            gensim's); 0 keeps all.
        alpha, min_alpha: the learning rate falls in a line from one to the other (default 0.025, 1e-4, gensim's).
        epochs: passes over the corpus (default 5, gensim's).
        workers: threads; by default as many as the process may use cores. Samples and rates do not depend on them.
        seed: of all that is drawn, 0 to 2^64 - 1.
        ns_exponent: see above (default 0.75, word2vec's).
        objective: see above.
        image_weight: W of images (default 1); 0 is "none". lambda is W; with projection="shared" 0.3 W, and then at the
            end every word, with images or without, becomes v^ + W / (1 + W) t in direction: t is where a kernel
            regression from words to their images says that its own would lie.
        image_negative: images drawn as negatives (default 5, as `negative`).
        projection: where images lie. "shared": where words say, by what similar pictures show, so that images are no
            parameters; not before a fifth of the training. "fixed": their principal components. "free": parameters that
            begin there, which shows what goes wrong: they leave the words in a cone.
        negatives: K negatives for all contexts of a centre, "center" (default); for each pair, "pair", as in word2vec;
            for eight centres, "batch".
        deterministic: the same bits for any number of workers, in about twice the time.
        dtype: "float32"; "float64" for tests; "bfloat16" halves the memory of rows, which are rounded at random.
        device: "cpu" or "cuda".
        callbacks: objects with some of gensim's on_train_begin, on_epoch_begin, on_epoch_end, on_train_end, which are
            called with the model.
        shrink_windows: False takes all of `window`.
        max_vocab_size, max_final_vocab, trim_rule, sorted_vocab: as gensim's.

    Attributes:
        wv: gensim's `KeyedVectors` with the input vectors v in float32, as of the last epoch; each epoch makes a new
            one. The next `train` begins with what is changed in `wv.vectors`; updates of a word are multiplied by
            `wv.vectors_lockf`, of length 1 or one for each word, so that 0 freezes it.
        losses_: of every epoch `{"text", "image", "text_pairs", "image_pairs"}`: means per pair, and the pairs.

    Raises:
        ValueError, TypeError: an argument cannot have this value, or this type.
        ImportError: `device="cuda"` without torch and Triton: `pip install 'imgskipgram[gpu]'`.
        RuntimeError: `device="cuda"` without a GPU.

    Example:
        >>> from imgskipgram import ImageBank, ImageSkipGram
        >>> text = ["the dog barks", "the cat purrs", "a dog bites", "a cat bites"] * 50
        >>> bank = ImageBank.from_features([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], ["dog", "dog", "cat", "cat"])
        >>> model = ImageSkipGram(vector_size=8, min_count=1, image_negative=2, workers=1).fit(text, bank)
        >>> model
        ImageSkipGram(7 words, 8 dimensions, 5 epochs, 4 images)
        >>> model.wv["dog"].shape, model.image_vectors.shape
        ((8,), (4, 8))
        >>> sorted(image for image, _, _ in model.explain("dog", topn=2).images)
        [0, 1]

    Reference:
        Mikolov et al., "Distributed Representations of Words and Phrases and their Compositionality", NIPS 2013; R.
        Luo, "Exploration on Grounded Word Embedding", arXiv:1809.02765, from whose abstract the image term comes.
    """

    def __init__(
        self,
        vector_size: int = 100,
        window: int = 5,
        min_count: int = 5,
        negative: int = 5,
        sample: float = 1e-3,
        alpha: float = 0.025,
        min_alpha: float = 1e-4,
        epochs: int = 5,
        workers: int | None = None,
        seed: int = 1,
        ns_exponent: float = 0.75,
        objective: Literal["nce", "margin", "infonce", "none"] = "nce",
        image_weight: float = 1.0,
        image_negative: int = 5,
        projection: Literal["shared", "fixed", "free"] = "shared",
        negatives: Literal["center", "batch", "pair"] = "center",
        deterministic: bool = False,
        dtype: Literal["float32", "float64", "bfloat16"] = "float32",
        device: Literal["cpu", "cuda"] = "cpu",
        callbacks: Sequence[Any] = (),
        *,
        shrink_windows: bool = True,
        max_vocab_size: int | None = None,
        max_final_vocab: int | None = None,
        trim_rule: TrimRule | None = None,
        sorted_vocab: bool = True,
    ) -> None:
        """See the class."""
        options = Options(**{name: value for name, value in locals().items() if name in OPTIONS})
        check_device(options.device)
        vars(self).update(begun(options, None))

    def build_vocab(self, corpus: Corpus, *, update: bool = False, text_column: str = "text") -> None:
        """Count the words of a corpus, and give each that is kept its first vector.

        Args:
            corpus: a path (plain, .gz, .bz2 or .xz; a sentence per line), or an iterable of lists of words, of strings,
                which are split at white space, or of rows that hold one of these, such as a Hugging Face data set.
            update: add to the vocabulary that there is; its words keep their vectors and numbers, and their counts
                grow. By default everything begins anew.
            text_column: where rows have their text (default "text").

        Raises:
            FileNotFoundError: no file at this path.
            ValueError: no word is kept, text that is no UTF-8, a column that is missing.
            TypeError: something that is no sentence.
            RuntimeError: `update` without a vocabulary.

        Example:
            >>> from imgskipgram import ImageSkipGram
            >>> model = ImageSkipGram(min_count=1)
            >>> model.build_vocab(["the dog barks", "the cat purrs"])
            >>> model.wv.index_to_key, model.corpus_total_words
            (['the', 'dog', 'barks', 'cat', 'purrs'], 6)
        """
        from ._corpus import read

        known = self._known() if update else None
        if known is not None:
            self._rows()
        vocabulary, _ = read(corpus, self._options.trim, known=known, text_column=text_column)
        vars(self).update(begun(self._options, vocabulary) if known is None else self._grown(vocabulary))

    def train(
        self,
        corpus: Corpus,
        images: ImageBank | None = None,
        *,
        epochs: int | None = None,
        start_alpha: float | None = None,
        end_alpha: float | None = None,
        compute_loss: Literal["exact", "sampled", "none"] = "exact",
        text_column: str = "text",
        progress: bool = False,
    ) -> tuple[int, int]:
        """Train the vectors that there are on a corpus, which is read once.

        A training that was broken off, by an exception or Ctrl-C, left the model as it was after the last epoch that
        was finished. Unless epochs or rates are given, this call goes on with it, even after `save` and `load`; with
        `deterministic` or one worker the vectors will have the bits that they would have had.

        Args:
            corpus: as in `build_vocab`; words outside the vocabulary are left out.
            images, epochs, start_alpha, end_alpha: by default the model's `bank`, `epochs`, `alpha` and `min_alpha`.
            compute_loss: "exact"; "sampled", from one centre in 16; "none".
            text_column: as in `build_vocab`.
            progress: show a bar.

        Returns:
            Words that were trained, after sub-sampling, and all words that were read, over the epochs.

        Raises:
            RuntimeError: there is no vocabulary.
            ValueError: an argument, the corpus or the bank does not fit; the model is as before.
            FloatingPointError: vectors are not finite after an epoch; the model is as before.

        Example:
            >>> from imgskipgram import ImageSkipGram
            >>> model = ImageSkipGram(min_count=1, sample=0, workers=1)
            >>> model.build_vocab(["the dog barks"])
            >>> model.train(["a dog barks"], epochs=2)
            (4, 6)
        """
        from ._corpus import encode
        from ._training import Plan

        options, vocabulary = self._options, self._known()
        check_images(images)
        check_choice("compute_loss", compute_loss, LOSSES)
        anew = not (epochs is start_alpha is end_alpha is None)
        epochs = options.epochs if epochs is None else check_integer("epochs", epochs, 1, 2**16)
        start = options.alpha if start_alpha is None else start_alpha
        end = options.min_alpha if end_alpha is None else end_alpha
        check_rates("start_alpha", start, "end_alpha", end)
        grounding = self._ground(self._bank if images is None else images, vocabulary)
        tokens = encode(corpus, vocabulary, text_column=text_column)
        count = len(tokens.ids)
        if not count:
            raise ValueError(f"the corpus must have words of the vocabulary, got none among {tokens.raw} tokens")
        plan = self._plan
        if anew or plan is None:
            plan = Plan(epochs, count, start, end)
        elif plan.tokens != count:
            raise ValueError(
                f"corpus must be that of the training which was broken off, with {plan.tokens} words, got {count}; "
                "give epochs to begin another"
            )
        return self._run(dict(vars(self)), tokens, partial(iter, (tokens,)), grounding, plan, compute_loss, progress)

    def fit(
        self,
        corpus: Corpus,
        images: ImageBank | None = None,
        *,
        text_column: str = "text",
        cache_dir: str | os.PathLike[str] | Literal[False] | None = None,
        progress: bool = False,
    ) -> ImageSkipGram:
        """Find the vocabulary of a corpus and train on it, in one reading, from the beginning.

        Args:
            corpus: as in `build_vocab`; an iterator, which can be read only once, will do.
            images: a bank (default: none, text alone).
            text_column: as in `build_vocab`.
            cache_dir: the corpus stays in memory as numbers, 4 bytes a word; where it has more than 1 GiB, in a file in
                this folder (default: the system's for temporary files). False keeps nothing and reads the corpus again
                for each epoch.
            progress: show a bar.

        Returns:
            The model.

        Raises:
            FileNotFoundError, ValueError, TypeError: as `build_vocab`, for a bank too; the model is as before.
            FloatingPointError: as `train`; the model is as before.

        Example:
            >>> from imgskipgram import ImageSkipGram
            >>> len(ImageSkipGram(min_count=1, workers=1).fit(["the dog barks", "the cat purrs"]).losses_)
            5
        """
        from ._corpus import read, stream
        from ._training import Plan

        options = self._options
        check_images(images)
        vocabulary, tokens = read(corpus, options.trim, text_column=text_column, cache_dir=cache_dir)
        grounding = self._ground(images, vocabulary)
        again = partial(stream, corpus, vocabulary, text_column=text_column)
        feed = again if tokens is None else partial(iter, (tokens,))
        count = vocabulary.total if tokens is None else len(tokens.ids)
        before = dict(vars(self))
        vars(self).update(begun(options, vocabulary))
        plan = Plan(options.epochs, count, options.alpha, options.min_alpha)
        self._run(before, tokens, feed, grounding, plan, "exact", progress)
        return self

    def explain(
        self, word_or_vector: str | ArrayLike, topn: int = 9, *, csls: bool = True, diversity: float = 0.0
    ) -> Explanation:
        """The images nearest to a word or to any vector, and the nearest words that have images.

            score_i = 2 cos(v^ - mu, z_i) - r_i,  v^ = v / |v|,

        mu the mean of the unit vectors of words with images, r_i the mean cosine of image i to its 10 nearest among the
        5,000 most frequent words, which sets images back that are near to everything. Labels have no part in it.

        Args:
            word_or_vector: a word of the vocabulary, or a vector `[D]`.
            topn: images (default 9); more than there are gives all.
            csls: False leaves r_i out, as well as the 2.
            diversity: 0 to 1 (default 0); how much images are to differ from each other.

        Raises:
            KeyError: the word is not in the vocabulary; the message has close spellings.
            ValueError: the vector has another length or no direction, or topn is less than 1.
            RuntimeError: the model has no images.

        Example:
            >>> from imgskipgram import ImageBank, ImageSkipGram
            >>> bank = ImageBank.from_features([[1, 0], [0, 1]], ["dog", "cat"], ids=["rex", "tom"])
            >>> model = ImageSkipGram(vector_size=8, min_count=1, image_negative=1, workers=1)
            >>> model.fit(["the dog barks", "the cat purrs"], bank).explain("cat", topn=1).images[0][1]
            'tom'
        """
        from .explanation import explain, lookup

        parts = self._explanation_parts()
        vector, title = lookup(word_or_vector, self.wv.key_to_index, self.wv.vectors)
        return explain(vector, **parts, csls=csls, topn=topn, diversity=diversity, title=title)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, its bank and the state of its training, as .safetensors or, by default, as .npz.

        `callbacks` and `trim_rule` are code and not saved.

        Args:
            path: exactly where; it decides about the form. If this fails, the old file survives.

        Raises:
            RuntimeError: there is no vocabulary.
            OSError: it cannot be written.

        Example:
            >>> import os, tempfile
            >>> from imgskipgram import ImageSkipGram
            >>> model = ImageSkipGram(min_count=1, workers=1).fit(["the dog barks", "the cat purrs"])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save(os.path.join(folder, "model.npz"))
            ...     ImageSkipGram.load(os.path.join(folder, "model.npz"))
            ImageSkipGram(5 words, 100 dimensions, 5 epochs)
        """
        from ._files import write

        write(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImageSkipGram:
        """Read what `save` wrote; nothing is unpickled. Training goes on from there.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no model, or damaged, or newer than this version; the message has the path and the reason.
        """
        from ._files import read

        model, found = cls.__new__(cls), read(path)
        vars(model).update(holding(*(found[name] for name in ("_options", "_vocabulary", "_v", "_u"))))
        model.wv.vectors_lockf = found.pop("lockf")
        vars(model).update(found)
        return model

    def save_word2vec_format(self, path: str | os.PathLike[str], binary: bool = False) -> None:
        """Write the vectors in word2vec's form, or its binary one; .gz and .bz2 are compressed.

        Raises:
            ValueError: a word has white space in it.
            RuntimeError: there is no vocabulary.
            OSError: it cannot be written; the old file survives.
        """
        from ._files import write_word2vec

        write_word2vec(path, self, binary)

    @property
    def syn1neg(self) -> NDArray[Any]:
        """The output vectors u `[V, D]`, in the model's dtype; float32 for bfloat16."""
        rows: NDArray[Any] = self._u[:, : self._options.vector_size]
        return exported(rows, self._options.vector_size) if rows.dtype == np.uint16 else rows

    @property
    def image_vectors(self) -> NDArray[np.float32] | None:
        """Of each image its unit vector in the space of words `[M, D]`; None without a bank."""
        placed = self._placed()
        return None if placed is None else placed[1]

    @property
    def bank(self) -> ImageBank | None:
        """The images of the last training."""
        return self._bank

    @property
    def corpus_count(self) -> int:
        """Sentences of the corpus that the vocabulary is from."""
        return 0 if self._vocabulary is None else self._vocabulary.sentences

    @property
    def corpus_total_words(self) -> int:
        """Its words, those outside the vocabulary too."""
        return 0 if self._vocabulary is None else self._vocabulary.raw

    def __repr__(self) -> str:
        words = "no vocabulary" if self._vocabulary is None else f"{len(self._vocabulary):,} words"
        images = "" if self._bank is None else f", {len(self._bank):,} images"
        return f"{type(self).__name__}({words}, {self._options.vector_size} dimensions, {self._epochs} epochs{images})"
