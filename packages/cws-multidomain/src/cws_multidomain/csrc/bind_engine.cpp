#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "arrow.h"
#include "bind.h"
#include "explain.h"
#include "lexicon.h"
#include "pool.h"
#include "printable.h"
#include "python_text.h"
#include "segment.h"

using namespace nb::literals;

namespace {

namespace arrow = cws::arrow;
using cws::Block;
using cws::Cursor;
using cws::Engine;
using cws::Model;
using cws::Settings;
using cws::Spans;
using cws::Unit;
using cws::Words;

// ---- parts that training and packing use

cws::LexiconArrays build_lexicon(Array1<uint16_t> symbols, Array1<int64_t> row_splits, int n_symbols) {
  cws::LexiconBuilder builder(n_symbols);
  for (size_t r = 0; r + 1 < row_splits.shape(0); ++r) {
    builder.add(symbols.data() + row_splits.data()[r], row_splits.data()[r + 1] - row_splits.data()[r]);
  }
  return builder.finish();
}

nb::object marks(const cws::Lexicon& lexicon, Array1<uint16_t> symbols) {
  std::vector<uint8_t> m(symbols.shape(0));
  cws::marks(lexicon, symbols.data(), int64_t(m.size()), m.data());
  return to_numpy(std::move(m));
}

nb::object lexicon_marks(const cws::LexiconArrays& lexicon, Array1<uint16_t> symbols) {
  return marks(lexicon.view(), symbols);
}

// first, edges, pilots, (size, seed, states, bytes, target_bits): the sections of a file.
nb::tuple lexicon_arrays(const cws::LexiconArrays& x) {
  return nb::make_tuple(to_numpy(std::vector(x.first)), to_numpy(std::vector(x.edges)),
                        to_numpy(std::vector(x.hash.pilots)),
                        to_numpy(std::vector<uint32_t>{x.hash.size, x.hash.seed, x.n_states, x.bytes, x.target_bits}));
}

// pilots, (size, seed), the slot of each key.
nb::tuple perfect_hash(Array1<uint32_t> keys) {
  const std::vector<uint32_t> all(keys.data(), keys.data() + keys.shape(0));
  cws::PerfectHashArrays built = cws::build_perfect_hash(all);
  const cws::PerfectHash hash = built.view();
  std::vector<uint32_t> slots(all.size());
  for (size_t i = 0; i < all.size(); ++i) slots[i] = hash(all[i]);
  nb::object pilots = to_numpy(std::vector(built.pilots));
  return nb::make_tuple(pilots, to_numpy(std::vector<uint32_t>{built.size, built.seed}), to_numpy(std::move(slots)));
}

uint32_t crc32c(nb::bytes data) { return cws::crc32c(static_cast<const uint8_t*>(data.data()), data.size()); }

// ---- models

// Keeps the model alive as long as a view of its bytes.
nb::object bytes_of(std::shared_ptr<const Model> model, const uint8_t* data, size_t size) {
  auto* kept = new std::shared_ptr<const Model>(std::move(model));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::shared_ptr<const Model>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(data, {size}, owner));
}

nb::dict sections(const std::shared_ptr<Model>& model) {
  nb::dict out;
  for (const auto& s : model->file().sections()) out[s.name.c_str()] = bytes_of(model, s.data, s.size);
  return out;
}

// Words of a lexicon as symbols [total] and row splits, in ascending order.
nb::tuple lexicon_words(const Model& model, int k) {
  if (k < 0 || k >= model.n_lexicons()) throw nb::index_error("no such lexicon");
  std::vector<uint16_t> symbols;
  std::vector<int64_t> splits{0};
  cws::for_each_word(model.lexicon(k), [&](const uint16_t* word, int64_t n) {
    symbols.insert(symbols.end(), word, word + n);
    splits.push_back(int64_t(symbols.size()));
  });
  return nb::make_tuple(to_numpy(std::move(symbols)), to_numpy(std::move(splits)));
}

nb::object model_marks(const Model& model, int k, Array1<uint16_t> symbols) {
  if (k < 0 || k >= model.n_lexicons()) throw nb::index_error("no such lexicon");
  return marks(model.lexicon(k), symbols);
}

// ---- the engine

// A text among several that cannot be segmented.
struct BadRow : std::invalid_argument {
  BadRow(size_t row, int64_t at, const char* reason) : std::invalid_argument(reason), row(row), at(at) {}
  size_t row;
  int64_t at;

  std::string message() const {
    return "texts[" + std::to_string(row) + "] " + what() + (at < 0 ? std::string() : " " + std::to_string(at));
  }
};

class Segmentation {
 public:
  Segmentation(std::shared_ptr<Model> model, bool gated, std::vector<double> weights)
      : engine_(std::make_shared<Engine>(std::move(model), gated, std::move(weights))) {}

  uint32_t rules() const { return settings_.rules; }
  void set_rules(uint32_t rules) {
    const std::lock_guard lock(mutex_);
    settings_.rules = rules;
  }
  uint32_t granularity() const { return uint32_t(settings_.granularity); }
  void set_granularity(uint32_t granularity) {
    const std::lock_guard lock(mutex_);
    settings_.granularity = cws::Granularity(granularity);
  }

  // Words and costs have been checked. Calls that run keep the words they began with.
  void add_words(nb::list words, Array1<float> costs) {
    const std::lock_guard lock(mutex_);
    if (!words_) words_ = std::make_shared<Words>();
    settings_.words.reset();
    if (words_.use_count() > 1) words_ = std::make_shared<Words>(*words_);
    std::vector<uint32_t> points;
    for (size_t i = 0; i < words.size(); ++i) {
      points.clear();
      cws::append_points(words[i], points);
      words_->set(points.data(), int64_t(points.size()), costs.data()[i]);
    }
    if (words_->size()) settings_.words = words_;
  }

  // Both have the same words until one of them gets more.
  void share_words(const Segmentation& other) {
    settings_.words = other.settings().words;
    words_ = std::const_pointer_cast<Words>(settings_.words);
  }

  nb::list words() const {
    nb::list out;
    const Settings now = settings();
    if (!now.words) return out;
    now.words->for_each([&](const uint32_t* word, int64_t n, float cost) {
      nb::object text =
          nb::steal(PyUnicode_DecodeUTF32(reinterpret_cast<const char*>(word), 4 * n, "surrogatepass", &kOrder));
      if (!text) throw nb::python_error();
      out.append(nb::make_tuple(text, cost));
    });
    return out;
  }

  // ---- one text

  nb::object cut(nb::handle text) {
    const Lease block = lease(text);
    const Spans spans = segment(*block);
    return cws::token_list(text, block->points.data(), spans.starts.data(), spans.ends.data(),
                           int64_t(spans.starts.size()));
  }

  nb::tuple spans(nb::handle text) {
    Spans spans = segment(*lease(text));
    return nb::make_tuple(to_numpy(std::move(spans.starts)), to_numpy(std::move(spans.ends)));
  }

  std::vector<double> gate(nb::handle text) {
    std::vector<double> out;
    const cws::Gate* gate = engine_->model().gate();
    if (!gate) return out;
    const Lease block = whole(text);
    std::array<int64_t, 256> sums{};
    int64_t n = 0;
    int32_t before = -1;
    for (const auto& t : block->sentences()) {
      const int64_t part = std::min<int64_t>(t.end - t.begin, cws::kGateSymbols - n);
      if (part <= 0) break;
      cws::add_gate(*gate, block->symbols() + t.begin, part, before, sums.data());
      before = block->symbols()[t.begin + part - 1];
      n += part;
    }
    engine_->choose(sums.data(), n, &out);
    return out;
  }

  // What the rules say of the boundary before each character that is no whitespace, of texts one after the other.
  nb::object masks(nb::list texts) {
    const Settings now = settings();
    std::vector<uint8_t> out;
    for (nb::handle text : texts) {
      const Lease block = whole(text);
      block->settle(now.rules);
      for (const auto& t : block->sentences()) out.insert(out.end(), block->mask() + t.begin, block->mask() + t.end);
    }
    return to_numpy(std::move(out));
  }

  nb::list nbest(nb::handle text, int64_t k) {
    const Lease block = whole(text);
    std::vector<cws::Lattice::Path> paths;
    const double unit = engine_->model().scale() * engine_->model().temperature();
    double total = 0;
    {
      const Settings now = settings();
      nb::gil_scoped_release release;
      const cws::Lattice lattice = block->lattice(now);
      paths = lattice.best(k);
      total = lattice.sum(unit, nullptr);
    }
    nb::list out;
    std::vector<int32_t> starts, ends;
    for (const auto& path : paths) {
      starts.clear();
      ends.clear();
      size_t at = 0;
      for (const auto& t : block->sentences()) {
        for (int64_t i = t.begin; i < t.end; ++i, ++at) {
          if (path.tags[at] == cws::kB || path.tags[at] == cws::kS) starts.push_back(block->offsets()[i]);
          if (path.tags[at] == cws::kE || path.tags[at] == cws::kS) ends.push_back(block->offsets()[i + 1]);
        }
      }
      nb::object tokens =
          cws::token_list(text, block->points.data(), starts.data(), ends.data(), int64_t(starts.size()));
      out.append(nb::make_tuple(tokens, path.score / unit - total));
    }
    return out;
  }

  nb::object probabilities(nb::handle text, double temperature) {
    const Lease block = whole(text);
    std::vector<float> out(block->points.size(), 0);
    const double unit = engine_->model().scale() * temperature;
    const Settings now = settings();
    {
      nb::gil_scoped_release release;
      const cws::Lattice lattice = block->lattice(now);
      std::vector<float> starts(lattice.size());
      lattice.sum(unit, starts.data());
      size_t at = 0;
      for (const auto& t : block->sentences()) {
        std::copy_n(starts.data() + at, t.end - t.begin, out.data() + block->offsets()[t.begin]);
        at += size_t(t.end - t.begin);
      }
    }
    return to_numpy(std::move(out));
  }

  // (position, tag, margin, cost of the user word that ends here or 0, domain, [(feature, which, key, shared, added)]).
  nb::list explain(nb::handle text) {
    const Lease block = whole(text);
    const Settings now = settings();
    const cws::Lattice lattice = block->lattice(now);
    std::vector<uint8_t> tags(lattice.size());
    std::vector<double> margins(lattice.size());
    lattice.best(tags.data());
    lattice.margins(tags.data(), margins.data());
    const cws::Rows rows = block->rows();
    nb::list out;
    size_t at = 0;
    for (size_t k = 0; k < block->sentences().size(); ++k) {
      const auto& t = block->sentences()[k];
      const int domain = block->domain_of(int64_t(k));
      int64_t begin = t.begin;
      for (int64_t i = t.begin; i < t.end; ++i, ++at) {
        const int tag = tags[at];
        if (tag == cws::kB || tag == cws::kS) begin = i;
        float cost = 0;
        if (now.words && (tag == cws::kE || tag == cws::kS)) {
          cost = now.words->cost(block->text() + begin, i + 1 - begin);
        }
        nb::list features;
        for (const auto& f :
             cws::fired(engine_->model(), engine_->tables(domain), rows, i, tag, i > t.begin ? tags[at - 1] : -1)) {
          features.append(nb::make_tuple(int(f.feature), f.which, f.key, f.shared, f.added));
        }
        out.append(
            nb::make_tuple(block->offsets()[i], tag, margins[at] / engine_->model().scale(), cost, domain, features));
      }
    }
    return out;
  }

  // ---- many texts

  // starts, ends, row_splits.
  nb::tuple offsets(nb::list texts, int unit, int threads) {
    const size_t n = texts.size();
    std::vector<uint32_t> points;
    std::vector<int64_t> splits{0};
    for (size_t i = 0; i < n; ++i) {
      cws::append_points(texts[i], points);
      splits.push_back(int64_t(points.size()));
    }
    const Settings now = settings();
    Spans all;
    {
      nb::gil_scoped_release release;
      all = rows(now, n, threads, Unit(unit), [&](size_t i) {
        return Cursor{points.data() + splits[i], splits[i + 1] - splits[i], 0, 0};
      }, [&](size_t i) { return splits[i]; }, false);
    }
    return arrays(std::move(all));
  }

  // Rows are those of Arrow string arrays; a null is an empty row.
  nb::tuple offsets_of_arrow_array(nb::handle schema, nb::handle array, int unit, int threads) {
    const bool large = arrow::is_large(*arrow::pointer<ArrowSchema>(schema, arrow::kSchemaName));
    return offsets_of({arrow::texts_of(*arrow::pointer<ArrowArray>(array, arrow::kArrayName), large)}, unit, threads);
  }

  nb::tuple offsets_of_arrow_stream(nb::handle capsule, int unit, int threads) {
    auto* stream = arrow::pointer<ArrowArrayStream>(capsule, "arrow_array_stream");
    const auto check = [&](int error) {
      if (!error) return;
      const char* reason = stream->get_last_error(stream);
      throw nb::value_error(
          ("texts is an Arrow stream that failed: " + cws::printable(reason ? reason : "", 1000)).c_str());
    };
    arrow::Owned<ArrowSchema> schema;
    check(stream->get_schema(stream, &schema));
    const bool large = arrow::is_large(schema);
    std::deque<arrow::Owned<ArrowArray>> chunks;
    std::vector<arrow::Texts> texts;
    for (;;) {
      chunks.emplace_back();
      check(stream->get_next(stream, &chunks.back()));
      if (!chunks.back().release) break;
      texts.push_back(arrow::texts_of(chunks.back(), large));
    }
    return offsets_of(texts, unit, threads);
  }

  // Rows are lines.
  nb::tuple offsets_of_lines(const uint8_t* bytes, int64_t size, int unit, int threads) {
    const Settings now = settings();
    Spans all;
    {
      nb::gil_scoped_release release;
      std::vector<int64_t> splits{0};
      while (splits.back() < size) {
        const int64_t from = std::min(size, splits.back() + kPart);
        const void* line = from < size ? std::memchr(bytes + from, '\n', size_t(size - from)) : nullptr;
        splits.push_back(line ? static_cast<const uint8_t*>(line) - bytes + 1 : size);
      }
      std::vector<Spans> parts(splits.size() - 1);
      cws::parallel_for(int64_t(parts.size()), threads, [&](int64_t k, int) {
        const Lease block = lease();
        Cursor c{bytes + splits[k], splits[k + 1] - splits[k], 0, 0};
        expect(c.size, parts[k]);
        try {
          run<true, true>(Unit(unit), *block, c, now, parts[k]);
        } catch (const cws::BadUtf8& e) {
          throw cws::BadUtf8(e.at + splits[k]);
        }
        // A last line without its end.
        if (bytes[splits[k + 1] - 1] != '\n') parts[k].row_ends.push_back(int64_t(parts[k].starts.size()));
      });
      all = joined(std::move(parts), threads);
    }
    return arrays(std::move(all));
  }

  nb::list cut_many(nb::list texts, int threads);

 private:
  static constexpr int64_t kPart = 1 << 18;  // bytes or code points of a task
  static inline int kOrder = std::endian::native == std::endian::little ? -1 : 1;

  // A block from the shelf, and back.
  struct Return {
    Segmentation* owner;
    void operator()(Block* block) const {
      std::unique_ptr<Block> own(block);
      if (block->capacity() > 1 << 17) return;
      const std::lock_guard lock(owner->mutex_);
      if (owner->shelf_.size() < 64) owner->shelf_.push_back(std::move(own));
    }
  };
  using Lease = std::unique_ptr<Block, Return>;

  Lease lease() {
    std::unique_ptr<Block> block;
    {
      const std::lock_guard lock(mutex_);
      if (!shelf_.empty()) {
        block = std::move(shelf_.back());
        shelf_.pop_back();
      }
    }
    if (!block) block = std::make_unique<Block>(*engine_);
    block->reset();
    return Lease(block.release(), Return{this});
  }

  Settings settings() const {
    const std::lock_guard lock(mutex_);
    return settings_;
  }

  nb::tuple offsets_of(const std::vector<arrow::Texts>& chunks, int unit, int threads) {
    const Settings now = settings();
    Spans all;
    {
      nb::gil_scoped_release release;
      std::vector<Spans> parts;
      size_t before = 0;
      for (const arrow::Texts& t : chunks) {
        const auto cursor = [&](size_t i) {
          const int64_t begin = t.split(int64_t(i)), end = t.null(int64_t(i)) ? begin : t.split(int64_t(i) + 1);
          return Cursor{t.data + begin, end - begin, 0, 0};
        };
        try {
          parts.push_back(rows(now, size_t(t.length), threads, Unit(unit), cursor,
                               [&](size_t i) { return t.split(int64_t(i)); }, true));
        } catch (BadRow& e) {
          e.row += before;
          throw;
        }
        before += size_t(t.length);
      }
      all = joined(std::move(parts), threads);
    }
    return arrays(std::move(all));
  }

  template <bool UTF8, bool LINES>
  static void run(Unit unit, Block& block, Cursor& c, const Settings& now, Spans& out) {
    switch (unit) {
      case Unit::kCharacter:
        return run<Unit::kCharacter, UTF8, LINES>(block, c, now, out);
      case Unit::kByte:
        return run<Unit::kByte, UTF8, LINES>(block, c, now, out);
      case Unit::kUtf16:
        return run<Unit::kUtf16, UTF8, LINES>(block, c, now, out);
    }
  }

  template <Unit U, bool UTF8, bool LINES>
  static void run(Block& block, Cursor& c, const Settings& now, Spans& out) {
    for (bool more = true; more;) {
      more = block.read<U, UTF8, LINES>(c);
      block.segment(now, out);
      block.clear();
    }
  }

  static void expect(int64_t size, Spans& out) {
    out.starts.reserve(size_t(size) / 4 + 64);
    out.ends.reserve(size_t(size) / 4 + 64);
  }

  // Rows that `cursor(i)` gives, in tasks of about kPart units by `split(i)`.
  template <class GetCursor, class Split>
  Spans rows(const Settings& now, size_t n, int threads, Unit unit, GetCursor cursor, Split split, bool utf8) {
    std::vector<size_t> tasks{0};
    while (tasks.back() < n) {
      size_t last = tasks.back() + 1;
      const int64_t begin = split(tasks.back());
      while (last < n && split(last) - begin < kPart && last - tasks.back() < size_t(kPart)) ++last;
      tasks.push_back(last);
    }
    std::vector<Spans> parts(tasks.size() - 1);
    cws::parallel_for(int64_t(parts.size()), threads,
                      [&](int64_t k, int) { some_rows(now, tasks[k], tasks[k + 1], unit, cursor, utf8, parts[k]); });
    return joined(std::move(parts), threads);
  }

  template <class GetCursor>
  void some_rows(const Settings& now, size_t first, size_t last, Unit unit, GetCursor cursor, bool utf8, Spans& out) {
    const Lease block = lease();
    for (size_t i = first; i < last; ++i) {
      Cursor c = cursor(i);
      try {
        for (bool more = true; more;) {
          more = read(unit, utf8, *block, c);
          if (!more) {
            block->end_line();
            block->end_row();
          }
          if (!more && block->size() < Block::kFull && i + 1 < last) break;
          block->segment(now, out);
          block->clear();
        }
      } catch (const cws::BadUtf8& e) {
        throw BadRow(i, e.at, "is not UTF-8 at byte");
      } catch (const cws::BadSurrogate& e) {
        throw BadRow(i, e.at, "has a lone surrogate, which UTF-8 has not, at character");
      } catch (const cws::TooLong&) {
        throw BadRow(i, -1, "must have at most 2**31 - 1 units");
      }
    }
  }

  static bool read(Unit unit, bool utf8, Block& block, Cursor& c) {
    switch (unit) {
      case Unit::kCharacter:
        return utf8 ? block.read<Unit::kCharacter, true, false>(c) : block.read<Unit::kCharacter, false, false>(c);
      case Unit::kByte:
        return utf8 ? block.read<Unit::kByte, true, false>(c) : block.read<Unit::kByte, false, false>(c);
      default:
        return utf8 ? block.read<Unit::kUtf16, true, false>(c) : block.read<Unit::kUtf16, false, false>(c);
    }
  }

  static Spans joined(std::vector<Spans>&& parts, int threads) {
    if (parts.size() == 1) return std::move(parts[0]);
    Spans all;
    std::vector<int64_t> tokens{0}, rows{0};
    for (const Spans& p : parts) {
      tokens.push_back(tokens.back() + int64_t(p.starts.size()));
      rows.push_back(rows.back() + int64_t(p.row_ends.size()));
    }
    all.starts.resize(size_t(tokens.back()));
    all.ends.resize(size_t(tokens.back()));
    all.row_ends.resize(size_t(rows.back()));
    cws::parallel_for(int64_t(parts.size()), threads, [&](int64_t k, int) {
      Spans part = std::move(parts[k]);
      std::copy(part.starts.begin(), part.starts.end(), all.starts.begin() + tokens[k]);
      std::copy(part.ends.begin(), part.ends.end(), all.ends.begin() + tokens[k]);
      for (size_t r = 0; r < part.row_ends.size(); ++r)
        all.row_ends[size_t(rows[k]) + r] = part.row_ends[r] + tokens[k];
    });
    return all;
  }

  static nb::tuple arrays(Spans&& spans) {
    spans.row_ends.insert(spans.row_ends.begin(), 0);
    return nb::make_tuple(to_numpy(std::move(spans.starts)), to_numpy(std::move(spans.ends)),
                          to_numpy(std::move(spans.row_ends)));
  }

  // A block with the code points of a text.
  Lease lease(nb::handle text) {
    Lease block = lease();
    block->points.clear();
    cws::append_points(text, block->points);
    return block;
  }

  // The tokens of the text that a block was leased with.
  Spans segment(Block& block) {
    Spans out;
    const Settings now = settings();
    const auto work = [&] {
      Cursor c{block.points.data(), int64_t(block.points.size()), 0, 0};
      run<Unit::kCharacter, false, false>(block, c, now, out);
    };
    if (block.points.size() < 256) {
      work();
    } else {
      nb::gil_scoped_release release;
      work();
    }
    return out;
  }

  // All of a text in one block.
  Lease whole(nb::handle text) {
    Lease block = lease(text);
    Cursor c{block->points.data(), int64_t(block->points.size()), 0, 0};
    block->read<Unit::kCharacter, false, false>(c, true);
    return block;
  }

  std::shared_ptr<Engine> engine_;
  mutable std::mutex mutex_;
  Settings settings_;
  std::shared_ptr<Words> words_;
  std::vector<std::unique_ptr<Block>> shelf_;
};

// Texts go to workers in tasks; the calling thread copies them, makes lists, and works too while it has to wait.
nb::list Segmentation::cut_many(nb::list texts, int threads) {
  struct Task {
    size_t first = 0, last = 0;
    std::vector<uint32_t> points;
    std::vector<int64_t> splits{0};
    Spans spans;
    std::exception_ptr error;
    bool started = false, done = false;
  };
  constexpr size_t kTask = 1 << 15;  // characters
  const Settings now = settings();
  const size_t n = texts.size();
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::unique_ptr<Task>> queue;
  bool closed = false;

  const auto work = [&](Task& t) {
    try {
      const auto cursor = [&](size_t i) {
        return Cursor{t.points.data() + t.splits[i], t.splits[i + 1] - t.splits[i], 0, 0};
      };
      some_rows(now, 0, t.last - t.first, Unit::kCharacter, cursor, false, t.spans);
    } catch (...) {
      t.error = std::current_exception();
    }
  };
  const auto next = [&]() -> Task* {
    for (const auto& t : queue) {
      if (!t->started) {
        t->started = true;
        return t.get();
      }
    }
    return nullptr;
  };
  const auto serve = [&] {
    std::unique_lock lock(mutex);
    for (;;) {
      Task* t = nullptr;
      changed.wait(lock, [&] { return closed || (t = next()); });
      if (!t) return;
      lock.unlock();
      work(*t);
      lock.lock();
      t->done = true;
      changed.notify_all();
    }
  };
  std::vector<std::thread> workers;
  struct Close {
    std::mutex& mutex;
    std::condition_variable& changed;
    bool& closed;
    std::vector<std::thread>& workers;
    ~Close() {
      {
        const std::lock_guard lock(mutex);
        closed = true;
      }
      changed.notify_all();
      nb::gil_scoped_release release;
      for (std::thread& t : workers) t.join();
    }
  } close{mutex, changed, closed, workers};

  nb::list out;
  size_t read = 0;
  while (out.size() < n) {
    while (read < n && queue.size() < 2 * size_t(threads)) {
      auto t = std::make_unique<Task>();
      for (t->first = read; read < n && t->points.size() < kTask && read - t->first < kTask; ++read) {
        cws::append_points(texts[read], t->points);
        t->splits.push_back(int64_t(t->points.size()));
      }
      t->last = read;
      {
        const std::lock_guard lock(mutex);
        queue.push_back(std::move(t));
      }
      changed.notify_one();
      if (int(workers.size()) + 1 < threads && read < n) workers.emplace_back(serve);
    }
    Task& oldest = *queue.front();
    {
      nb::gil_scoped_release release;
      std::unique_lock lock(mutex);
      while (!oldest.done) {
        if (Task* t = next()) {
          lock.unlock();
          work(*t);
          lock.lock();
          t->done = true;
        } else {
          changed.wait(lock);
        }
      }
    }
    if (oldest.error) {
      try {
        std::rethrow_exception(oldest.error);
      } catch (BadRow& e) {
        e.row += oldest.first;
        throw;
      }
    }
    const Spans& spans = oldest.spans;
    const cws::NoCollection none;
    for (size_t i = 0, from = 0; i < spans.row_ends.size(); ++i) {
      const size_t to = size_t(spans.row_ends[i]);
      out.append(cws::token_list(texts[oldest.first + i], oldest.points.data() + oldest.splits[i],
                                 spans.starts.data() + from, spans.ends.data() + from, int64_t(to - from)));
      from = to;
    }
    const std::lock_guard lock(mutex);
    queue.pop_front();
  }
  return out;
}

// Calls a member and turns what C++ throws about texts into ValueError.
template <class Call>
auto checked(Call call) {
  try {
    return call();
  } catch (const BadRow& e) {
    throw nb::value_error(e.message().c_str());
  }
}

nb::tuple export_spans(Array1<int32_t> starts, Array1<int32_t> ends, Array1<int64_t> row_splits, nb::object owner) {
  std::vector<std::unique_ptr<ArrowArray>> fields, item;
  const int64_t n = int64_t(starts.shape(0));
  fields.push_back(arrow::make_array(n, {nullptr, starts.data()}, owner.ptr()));
  fields.push_back(arrow::make_array(n, {nullptr, ends.data()}, owner.ptr()));
  item.push_back(arrow::make_array(n, {nullptr}, nullptr, std::move(fields)));
  auto list =
      arrow::make_array(int64_t(row_splits.shape(0)) - 1, {nullptr, row_splits.data()}, owner.ptr(), std::move(item));
  return nb::make_tuple(arrow::capsule(arrow::spans_schema(), arrow::kSchemaName),
                        arrow::capsule(std::move(list), arrow::kArrayName));
}

}  // namespace

void bind_engine(nb::module_& m) {
  nb::class_<cws::LexiconArrays>(m, "Lexicon")
      .def_prop_ro("n_symbols", [](const cws::LexiconArrays& x) { return x.first.size(); })
      .def_prop_ro("n_states", [](const cws::LexiconArrays& x) { return x.n_states; })
      .def_prop_ro("nbytes", [](const cws::LexiconArrays& x) {
    return 4 * x.first.size() + x.edges.size() + 2 * x.hash.pilots.size();
  }).def("arrays", lexicon_arrays);
  m.def("build_lexicon", build_lexicon, "symbols"_a.noconvert(), "row_splits"_a.noconvert(), "n_symbols"_a);
  m.def("lexicon_marks", lexicon_marks, "lexicon"_a, "symbols"_a.noconvert());
  m.def("perfect_hash", perfect_hash, "keys"_a.noconvert());
  m.def("crc32c", crc32c, "data"_a);

  nb::class_<Model>(m, "Model")
      .def_static("map",
                  [](const std::filesystem::path& path) { return std::make_shared<Model>(cws::Container::map(path)); })
      .def_static("copy",
                  [](nb::bytes data, const std::string& name) {
    const auto* bytes = static_cast<const uint8_t*>(data.data());
    return std::make_shared<Model>(cws::Container::copy(bytes, data.size(), name));
  }, "data"_a, "name"_a)
      .def_prop_ro("data",
                   [](const std::shared_ptr<Model>& x) { return bytes_of(x, x->file().data(), x->file().size()); })
      .def_prop_ro("sections", sections)
      .def("lexicon_words", lexicon_words, "lexicon"_a)
      .def("lexicon_marks", model_marks, "lexicon"_a, "symbols"_a.noconvert())
      .def_prop_ro("n_symbols", &Model::n_symbols)
      .def_prop_ro("n_lexicons", &Model::n_lexicons)
      .def_prop_ro("gated", [](const Model& x) { return x.gate() != nullptr; })
      .def_prop_ro("scale", &Model::scale)
      .def_prop_ro("temperature", &Model::temperature);

  nb::class_<Segmentation>(m, "Segmentation")
      .def(nb::init<std::shared_ptr<Model>, bool, std::vector<double>>(), "model"_a, "gated"_a, "weights"_a)
      .def_prop_rw("rules", &Segmentation::rules, &Segmentation::set_rules)
      .def_prop_rw("granularity", &Segmentation::granularity, &Segmentation::set_granularity)
      .def("add_words", &Segmentation::add_words, "words"_a, "costs"_a.noconvert())
      .def("share_words", &Segmentation::share_words, "other"_a)
      .def("words", &Segmentation::words)
      .def("cut", &Segmentation::cut, "text"_a)
      .def("spans", &Segmentation::spans, "text"_a)
      .def("gate", &Segmentation::gate, "text"_a)
      .def("masks", &Segmentation::masks, "texts"_a)
      .def("nbest", &Segmentation::nbest, "text"_a, "n"_a)
      .def("probabilities", &Segmentation::probabilities, "text"_a, "temperature"_a)
      .def("explain", &Segmentation::explain, "text"_a)
      .def("offsets",
           [](Segmentation& x, nb::list texts, int unit, int threads) {
    return checked([&] { return x.offsets(texts, unit, threads); });
  }, "texts"_a, "unit"_a, "threads"_a)
      .def("offsets_of_arrow_array",
           [](Segmentation& x, nb::handle schema, nb::handle array, int unit, int threads) {
    return checked([&] { return x.offsets_of_arrow_array(schema, array, unit, threads); });
  }, "schema"_a, "array"_a, "unit"_a, "threads"_a)
      .def("offsets_of_arrow_stream",
           [](Segmentation& x, nb::handle stream, int unit, int threads) {
    return checked([&] { return x.offsets_of_arrow_stream(stream, unit, threads); });
  }, "stream"_a, "unit"_a, "threads"_a)
      .def("offsets_of_lines",
           [](Segmentation& x, Array1<uint8_t> data, int unit, int threads) {
    try {
      return x.offsets_of_lines(data.data(), int64_t(data.shape(0)), unit, threads);
    } catch (const cws::BadUtf8& e) {
      throw nb::value_error(("buffer is not UTF-8 at byte " + std::to_string(e.at)).c_str());
    } catch (const cws::TooLong&) {
      throw nb::value_error("a line must have at most 2**31 - 1 units");
    }
  }, "data"_a.noconvert(), "unit"_a, "threads"_a)
      .def("cut_many", [](Segmentation& x, nb::list texts, int threads) {
    return checked([&] { return x.cut_many(texts, threads); });
  }, "texts"_a, "threads"_a);

  m.def("export_spans", export_spans, "starts"_a.noconvert(), "ends"_a.noconvert(), "row_splits"_a.noconvert(),
        "owner"_a);
  m.def("spans_schema", [] { return arrow::capsule(arrow::spans_schema(), arrow::kSchemaName); });
}
