"""gensim's Word2Vec, its calls and names, trained by `ImageSkipGram`: `from imgskipgram.compat import Word2Vec`.

The same as in gensim 4.4:

- arguments and their order, methods, `wv` (gensim's own `KeyedVectors`), which words are kept and their counts,
  sub-sampling, windows, the noise distribution, callbacks, what is raised and logged where a call cannot be right;
- an iterable that is neither a list, a tuple nor one of gensim's readers of files is read anew for each epoch.

What differs:

=======================  =================================================  ============================================
of                       gensim                                             here
=======================  =================================================  ============================================
`sg`, `hs`               CBOW is the default, hierarchical softmax there    skip-gram with negative samples alone
negatives                for each pair                                      for each centre; `negatives="pair"` as there
loss                     float32, stops growing at 2^27                     the exact sum, in float64
learning rate            by batches; ends early with `corpus_file`          by the place in the corpus, whatever
                                                                            `total_examples` and `total_words` say
sentences                cut after 10,000 words                             whole
samples, first vectors   depend on the number of workers                    the same for all numbers of workers; the
                                                                            result as well with `deterministic=True`
update of a vocabulary   sub-sampling by the new corpus alone               by all that was counted
words with equal counts  the last comes first                               the first comes first
`wv.vectors_lockf`       one number, which freezing words must replace      one number for each word
`corpus_file`            plain text                                         .gz, .bz2 and .xz as well
words                    anything                                           strings
`save`, `load`           pickle                                             .npz without pickle; pickles are refused
no effect                                                                   `hashfxn`, `batch_words`, `queue_factor`,
                                                                            `report_delay`, `word_count`,
                                                                            `progress_per`
=======================  =================================================  ============================================
"""

from ._word2vec import Word2Vec

__all__ = ["Word2Vec"]
