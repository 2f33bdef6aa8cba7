#include <string>

#include "bind.h"
#include "trainer.h"

using namespace nb::literals;

namespace {

template <class T>
using Array2 = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
std::vector<T> copy(const Array1<T>& values) {
  return {values.data(), values.data() + values.size()};
}

void set(cws::Trainer& trainer, int component, Array1<uint64_t> keys, Array2<float> weights, Array1<float> transition) {
  if (weights.shape(0) != keys.size() || weights.shape(1) != 4 || transition.size() != 16) {
    throw std::invalid_argument("keys, weights and transition do not fit");
  }
  trainer.set(component, copy(keys), weights.data(), transition.data());
}

void load(cws::Trainer& trainer, Array1<uint16_t> symbols, Array1<int64_t> splits, nb::list marks,
          Array1<uint8_t> allowed, Array1<uint8_t> domains, float rate) {
  cws::Corpus corpus{copy(symbols), copy(splits), {}, copy(allowed), copy(domains)};
  for (nb::handle of : marks) corpus.marks.push_back(copy(nb::cast<Array1<uint8_t>>(of)));
  nb::gil_scoped_release release;
  trainer.load(std::move(corpus), rate);
}

double epoch(cws::Trainer& trainer, Array1<int32_t> order, uint64_t seed, float upper, float lower, float l2,
             float transition, float domain_dropout, float feature_dropout, bool shared, int updates, int shards,
             int threads) {
  const std::vector<int32_t> sentences = copy(order);
  nb::gil_scoped_release release;
  return trainer.epoch(
      {upper, lower, l2, transition, domain_dropout, feature_dropout, shared, updates, shards, threads}, sentences,
      seed);
}

nb::object keys(const cws::Trainer& trainer) { return to_numpy(std::vector<uint64_t>(trainer.keys())); }

// Weights of all features, four to a feature; NaN where the component has none.
nb::object weights(const cws::Trainer& trainer, int component) {
  std::vector<float> out(trainer.keys().size() * 4, std::numeric_limits<float>::quiet_NaN());
  for (size_t id = 0; id < trainer.keys().size(); ++id) {
    if (const cws::Tags* w = trainer.weights(uint32_t(id), component)) std::memcpy(&out[4 * id], w, sizeof *w);
  }
  return to_numpy(std::move(out));
}

nb::object transition(const cws::Trainer& trainer, int component) {
  const float* t = trainer.transition(component);
  return to_numpy(std::vector<float>(t, t + 16));
}

}  // namespace

void bind_training(nb::module_& m) {
  nb::class_<cws::Trainer>(m, "Trainer")
      .def(nb::init<int, int>(), "lexicons"_a, "domains"_a)
      .def("set", set, "component"_a, "keys"_a.noconvert(), "weights"_a.noconvert(), "transition"_a.noconvert())
      .def("load", load, "symbols"_a.noconvert(), "splits"_a.noconvert(), "marks"_a, "allowed"_a.noconvert(),
           "domains"_a.noconvert(), "rate"_a)
      .def("epoch", epoch, "order"_a.noconvert(), "seed"_a, "upper"_a, "lower"_a, "l2"_a, "transition"_a,
           "domain_dropout"_a, "feature_dropout"_a, "shared"_a, "updates"_a, "shards"_a, "threads"_a)
      .def_prop_ro("keys", keys)
      .def("weights", weights, "component"_a)
      .def("transition", transition, "component"_a);
}
