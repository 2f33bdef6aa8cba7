#include <nanobind/stl/vector.h>

#include <atomic>

#include "bind.h"
#include "tagger.h"
#include "tagger_training.h"

using namespace nb::literals;

namespace {

using namespace cws::tagger;

// A list of lists of str, whose types the caller has checked.
Corpus read(const nb::list& sentences, const Folding& folding) {
  Corpus corpus;
  std::vector<Py_UCS4> buffer;
  for (nb::handle sentence : sentences) {
    for (nb::handle word : nb::borrow<nb::list>(sentence)) {
      const Py_ssize_t n = PyUnicode_GetLength(word.ptr());
      if (n < 0) throw nb::python_error();
      buffer.resize(n);
      if (n > 0 && !PyUnicode_AsUCS4(word.ptr(), buffer.data(), n, 0)) throw nb::python_error();
      for (Py_ssize_t i = 0; i < n; ++i) corpus.characters.push_back(folding(buffer[i]));
      corpus.words.push_back(static_cast<uint32_t>(corpus.characters.size()));
    }
    corpus.sentences.push_back(static_cast<uint32_t>(corpus.words.size() - 1));
  }
  return corpus;
}

Folding make_folding(Array1<uint32_t> from, Array1<uint32_t> to) {
  Folding folding;
  for (size_t i = 0; i < from.shape(0); ++i) folding.add(from.data()[i], to.data()[i]);
  return folding;
}

template <class T>
std::span<const T> view(const Array1<T>& array) {
  return {array.data(), array.shape(0)};
}

// The model together with the memory that it reads.
class Tagger {
 public:
  Tagger(int tags, Array1<uint32_t> buckets, Array1<uint8_t> features, Array1<int16_t> transition,
         Array1<uint32_t> from, Array1<uint32_t> to)
      : buckets_(buckets),
        features_(features),
        transition_(transition),
        model_({tags, view(buckets), view(features), view(transition)}, make_folding(from, to)) {}

  // For each sentence a list of names[tag] of its words.
  nb::list tag(const nb::list& sentences, const nb::tuple& names, int threads) const {
    constexpr size_t kBlock = 32;  // sentences
    const Corpus corpus = read(sentences, model_.folding());
    std::vector<uint8_t> tags(corpus.words.size() - 1);
    const size_t n = corpus.sentences.size() - 1;
    {
      nb::gil_scoped_release release;
      parallel((n + kBlock - 1) / kBlock, threads, [&](size_t block) {
        Model::Scratch scratch;
        for (size_t s = block * kBlock; s < std::min(n, (block + 1) * kBlock); ++s) {
          const uint32_t begin = corpus.sentences[s];
          model_.tag(corpus.characters.data(), &corpus.words[begin], corpus.length(s), scratch, tags.data() + begin);
        }
      });
    }
    nb::list out;
    for (size_t s = 0; s < n; ++s) {
      nb::list sentence;
      for (uint32_t w = corpus.sentences[s]; w < corpus.sentences[s + 1]; ++w) sentence.append(names[tags[w]]);
      out.append(std::move(sentence));
    }
    return out;
  }

 private:
  Array1<uint32_t> buckets_;
  Array1<uint8_t> features_;
  Array1<int16_t> transition_;
  Model model_;
};

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

std::vector<float> pad_rows(const Matrix& m) {
  const size_t pad = padded(static_cast<int>(m.shape(1)));
  std::vector<float> out(m.shape(0) * pad);
  for (size_t i = 0; i < m.shape(0); ++i) std::copy_n(m.data() + i * m.shape(1), m.shape(1), &out[i * pad]);
  return out;
}

std::vector<float> strip(const std::vector<float>& rows, size_t n, size_t tags) {
  const size_t pad = padded(static_cast<int>(tags));
  std::vector<float> out(n * tags);
  for (size_t i = 0; i < n; ++i) std::copy_n(&rows[i * pad], tags, &out[i * tags]);
  return out;
}

std::vector<std::vector<float>> masks(const std::vector<std::vector<uint8_t>>& sets, size_t tags) {
  std::vector<std::vector<float>> out;
  for (const auto& set : sets) {
    std::vector<float>& mask = out.emplace_back(padded(static_cast<int>(tags)), 0.0f);
    for (size_t t = 0; t < tags; ++t) mask[t] = set[t];
  }
  return out;
}

// What training computes of one sentence: its loss, and the gradients by emissions and transitions.
nb::tuple loss(const Matrix& emissions, const Matrix& transition, const std::vector<uint16_t>& labels,
               const std::vector<std::vector<uint8_t>>& sets) {
  const size_t n = emissions.shape(0), tags = emissions.shape(1);
  const std::vector<float> scores = pad_rows(transition);
  Transitions transitions;
  transitions.set(scores, static_cast<int>(tags));
  Chain chain, gold;
  const double value = sentence_loss(pad_rows(emissions).data(), static_cast<int>(n), scores, transitions,
                                     labels.data(), masks(sets, tags), chain, gold);
  return nb::make_tuple(value, chain.log_z, to_numpy(strip(chain.nodes, n, tags)),
                        to_numpy(strip(chain.edges, tags, tags)));
}

}  // namespace

void bind_tagger(nb::module_& m) {
  nb::class_<Tagger>(m, "Tagger")
      .def(nb::init<int, Array1<uint32_t>, Array1<uint8_t>, Array1<int16_t>, Array1<uint32_t>, Array1<uint32_t>>(),
           "tags"_a, "buckets"_a.noconvert(), "features"_a.noconvert(), "transition"_a.noconvert(),
           "fold_from"_a.noconvert(), "fold_to"_a.noconvert())
      .def("tag", &Tagger::tag, "sentences"_a, "names"_a, "threads"_a);

  nb::class_<Trainer>(m, "TaggerTrainer")
      .def("__init__",
           [](Trainer* self, const nb::list& sentences, const std::vector<uint16_t>& labels, int tags,
              const std::vector<std::vector<uint8_t>>& sets, Array1<uint32_t> from, Array1<uint32_t> to, float rate,
              int updates, float upper, float lower, float transition_decay, float l2, int minimum, uint64_t seed,
              int threads) {
    Corpus corpus = read(sentences, make_folding(from, to));
    corpus.labels = labels;
    const Options options = {rate, upper, lower, transition_decay, l2, updates, uint32_t(minimum), seed};
    nb::gil_scoped_release release;
    new (self) Trainer(std::move(corpus), tags, masks(sets, tags), options, threads);
  },
           "sentences"_a, "labels"_a, "tags"_a, "sets"_a, "fold_from"_a.noconvert(), "fold_to"_a.noconvert(),
           nb::kw_only(), "rate"_a, "updates"_a, "upper"_a, "lower"_a, "transition_decay"_a, "l2"_a, "minimum"_a,
           "seed"_a, "threads"_a)
      .def("epoch", &Trainer::epoch, nb::call_guard<nb::gil_scoped_release>())
      .def("restart", [](Trainer& self, Array1<bool> keep) { self.restart(view(keep)); }, "keep"_a.noconvert())
      .def("keys", [](const Trainer& self) { return to_numpy(std::vector(self.keys())); })
      .def("offsets", [](const Trainer& self) { return to_numpy(std::vector(self.offsets())); })
      .def("row_tags", [](const Trainer& self) { return to_numpy(std::vector(self.row_tags())); })
      .def("weights", [](const Trainer& self) {
    return to_numpy(std::vector(self.weights()));
  }).def("transition", [](const Trainer& self) {
    return to_numpy(strip(self.transition(), self.tags(), self.tags()));
  });

  m.def("tagger_loss", loss, "emissions"_a.noconvert(), "transition"_a.noconvert(), "labels"_a, "sets"_a);
  m.def("tagger_keys", [](const nb::list& sentences, Array1<uint32_t> from, Array1<uint32_t> to) {
    const Keys keys = extract(read(sentences, make_folding(from, to)), 1);
    std::vector<uint64_t> out;
    for (size_t w = 0; w < keys.counts.size(); ++w) {
      out.insert(out.end(), &keys.keys[w * kFeatures], &keys.keys[w * kFeatures] + keys.counts[w]);
    }
    return nb::make_tuple(to_numpy(std::move(out)), to_numpy(std::vector(keys.counts)));
  }, "sentences"_a, "fold_from"_a.noconvert(), "fold_to"_a.noconvert());
  m.def("tagger_word_keys", [](const nb::list& sentences, Array1<uint32_t> from, Array1<uint32_t> to) {
    const Corpus corpus = read(sentences, make_folding(from, to));
    std::vector<uint64_t> out(corpus.words.size() - 1);
    for (size_t w = 0; w < out.size(); ++w) {
      const Word word = describe({&corpus.characters[corpus.words[w]], &corpus.characters[corpus.words[w + 1]]});
      out[w] = join(word.all, kDictionary);
    }
    return to_numpy(std::move(out));
  });
}
