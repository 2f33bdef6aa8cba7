"""gensim's Word2Vec, its calls and names, trained by `ImageSkipGram`: `from imgskipgram.compat import Word2Vec`.

The same as in gensim 4.4:

- arguments and their order, methods, `wv` (gensim's own `KeyedVectors`), which words are kept and their counts,
  sub-sampling, windows, the noise distribution, callbacks, what is raised and logged where a call cannot be right;
- an iterable that is no list, tuple or array, nor one of gensim's readers of files, is read anew for each epoch.

What differs:

=======================  ==================================================  ===========================================
of                       in gensim                                           here
=======================  ==================================================  ===========================================
`sg`, `hs`               CBOW is the default; hierarchical softmax           skip-gram with negative samples alone
negatives                for each pair                                       for each centre, or `negatives="pair"`
samples                  depend on the number of workers                     do not; the result neither, with
                                                                             `deterministic=True`
loss                     float32, which stops growing at 2^27                the exact sum, in float64
learning rate            by batches; with `corpus_file` it falls only a      by the place in the corpus
                         part of the way
`total_examples`,        decide the learning rate                            only for a corpus that is read anew for
`total_words`                                                                each epoch
sentences                cut after 10,000 words                              whole
update of a vocabulary   sub-samples by the new corpus alone                 by all that was counted
words with equal counts  the last comes first                                the first comes first
`wv.vectors_lockf`       one number, which must be replaced to freeze words  one number for each word
vectors from a file      `wv.intersect_word2vec_format`, whose binary form   there, and of the model for both forms
                         fails with NumPy 2.3
`corpus_file`            plain text                                          .gz, .bz2 and .xz as well
words                    anything                                            strings
`save`, `load`           pickles                                             no pickles: .npz, or .safetensors
`isinstance`             AnnoyIndexer and NmslibIndexer take the model       they take `model.wv`
without effect                                                               `hashfxn`, `batch_words`, `queue_factor`,
                                                                             `report_delay`, `word_count`,
                                                                             `progress_per`
=======================  ==================================================  ===========================================
"""

from ._word2vec import Word2Vec

__all__ = ["Word2Vec"]
