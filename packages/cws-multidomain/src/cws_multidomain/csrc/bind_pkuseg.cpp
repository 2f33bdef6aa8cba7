#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>

#include "pkuseg_dictionary.h"
#include "pkuseg_files.h"
#include "pkuseg_model.h"
#include "pkuseg_tagger.h"
#include "pkuseg_train.h"

namespace nb = nanobind;

namespace {

using Vector = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T, class... Sizes>
nb::ndarray<nb::numpy, T> to_numpy(std::vector<T>&& values, Sizes... sizes) {
  auto* kept = new std::vector<T>(std::move(values));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T>(kept->data(), {static_cast<size_t>(sizes)...}, owner);
}

// The code points of a str, lone surrogates among them.
void read(nb::handle text, std::u32string& out) {
  const Py_ssize_t n = PyUnicode_GetLength(text.ptr());
  if (n < 0) throw nb::python_error();
  out.resize(n + 1);
  if (!PyUnicode_AsUCS4(text.ptr(), reinterpret_cast<Py_UCS4*>(out.data()), n + 1, 1)) throw nb::python_error();
  out.resize(n);
}

nb::object to_str(std::string_view utf8) {
  PyObject* s = PyUnicode_DecodeUTF8(utf8.data(), static_cast<Py_ssize_t>(utf8.size()), "surrogatepass");
  if (!s) throw nb::python_error();
  return nb::steal(s);
}

// Shared values are converted once; one that contains itself, or nests too deeply, is refused.
nb::object to_python(const pkuseg::Value* value, std::unordered_map<const pkuseg::Value*, nb::object>& done,
                     int depth) {
  using V = pkuseg::Value;
  if (depth > 32) pkuseg::bad("the file nests deeper than 32 levels");
  switch (value->kind) {
    case V::kBool:
      return nb::bool_(value->integer != 0);
    case V::kInt:
      return nb::int_(value->integer);
    case V::kFloat:
      return nb::float_(value->real);
    case V::kString:
      return to_str(value->string());
    default:
      break;
  }
  const auto found = done.find(value);
  if (found != done.end()) return found->second;
  nb::object made;
  const auto& items = *value->items;
  if (value->kind == V::kDict) {
    nb::dict dict;
    for (size_t i = 0; i < items.size(); i += 2)
      dict[to_python(items[i], done, depth + 1)] = to_python(items[i + 1], done, depth + 1);
    made = dict;
  } else if (value->kind == V::kSet) {
    nb::set set;
    for (const V* item : items) set.add(to_python(item, done, depth + 1));
    made = set;
  } else {
    nb::list list;
    for (const V* item : items) list.append(to_python(item, done, depth + 1));
    made = list;
  }
  done.emplace(value, made);
  return made;
}

pkuseg::Value* parse(std::string_view bytes, std::string_view format, pkuseg::Arena& arena) {
  return format == "pickle" ? pkuseg::Pickle::read(bytes, arena) : pkuseg::MessagePack::read(bytes, arena);
}

std::string_view view(const nb::bytes& b) { return {b.c_str(), b.size()}; }

nb::object load(const nb::bytes& bytes, std::string_view format) {
  pkuseg::Arena arena;
  std::unordered_map<const pkuseg::Value*, nb::object> done;
  return to_python(parse(view(bytes), format, arena), done, 0);
}

template <class M>
std::unique_ptr<M> make(const nb::bytes& bytes, std::string_view format, Vector weights, int64_t features, int tags,
                        bool words) {
  pkuseg::Arena arena;
  const auto names = pkuseg::read_names(parse(view(bytes), format, arena), words);
  return std::make_unique<M>(names, weights.data(), features, tags);
}

// Most tokens are short words that were made a moment ago.
class RecentWords {
 public:
  ~RecentWords() {
    for (Entry& e : entries_) Py_XDECREF(e.word);
  }
  // A new reference to text[start..end); `points` are the same characters.
  PyObject* operator()(PyObject* text, const char32_t* points, int64_t start, int64_t end) {
    if (end - start > 3) return PyUnicode_Substring(text, start, end);
    uint64_t key = 0;
    for (int64_t i = start; i < end; ++i) key = key << 21 | (points[i] + 1);
    Entry& e = entries_[key * 0x9E3779B97F4A7C15u >> 52];
    if (e.key != key) {
      PyObject* word = PyUnicode_Substring(text, start, end);
      if (!word) return nullptr;
      PyObject* old = std::exchange(e.word, word);
      e.key = key;
      Py_XDECREF(old);
    }
    return Py_NewRef(e.word);
  }

 private:
  struct Entry {
    uint64_t key = 0;
    PyObject* word = nullptr;
  };
  std::vector<Entry> entries_ = std::vector<Entry>(4096);
};

struct Segmenter {
  std::unique_ptr<pkuseg::Model> model;
  RecentWords recent;
};

// Words and, for user words, what each is tagged with.
struct Dictionary {
  pkuseg::UserWords user;
  pkuseg::MergedWords merged;
};

// The scratch of one call. Kept between calls: allocating it would cost more than short texts do.
struct Scratch {
  std::u32string text;
  pkuseg::Model::Scratch decode;
  std::vector<pkuseg::UserWords::Piece> pieces;
  std::vector<int64_t> starts, ends;
  std::vector<uint32_t> user;
  std::vector<uint64_t> lengths;
};

Scratch& scratch() {
  static thread_local const std::unique_ptr<Scratch> s = std::make_unique<Scratch>();
  return *s;
}

// Tokens of s.text into s.starts, s.ends and s.user (the number of a user word, else 0).
void cut(const pkuseg::Model& model, const Dictionary* dictionary, bool fixes, Scratch& s) {
  s.starts.clear();
  s.ends.clear();
  s.user.clear();
  const auto n = static_cast<int64_t>(s.text.size());
  const char32_t* text = s.text.data();
  const bool forced = dictionary && dictionary->user.size(), merged = dictionary && dictionary->merged.size();
  for (int64_t i = 0; i < n;) {
    if (pkuseg::is_space(text[i])) {
      ++i;
      continue;
    }
    int64_t end = i;
    while (end < n && !pkuseg::is_space(text[end])) ++end;
    if (forced) {
      dictionary->user.solve(text + i, end - i, fixes, s.pieces);
    } else {
      s.pieces.assign(1, {0, end - i, 0});
    }
    for (const auto& piece : s.pieces) {
      const int64_t from = i + piece.start, to = i + piece.end;
      const size_t first = s.ends.size();
      if (piece.word) {
        s.ends.push_back(to);
      } else {
        model.cut(text + from, to - from, from, s.decode, s.ends);
        if (merged) dictionary->merged.merge(text, from, s.ends, first, s.lengths);
      }
      s.user.resize(s.ends.size(), piece.word);
      for (size_t k = first; k < s.ends.size(); ++k) s.starts.push_back(k == first ? from : s.ends[k - 1]);
    }
    i = end;
  }
}

// The tokens of s.text; making them may run a finalizer that comes back here, so that s.ends is set aside.
nb::object words(Segmenter& self, nb::handle text, Scratch& s) {
  std::vector<int64_t> starts = std::move(s.starts), ends = std::move(s.ends);
  std::u32string points = std::move(s.text);
  PyObject* list = PyList_New(static_cast<Py_ssize_t>(ends.size()));
  if (!list) throw nb::python_error();
  nb::object owner = nb::steal(list);
  for (size_t k = 0; k < ends.size(); ++k) {
    PyObject* word = self.recent(text.ptr(), points.data(), starts[k], ends[k]);
    if (!word) throw nb::python_error();
    PyList_SetItem(list, static_cast<Py_ssize_t>(k), word);
  }
  s.starts.swap(starts);  // for their memory
  s.ends.swap(ends);
  s.text.swap(points);
  return owner;
}

struct Trainer {
  std::unique_ptr<pkuseg::Corpus> corpus;
  std::unique_ptr<pkuseg::ReferenceTrainer> reference;
  std::unique_ptr<pkuseg::FastTrainer> fast;
};

}  // namespace

void bind_pkuseg(nb::module_& m) {
  m.def("pkuseg_load", load, nb::arg("data"), nb::arg("format"));
  m.def("pkuseg_viterbi", [](Matrix nodes, Matrix edges) {
    std::vector<int32_t> tags(nodes.shape(0));
    pkuseg::viterbi_any(nodes.data(), static_cast<int64_t>(nodes.shape(0)), static_cast<int>(nodes.shape(1)),
                        edges.data(), tags.data());
    const size_t n = tags.size();
    return to_numpy(std::move(tags), n);
  }, nb::arg("nodes").noconvert(), nb::arg("edges").noconvert());

  nb::class_<Dictionary>(m, "PkusegDictionary")
      .def("__init__", [](Dictionary* self, nb::handle user, nb::handle merged) {
    new (self) Dictionary();
    std::u32string text;
    for (nb::handle word : user) {
      read(word, text);
      self->user.add(text);
    }
    for (nb::handle word : merged) {
      read(word, text);
      self->merged.add(text);
    }
    self->user.link();
    self->merged.link();
  }, nb::arg("user"), nb::arg("merged"));

  nb::class_<Segmenter>(m, "PkusegModel")
      .def("__init__",
           [](Segmenter* self, const nb::bytes& data, std::string_view format, Vector weights, int64_t features,
              int tags) { new (self) Segmenter{make<pkuseg::Model>(data, format, weights, features, tags, true), {}}; },
           nb::arg("data"), nb::arg("format"), nb::arg("weights").noconvert(), nb::arg("features"), nb::arg("tags"))
      .def_prop_ro("features", [](const Segmenter& self) { return self.model->features(); })
      .def_prop_ro("tags", [](const Segmenter& self) { return self.model->tags(); })
      .def("cut",
           [](Segmenter& self, nb::str text, const Dictionary* dictionary, bool fixes) {
    Scratch& s = scratch();
    read(text, s.text);
    cut(*self.model, dictionary, fixes, s);
    return words(self, text, s);
  }, nb::arg("text"), nb::arg("dictionary").none(), nb::arg("fixes"),
           nb::sig("def cut(self, text: str, dictionary: PkusegDictionary | None, fixes: bool) -> list[str]"))
      .def("cut_user",
           [](Segmenter& self, nb::str text, const Dictionary* dictionary, bool fixes) {
    Scratch& s = scratch();
    read(text, s.text);
    cut(*self.model, dictionary, fixes, s);
    const std::vector<uint32_t> numbers = s.user;
    nb::object tokens = words(self, text, s);
    nb::list user;
    for (uint32_t number : numbers) user.append(number);
    return nb::make_tuple(tokens, user);
  }, nb::arg("text"), nb::arg("dictionary").none(), nb::arg("fixes"))
      .def("scores", [](const Segmenter& self, nb::str text) {
    Scratch& s = scratch();
    read(text, s.text);
    const auto n = static_cast<int64_t>(s.text.size());
    const int tags = self.model->tags();
    std::vector<double> out(n * tags);
    self.model->scores(s.text.data(), n, s.decode, out.data());
    return to_numpy(std::move(out), n, tags);
  }, nb::arg("text"));

  nb::class_<pkuseg::Tagger>(m, "PkusegTagger")
      .def("__init__",
           [](pkuseg::Tagger* self, const nb::bytes& data, std::string_view format, Vector weights, int64_t features,
              int tags) {
    pkuseg::Arena arena;
    const auto names = pkuseg::read_names(parse(view(data), format, arena), false);
    new (self) pkuseg::Tagger(names, weights.data(), features, tags);
  },
           nb::arg("data"), nb::arg("format"), nb::arg("weights").noconvert(), nb::arg("features"), nb::arg("tags"))
      .def("tag", [](const pkuseg::Tagger& self, nb::list words) {
    std::vector<std::u32string> texts(nb::len(words));
    for (size_t i = 0; i < texts.size(); ++i) read(words[i], texts[i]);
    nb::list out;
    for (int32_t tag : self.tag(texts)) out.append(to_str(self.name(tag)));
    return out;
  }, nb::arg("words"));

  nb::class_<Trainer>(m, "PkusegTrainer")
      .def("__init__",
           [](Trainer* self, nb::str text, double rate, bool reference, std::optional<nb::bytes> data,
              std::string_view format, std::optional<Vector> weights, int64_t features) {
    std::u32string points;
    read(text, points);
    pkuseg::Arena arena;
    pkuseg::Names names;
    if (data) {
      names = pkuseg::read_names(parse(view(*data), format, arena), true);
      pkuseg::check_indices(names.features, features, "feature_to_idx");
    }
    auto corpus = std::make_unique<pkuseg::Corpus>(points, data ? &names : nullptr);
    const double* init = weights ? weights->data() : nullptr;
    auto* t = new (self) Trainer{std::move(corpus), nullptr, nullptr};
    if (reference) {
      t->reference = std::make_unique<pkuseg::ReferenceTrainer>(*t->corpus, rate, init, features);
    } else {
      t->fast = std::make_unique<pkuseg::FastTrainer>(*t->corpus, rate, init, features);
    }
  },
           nb::arg("text"), nb::arg("rate"), nb::arg("reference"), nb::arg("data").none() = nb::none(),
           nb::arg("format") = "msgpack", nb::arg("weights").noconvert().none() = nb::none(), nb::arg("features") = 0)
      .def_prop_ro("sentences", [](const Trainer& t) { return t.corpus->sentences(); })
      .def_prop_ro("characters", [](const Trainer& t) { return t.corpus->characters(); })
      .def_prop_ro("features", [](const Trainer& t) { return t.corpus->features(); })
      .def("epoch",
           [](Trainer& t, Indices order, int updates, double upper, double lower, double l2) {
    const pkuseg::Options o{upper, lower, l2, updates};
    nb::gil_scoped_release release;
    return t.reference ? t.reference->epoch(order.data(), o) : t.fast->epoch(order.data(), o);
  }, nb::arg("order").noconvert(), nb::arg("updates"), nb::arg("upper"), nb::arg("lower"), nb::arg("l2"))
      .def("weights", [](const Trainer& t) {
    auto w = t.reference ? std::vector<double>(t.reference->weights()) : t.fast->weights();
    const size_t n = w.size();
    return to_numpy(std::move(w), n);
  }).def("pack", [](const Trainer& t) {
    const std::string bytes = t.corpus->pack();
    return nb::bytes(bytes.data(), bytes.size());
  });
}
