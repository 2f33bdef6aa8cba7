#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <type_traits>

#include "deterministic.h"
#include "train.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T>
using Array = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::object matrix(size_t rows, size_t columns, const T* from) {
  sgns::Aligned<T> data(rows * columns);
  if (from) std::copy(from, from + rows * columns, data.data());
  T* raw = data.release();
  nb::capsule owner(raw, [](void* p) noexcept { std::free(p); });
  return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<2>>(raw, {rows, columns}, owner));
}

// Zeros; "bfloat16" are the upper halves of float32 numbers.
nb::object aligned(size_t rows, size_t columns, const std::string& dtype) {
  columns = (columns + sgns::kBlock - 1) / sgns::kBlock * sgns::kBlock;
  if (dtype == "float32") return matrix<float>(rows, columns, nullptr);
  if (dtype == "float64") return matrix<double>(rows, columns, nullptr);
  if (dtype == "bfloat16") return matrix<sgns::Bfloat16>(rows, columns, nullptr);
  throw std::invalid_argument("dtype must be float32, float64 or bfloat16, got " + dtype);
}

nb::tuple alias_build(Array<const double> p) {
  nb::object threshold = matrix<uint32_t>(1, p.shape(0), nullptr), alias = matrix<uint32_t>(1, p.shape(0), nullptr);
  sgns::build_alias(p.data(), uint32_t(p.shape(0)), nb::cast<Matrix<uint32_t>>(threshold).data(),
                    nb::cast<Matrix<uint32_t>>(alias).data());
  return nb::make_tuple(threshold.attr("reshape")(-1), alias.attr("reshape")(-1));
}

sgns::Sharing sharing(const std::string& name) {
  return name == "pair" ? sgns::Sharing::pair : name == "batch" ? sgns::Sharing::batch : sgns::Sharing::center;
}

sgns::Objective objective_of(const std::string& name) {
  return name == "margin"    ? sgns::Objective::margin
         : name == "infonce" ? sgns::Objective::infonce
                             : sgns::Objective::nce;
}

// positions, windows, negatives and images of the words kept; 2^32 - 1 where there is none.
nb::tuple draws(Array<const uint32_t> ids, Array<const uint32_t> keep, Array<const uint32_t> threshold,
                Array<const uint32_t> alias, Array<const uint64_t> image_ptr, Array<const uint32_t> image_ids,
                uint32_t images, uint32_t window, uint32_t negative, bool shrink_windows, const std::string& negatives,
                uint32_t image_negative, uint64_t seed, uint32_t epoch, uint64_t sentence) {
  const sgns::Sampler sampler{seed,
                              epoch,
                              keep.data(),
                              {threshold.data(), alias.data(), uint32_t(threshold.shape(0))},
                              {image_ptr.data(), image_ids.data(), images, image_negative},
                              window,
                              negative,
                              shrink_windows,
                              sharing(negatives)};
  sgns::Kept kept;
  sampler.select(ids.data(), uint32_t(ids.shape(0)), sentence, kept);
  std::vector<uint32_t> words, shown(size_t(kept.size()) * (1 + image_negative), sgns::kNone);
  sampler.negatives(kept, sentence, 0, kept.size(), words);
  for (uint32_t i = 0; i < kept.size(); ++i) {
    if (!sampler.images.grounded(kept.word[i])) continue;
    sampler.image(kept.position[i], kept.word[i], sentence, shown.data() + size_t(i) * (1 + image_negative));
  }
  return nb::make_tuple(matrix(1, kept.size(), kept.position.data()).attr("reshape")(-1),
                        matrix(1, kept.size(), kept.window.data()).attr("reshape")(-1),
                        matrix(words.size() / negative, negative, words.data()),
                        matrix(kept.size(), 1 + image_negative, shown.data()));
}

// Gradients, times minus alpha, of m inputs against n outputs, all as they are; and the loss.
template <class T>
nb::tuple tile(Matrix<const T> x, Matrix<const T> y, Array<const T> labels, double alpha, const std::string& isa) {
  const size_t m = x.shape(0), n = y.shape(0), columns = x.shape(1);
  if (columns % sgns::kBlock || y.shape(1) != columns || labels.shape(0) != n) {
    throw std::invalid_argument("x and y must have rows of the same multiple of 16, y as many as labels");
  }
  sgns::Aligned<T> xs(m * columns), ys(n * columns), zeros(columns), scratch(columns);
  std::copy(x.data(), x.data() + m * columns, xs.data());
  std::copy(y.data(), y.data() + n * columns, ys.data());
  nb::object dx = matrix<T>(m, columns, nullptr), dy = matrix<T>(n, columns, nullptr);
  T *gx = nb::cast<Matrix<T>>(dx).data(), *gy = nb::cast<Matrix<T>>(dy).data();
  std::vector<T*> rows(m), grads(m);
  const std::vector<T> lock(m, T(1));
  for (size_t i = 0; i < m; ++i) rows[i] = xs.data() + i * columns, grads[i] = gx + i * columns;
  sgns::OutputList<T> outputs(zeros.data());
  for (size_t j = 0; j < n; ++j) outputs.add(ys.data() + j * columns, gy + j * columns, labels.data()[j]);
  sgns::Loss loss;
  sgns::choose<T, true>(isa)({rows.data(), grads.data(), lock.data(), int(m), outputs.data(), outputs.chunks(),
                              scratch.data(), T(alpha), int(columns)},
                             &loss);
  return nb::make_tuple(dx, dy, loss.sum());
}

// Arguments have been checked in Python, but for what would crash.
template <class T, class S>
nb::tuple train_epoch(Array<const uint32_t> ids, Array<const uint64_t> offsets, Array<const uint32_t> keep,
                      Array<const uint32_t> threshold, Array<const uint32_t> alias, Matrix<S> v, Matrix<S> u,
                      Array<const T> lockf, Array<const uint64_t> image_ptr, Array<const uint32_t> image_ids,
                      Matrix<T> z, Array<uint8_t> stop, Array<uint64_t> progress, uint32_t window, uint32_t negative,
                      bool shrink_windows, const std::string& negatives, const std::string& objective,
                      double image_weight, uint32_t image_negative, bool images_trained, double alpha, double min_alpha,
                      uint64_t done, uint64_t first_token, uint64_t total, uint64_t seed, uint32_t epoch,
                      uint64_t first_sentence, const std::string& loss, int workers, bool deterministic,
                      const std::string& isa) {
  const auto askew = [](const S* p) { return reinterpret_cast<uintptr_t>(p) % 64 != 0; };
  if (v.shape(1) % sgns::kBlock || v.shape(0) != u.shape(0) || v.shape(1) != u.shape(1) || z.shape(1) != v.shape(1) ||
      askew(v.data()) || askew(u.data())) {
    throw std::invalid_argument("v, u and z must have rows of the same multiple of 16; v and u must be aligned");
  }
  const sgns::Training<T, S> training{ids.data(),
                                      offsets.data(),
                                      offsets.shape(0) - 1,
                                      first_sentence,
                                      {seed,
                                       epoch,
                                       keep.data(),
                                       {threshold.data(), alias.data(), uint32_t(threshold.shape(0))},
                                       {image_ptr.data(), image_ids.data(), uint32_t(z.shape(0)), image_negative},
                                       window,
                                       negative,
                                       shrink_windows,
                                       sharing(negatives)},
                                      v.data(),
                                      u.data(),
                                      z.data(),
                                      lockf.data(),
                                      lockf.shape(0) == 1,
                                      int(v.shape(1)),
                                      objective_of(objective),
                                      T(image_weight),
                                      images_trained,
                                      alpha,
                                      min_alpha,
                                      done,
                                      first_token,
                                      total,
                                      loss == "exact"     ? sgns::LossKind::exact
                                      : loss == "sampled" ? sgns::LossKind::sampled
                                                          : sgns::LossKind::none,
                                      sgns::choose<T, false>(isa),
                                      stop.data(),
                                      progress.data()};
  sgns::Totals t;
  {
    const nb::gil_scoped_release released;
    if (deterministic) {
      t = sgns::Deterministic<T, S>(training, workers).run();
    } else {
      using Worker = std::conditional_t<std::is_same_v<T, S>, sgns::Worker<T>, sgns::CopyingWorker<T, S>>;
      t = sgns::train_epoch<Worker>(training, workers);
    }
  }
  const auto whole = [](double sum, uint64_t measured, uint64_t pairs) {
    return measured ? sum * double(pairs) / double(measured) : pairs ? std::numeric_limits<double>::quiet_NaN() : 0.;
  };
  return nb::make_tuple(whole(t.text_loss, t.text_measured, t.text_pairs),
                        whole(t.image_loss, t.image_measured, t.image_pairs), t.text_pairs, t.image_pairs, t.words,
                        t.raw);
}

}  // namespace

void bind_engine(nb::module_& m) {
  m.def("instruction_sets", sgns::instruction_sets);
  m.def("aligned", aligned, "rows"_a, "columns"_a, "dtype"_a = "float32");
  m.def("alias_build", alias_build, "p"_a.noconvert());
  m.def("draws", draws, "ids"_a.noconvert(), "keep"_a.noconvert(), "threshold"_a.noconvert(), "alias"_a.noconvert(),
        "image_ptr"_a.noconvert(), "image_ids"_a.noconvert(), "images"_a, nb::kw_only(), "window"_a, "negative"_a,
        "shrink_windows"_a, "negatives"_a, "image_negative"_a, "seed"_a, "epoch"_a, "sentence"_a);
  m.def("tile", tile<float>, "x"_a.noconvert(), "y"_a.noconvert(), "labels"_a.noconvert(), "alpha"_a, "isa"_a);
  m.def("tile", tile<double>, "x"_a.noconvert(), "y"_a.noconvert(), "labels"_a.noconvert(), "alpha"_a, "isa"_a);
  const auto train = [&m](auto* function) {
    m.def("train_epoch", function, "ids"_a.noconvert(), "offsets"_a.noconvert(), "keep"_a.noconvert(),
          "threshold"_a.noconvert(), "alias"_a.noconvert(), "v"_a.noconvert(), "u"_a.noconvert(), "lockf"_a.noconvert(),
          "image_ptr"_a.noconvert(), "image_ids"_a.noconvert(), "z"_a.noconvert(), "stop"_a.noconvert(),
          "progress"_a.noconvert(), nb::kw_only(), "window"_a, "negative"_a, "shrink_windows"_a, "negatives"_a,
          "objective"_a, "image_weight"_a, "image_negative"_a, "images_trained"_a, "alpha"_a, "min_alpha"_a, "done"_a,
          "first_token"_a, "total"_a, "seed"_a, "epoch"_a, "first_sentence"_a, "loss"_a, "workers"_a,
          "deterministic"_a = false, "isa"_a);
  };
  train(train_epoch<float, float>);
  train(train_epoch<double, double>);
  train(train_epoch<float, sgns::Bfloat16>);
}
