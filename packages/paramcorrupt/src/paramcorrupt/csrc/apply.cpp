// Changes of weights in place, and the journals that undo the sparse ones.
#include <torch/csrc/stable/library.h>

#include "change.h"

namespace paramcorrupt {
namespace {

using torch::stable::detail::from;

// --- sparse ---------------------------------------------------------------------------------------------------------

constexpr int64_t kAhead = 24;      // entries whose weights are asked for in advance
constexpr int64_t kEntries = 4096;  // per task

// Calls visit(tensor, its type, its weights, first, last) for the entries that each tensor has among all.
template <class Visit>
void each_tensor(const TensorList& w, const Tensor& offsets, const Tensor& index, const Visit& visit) {
  STD_TORCH_CHECK(offsets.numel() == int64_t(w.size()) + 1, "there must be an offset more than tensors");
  const auto* starts = static_cast<const int64_t*>(offsets.const_data_ptr());
  STD_TORCH_CHECK(starts[0] == 0 && starts[w.size()] == index.numel(), "offsets do not fit the index");
  std::vector<std::pair<Type, void*>> data;
  for (size_t t = 0; t < w.size(); ++t) data.emplace_back(type_of(w[t]), get(torch_get_mutable_data_ptr, w[t]));
  torch::stable::parallel_for(0, index.numel(), kEntries, [&](int64_t first, int64_t last) {
    auto t = std::upper_bound(starts, starts + w.size() + 1, first) - starts - 1;
    for (; first < last; ++t) {
      const int64_t end = std::min(last, starts[t + 1]);
      if (first < end)
        with_type(data[t].first, [&]<class S>(S) { visit(static_cast<S*>(data[t].second), first, end); });
      first = std::max(first, end);
    }
  });
}

// Calls visit(weight, entry).
template <class S, class Visit>
void each_entry(S* weights, const int64_t* index, int64_t first, int64_t last, const Visit& visit) {
  int64_t i = first;
  for (; i + kAhead < last; ++i) {
    __builtin_prefetch(weights + index[i + kAhead], 1);
    visit(weights[index[i]], i);
  }
  for (; i < last; ++i) visit(weights[index[i]], i);
}

template <class Call>
void with_journal(int64_t bytes, const Call& call) {
  bytes == 2 ? call(int16_t()) : bytes == 4 ? call(int32_t()) : call(int64_t());
}

void boxed_apply_sparse_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList w(stack[0]);
  const auto offsets = argument<Tensor>(stack[1]), index = argument<Tensor>(stack[2]);
  const auto delta = argument<Tensor>(stack[3]);
  STD_TORCH_CHECK(delta.numel() == index.numel(), "a change for every index");
  int64_t bytes = w.size() ? 0 : 8;
  for (size_t t = 0; t < w.size(); ++t) bytes = std::max(bytes, bytes_of(type_of(w[t])));
  const int32_t dtype = bytes == 2   ? aoti_torch_dtype_int16()
                        : bytes == 4 ? aoti_torch_dtype_int32()
                                     : aoti_torch_dtype_int64();
  const Tensor journal = new_vector(index.numel(), dtype);
  const auto* places = static_cast<const int64_t*>(index.const_data_ptr());
  const auto* added = delta.const_data_ptr<double>();
  with_journal(bytes, [&]<class J>(J) {
    auto* old = static_cast<J*>(journal.mutable_data_ptr());
    each_tensor(w, offsets, index, [&]<class S>(S* weights, int64_t first, int64_t last) {
      each_entry(weights, places, first, last, [&](S& weight, int64_t i) {
        old[i] = J(std::bit_cast<Signed<S>>(weight));
        weight = sum_of(weight, added[i]);
      });
    });
  });
  stack[0] = from(journal);
}

void boxed_restore_sparse_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList w(stack[0]);
  const auto offsets = argument<Tensor>(stack[1]), index = argument<Tensor>(stack[2]);
  const auto journal = argument<Tensor>(stack[3]);
  STD_TORCH_CHECK(journal.numel() == index.numel(), "a journal has an entry for every index");
  const auto* places = static_cast<const int64_t*>(index.const_data_ptr());
  with_journal(journal.element_size(), [&]<class J>(J) {
    const auto* old = static_cast<const J*>(journal.const_data_ptr());
    each_tensor(w, offsets, index, [&]<class S>(S* weights, int64_t first, int64_t last) {
      each_entry(weights, places, first, last,
                 [&](S& weight, int64_t i) { weight = std::bit_cast<S>(Signed<S>(old[i])); });
    });
  });
}

// --- dense ----------------------------------------------------------------------------------------------------------

void boxed_apply_dense_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList w(stack[0]), base(stack[1]), g(stack[2]);
  const Change change(argument<double>(stack[3]), argument<double>(stack[4]));
  const double p = norm_of(change.power);
  const Plan<3> plan({&w, &base, &g});
  const bool past_caches = plan.bytes() >= kStreamed;
  std::vector<Moved> moved(plan.pieces());
  plan.run([&](const Job<3>& job, const Piece& piece) {
    STD_TORCH_CHECK(job.types[0] == job.types[1], "dtypes differ");
    with_type(job.types[0], [&]<class S>(S) {
      S* to = job.at<S>(0, piece.begin);
      const S* clean = job.at<const S>(1, piece.begin);
      Tile<double> a, distance;
      Tile<Signed<S>> sum;
      Moved& total = moved[piece.number];
      tiles(piece.size, [&](int64_t i, int n) {
        change(job.types[0], job.types[2], job.data[2], piece.begin + i, a, n);
        fetch(clean + i);
        total.changed += add_tile(clean + i, a.values, sum.values, distance.values, n);
        total.add<Arithmetic<S>>(distance.values, p, n);
        copy(sum.values, to + i, n * sizeof(S), past_caches && to != clean);
      });
    });
    if (past_caches) finish_stream();
  });
  stack[0] = from(summary_of(moved, p));
}

}  // namespace
}  // namespace paramcorrupt

STABLE_TORCH_LIBRARY_IMPL(paramcorrupt, CPU, m) {
  m.impl("apply_sparse_", paramcorrupt::boxed_apply_sparse_);
  m.impl("restore_sparse_", paramcorrupt::boxed_restore_sparse_);
  m.impl("apply_dense_", paramcorrupt::boxed_apply_dense_);
}
