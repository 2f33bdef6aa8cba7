#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/string.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bind.h"
#include "tokenize.h"
#include "vocabulary.h"

namespace {

std::string_view utf8(nb::handle text) {
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (data == nullptr) nb::raise_python_error();
  return {data, static_cast<size_t>(size)};
}

nb::str to_str(std::string_view text) { return nb::str(text.data(), text.size()); }

[[noreturn]] void refuse(uint64_t number, const std::string& what) {
  throw nb::type_error(
      ("sentence " + std::to_string(number) + " must be a string or a sequence of strings, got " + what).c_str());
}

std::string name_of_type(nb::handle object) { return nb::cast<std::string>(object.type().attr("__name__")); }

// The words of a sentence, which is a string or a sequence of strings.
nb::list words_of(nb::handle sentence, uint64_t number) {
  PyObject* words = nullptr;
  if (nb::isinstance<nb::str>(sentence)) {
    words = PyUnicode_Split(sentence.ptr(), nullptr, -1);
  } else if (nb::isinstance<nb::list>(sentence)) {
    return nb::borrow<nb::list>(sentence);
  } else if (nb::isinstance<nb::bytes>(sentence) || !PySequence_Check(sentence.ptr())) {
    refuse(number, name_of_type(sentence));
  } else {
    words = PySequence_List(sentence.ptr());
  }
  if (words == nullptr) nb::raise_python_error();
  return nb::steal<nb::list>(words);
}

template <class Each>
void for_each_word(nb::handle sentence, uint64_t number, Each each) {
  const nb::list words = words_of(sentence, number);
  for (Py_ssize_t i = 0; i < PyList_Size(words.ptr()); ++i) {
    const nb::handle word = PyList_GetItem(words.ptr(), i);
    if (!nb::isinstance<nb::str>(word)) refuse(number, name_of_type(word) + " as word " + std::to_string(i));
    each(word);
  }
}

Rule to_rule(const nb::object& rule) {
  if (rule.is_none()) return {};
  return [rule](std::string_view word, uint64_t count, uint64_t least) {
    nb::gil_scoped_acquire held;
    return nb::cast<bool>(rule(to_str(word), count, least));
  };
}

std::vector<std::string_view> views(const nb::list& words) {
  std::vector<std::string_view> result;
  for (nb::handle word : words) result.push_back(utf8(word));
  return result;
}

// One reading of a corpus: of a file's text in blocks, or of Python's sentences in batches.
class Reader {
 public:
  Reader(std::string name, uint64_t max_vocab_size, const nb::object& rule)
      : tokenizer_(std::move(name)), encoder_(max_vocab_size, to_rule(rule)) {}

  Reader(std::string name, const nb::list& words) : tokenizer_(std::move(name)), encoder_(views(words)) {}

  void feed(std::string_view block) { tokenizer_.feed(block, encoder_); }

  void finish() { tokenizer_.finish(encoder_); }

  void add(const nb::list& sentences) {
    for (nb::handle sentence : sentences) {
      try {
        for_each_word(sentence, sentences_, [this](nb::handle word) { encoder_.word(utf8(word)); });
      } catch (const nb::python_error& error) {
        if (!error.matches(PyExc_UnicodeEncodeError)) throw;
        throw nb::value_error(
            ("sentence " + std::to_string(sentences_) + " must be Unicode text, got a surrogate alone").c_str());
      }
      encoder_.end_sentence();
      ++sentences_;
    }
  }

  nb::tuple take() {
    auto [ids, ends] = encoder_.take();
    return nb::make_tuple(to_numpy(std::move(ids)), to_numpy(std::move(ends)));
  }

  nb::list words() const {
    nb::list result;
    for (size_t id = 0; id < encoder_.lexicon().size(); ++id) result.append(to_str(encoder_.lexicon()[id]));
    return result;
  }

  nb::object counts() const { return to_numpy(std::vector(encoder_.counts())); }
  nb::object births() const { return to_numpy(std::vector(encoder_.births())); }
  uint64_t raw() const { return encoder_.raw(); }

 private:
  Tokenizer tokenizer_;
  Encoder encoder_;
  uint64_t sentences_ = 0;
};

nb::tuple result(Reader& reader) {
  nb::tuple taken = reader.take();
  auto ends = nb::cast<Array1<uint64_t>>(taken[1]);
  std::vector<uint64_t> offsets{0};
  offsets.insert(offsets.end(), ends.data(), ends.data() + ends.shape(0));
  return nb::make_tuple(taken[0], to_numpy(std::move(offsets)), reader.words(), reader.counts());
}

nb::tuple tokenize_text(const nb::bytes& text) {
  Reader reader("bytes", 0, nb::none());
  {
    nb::gil_scoped_release released;
    reader.feed({text.c_str(), text.size()});
    reader.finish();
  }
  return result(reader);
}

nb::tuple tokenize_file(const std::filesystem::path& path) {
  constexpr size_t kBlock = 1 << 22;
  const nb::object name = nb::steal(PyUnicode_DecodeUTF8(path.c_str(), static_cast<Py_ssize_t>(path.native().size()),
                                                         "backslashreplace"));  // a path need be no UTF-8
  Reader reader(std::string(utf8(name)), 0, nb::none());
  int error = 0;
  {
    nb::gil_scoped_release released;
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    std::string block(kBlock, '\0');
    size_t read = file ? kBlock : 0;
    while (read == kBlock) {
      read = std::fread(block.data(), 1, kBlock, file.get());
      reader.feed({block.data(), read});
    }
    if (!file || std::ferror(file.get())) error = errno;
    if (error == 0) reader.finish();
  }
  if (error != 0) {
    errno = error;
    PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
    nb::raise_python_error();
  }
  return result(reader);
}

// The numbers of the words that have one, and where the sentences begin among them.
nb::tuple encode(const nb::list& sentences, const nb::dict& index, uint64_t first) {
  std::vector<uint32_t> ids;
  std::vector<uint64_t> offsets{0};
  uint64_t raw = 0;
  for (nb::handle sentence : sentences) {
    for_each_word(sentence, first++, [&](nb::handle word) {
      ++raw;
      PyObject* id = PyDict_GetItemWithError(index.ptr(), word.ptr());
      if (id != nullptr) {
        ids.push_back(nb::cast<uint32_t>(nb::handle(id)));
      } else if (PyErr_Occurred()) {
        nb::raise_python_error();
      }
    });
    offsets.push_back(ids.size());
  }
  return nb::make_tuple(to_numpy(std::move(ids)), to_numpy(std::move(offsets)), raw);
}

}  // namespace

void bind_corpus(nb::module_& m) {
  nb::class_<Reader>(m, "Reader")
      .def(nb::init<std::string, uint64_t, nb::object>(), nb::arg("name"), nb::arg("max_vocab_size") = 0,
           nb::arg("rule") = nb::none())
      .def(nb::init<std::string, nb::list>(), nb::arg("name"), nb::arg("words"))
      .def("feed",
           [](Reader& reader, const nb::bytes& block) {
    const std::string_view text(block.c_str(), block.size());
    nb::gil_scoped_release released;
    reader.feed(text);
  }, nb::arg("block"))
      .def("finish", &Reader::finish, nb::call_guard<nb::gil_scoped_release>())
      .def("add", &Reader::add, nb::arg("sentences"))
      .def("take", &Reader::take)
      .def_prop_ro("words", &Reader::words)
      .def_prop_ro("counts", &Reader::counts)
      .def_prop_ro("births", &Reader::births)
      .def_prop_ro("raw", &Reader::raw);
  m.def("tokenize", tokenize_text, nb::arg("source"));
  m.def("tokenize", tokenize_file, nb::arg("source"));
  m.def("encode", encode, nb::arg("sentences"), nb::arg("index"), nb::arg("first") = 0);
  m.def("renumber",
        [](MutableArray1<uint32_t> ids, MutableArray1<uint64_t> ends, Array1<uint32_t> numbers) {
    return renumber(ids.data(), ends.data(), ends.shape(0), numbers.data());
  }, nb::arg("ids").noconvert(), nb::arg("ends").noconvert(), nb::arg("numbers").noconvert(),
        nb::call_guard<nb::gil_scoped_release>());
}
