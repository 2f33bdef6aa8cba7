#include <bit>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "bind.h"
#include "jieba_cut.h"
#include "python_text.h"

namespace {

using jieba::Text;

Text read(nb::handle text) {
  Text points;
  cws::append_points(text, points);
  return points;
}

nb::object part(nb::handle text, const Text& points, size_t start, size_t end) {
  return nb::steal(cws::Strings::get().slice(text, points.data(), int64_t(start), int64_t(end)));
}

nb::object write(const Text& points) {
  int order = std::endian::native == std::endian::little ? -1 : 1;  // 0 would drop a byte order mark
  const auto* bytes = reinterpret_cast<const char*>(points.data());
  PyObject* text = PyUnicode_DecodeUTF32(bytes, static_cast<Py_ssize_t>(4 * points.size()), "surrogatepass", &order);
  if (!text) throw nb::python_error();
  return nb::steal(text);
}

jieba::Dictionary build(nb::list words, nb::list counts) {
  if (words.size() != counts.size()) throw std::invalid_argument("words and counts differ in length");
  jieba::Dictionary dictionary;
  dictionary.reserve(words.size());
  for (size_t i = 0; i < words.size(); ++i) {
    const Text word = read(words[i]);
    dictionary.add(word.data(), word.size(), nb::cast<int64_t>(counts[i]));
  }
  return dictionary;
}

// Words as code points, one after the other; where each begins and the last ends.
jieba::Dictionary build_of_points(Array1<uint32_t> points, Array1<int64_t> splits, Array1<int64_t> counts) {
  if (splits.size() != counts.size() + 1) throw std::invalid_argument("splits and counts differ in length");
  jieba::Dictionary dictionary;
  dictionary.reserve(counts.size());
  for (size_t i = 0; i < counts.size(); ++i) {
    const int64_t begin = splits.data()[i];
    dictionary.add(points.data() + begin, size_t(splits.data()[i + 1] - begin), counts.data()[i]);
  }
  return dictionary;
}

nb::object cut(const jieba::Dictionary& dictionary, nb::str text) {
  const Text points = read(text);
  if (points.size() > INT32_MAX) throw std::invalid_argument("text must have at most 2**31 - 1 characters");
  std::vector<int32_t> ends{0};
  jieba::Cutter(dictionary).cut(points.data(), points.size(), [&](size_t, size_t end) {
    ends.push_back(int32_t(end));
  });
  return cws::token_list(text, points.data(), ends.data(), ends.data() + 1, int64_t(ends.size()) - 1);
}

nb::list cut_all(const jieba::Dictionary& dictionary, nb::str text) {
  const Text points = read(text);
  nb::list tokens;
  jieba::Cutter(dictionary).cut_all(points.data(), points.size(), [&](const Text& token) {
    tokens.append(write(token));
  });
  return tokens;
}

// Words as they follow each other in a text, with the shorter words inside them: (token, start, end).
nb::list search(const jieba::Dictionary& dictionary, nb::list words) {
  nb::list tokens;
  size_t at = 0;
  for (nb::handle word : words) {
    const Text points = read(word);
    jieba::search(dictionary, points.data(), points.size(), [&](size_t start, size_t end) {
      nb::object token = end - start == points.size() ? nb::borrow(word) : part(word, points, start, end);
      tokens.append(nb::make_tuple(token, at + start, at + end));
    });
    at += points.size();
  }
  return tokens;
}

// Put the whitespace of a text between its words: each a token of its own, but CR LF is one.
nb::list keep_whitespace(nb::str text, nb::list words) {
  const Text points = read(text);
  nb::list tokens;
  size_t at = 0;
  const auto skip = [&] {
    while (at < points.size() && cws::is_space(points[at])) {
      const size_t length = points[at] == '\r' && at + 1 < points.size() && points[at + 1] == '\n' ? 2 : 1;
      tokens.append(part(text, points, at, at + length));
      at += length;
    }
  };
  for (nb::handle word : words) {
    skip();
    tokens.append(word);
    at += static_cast<size_t>(PyUnicode_GetLength(word.ptr()));
  }
  skip();
  return tokens;
}

nb::object count(const jieba::Dictionary& dictionary, nb::str word) {
  const Text points = read(word);
  const jieba::Edge edge = dictionary.find(points.data(), points.size());
  return edge.child == jieba::kNone ? nb::none() : nb::object(nb::int_(dictionary.count(edge)));
}

void add(jieba::Dictionary& dictionary, nb::str word, int64_t count) {
  const Text points = read(word);
  dictionary.add(points.data(), points.size(), count);
}

}  // namespace

void bind_jieba(nb::module_& m) {
  nb::class_<jieba::Dictionary>(m, "JiebaDictionary")
      .def("__init__",
           [](jieba::Dictionary* self, nb::list words, nb::list counts) {
    new (self) jieba::Dictionary(build(words, counts));
  }, nb::arg("words"), nb::arg("counts"))
      .def_static("of_points", build_of_points, nb::arg("points").noconvert(), nb::arg("splits").noconvert(),
                  nb::arg("counts").noconvert())
      .def_prop_rw("total", &jieba::Dictionary::total, &jieba::Dictionary::set_total)
      .def("add", add, nb::arg("word"), nb::arg("count"))
      .def("count", count, nb::arg("word"))
      .def("cut", cut, nb::arg("text"))
      .def("cut_all", cut_all, nb::arg("text"))
      .def("search", search, nb::arg("words"));
  m.def("keep_whitespace", keep_whitespace, nb::arg("text"), nb::arg("words"));
}
