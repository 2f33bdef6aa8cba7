#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "arguments.h"
#include "lists.h"

// How the elements of lists of tensors are shared out among threads.
namespace gasam {

inline constexpr int64_t kPiece = 32768;  // elements, at most

// The tensors at one place of N lists. The first of them tells their type and size.
template <size_t N>
struct Job {
  std::array<void*, N> data;
  Type type;
  int64_t index, size, start;                     // in the concatenation of all tensors
  int64_t rows, first_unit, first_piece, pieces;  // pieces of each unit

  template <class S>
  S* at(size_t list, int64_t begin) const {
    return static_cast<S*>(data[list]) + begin;
  }
};

// Consecutive elements of one unit of a tensor. They depend on the sizes of the tensors alone.
struct Piece {
  int64_t begin, size, unit, number;
};

// Which lists are written, which hold numbers of the type of the arithmetic, and which may be empty: a bit for each.
struct Lists {
  unsigned written = 0, wide = 0, optional = 0;
};

template <size_t N>
class Plan {
 public:
  Plan(const std::array<const TensorList*, N>& lists, const std::vector<int64_t>* rows, Lists kinds)
      : jobs_(lists[0]->size()) {
    STD_TORCH_CHECK(!rows || rows->size() == jobs_.size(), "lists differ in length");
    for (size_t k = 0; k < jobs_.size(); ++k) {
      Job<N>& job = jobs_[k];
      job.type = type_of((*lists[0])[k]);
      job.index = int64_t(k);
      job.size = get(aoti_torch_get_numel, (*lists[0])[k]);
      job.start = size_;
      job.rows = rows ? (*rows)[k] : 1;
      job.first_unit = units_;
      STD_TORCH_CHECK(job.rows > 0 && job.size % job.rows == 0, "rows must divide a tensor");
      job.pieces = (job.size / job.rows + kPiece - 1) / kPiece;
      job.first_piece = pieces_;
      size_ += job.size;
      units_ += job.rows;
      pieces_ += job.rows * job.pieces;
      bytes_ += job.size * bytes_of(job.type);
      for (size_t i = 0; i < N; ++i) job.data[i] = pointer(lists[i], k, kinds, i);
    }
  }

  const std::vector<Job<N>>& jobs() const { return jobs_; }
  int64_t units() const { return units_; }
  int64_t pieces() const { return pieces_; }
  int64_t bytes() const { return bytes_; }  // of the first list

  // Calls visit(job, piece) for every piece. A thread visits those that start in its part of all elements.
  template <class Visit>
  void run(const Visit& visit) const {
    const auto starts_after = [](int64_t element, const Job<N>& job) { return element < job.start; };
    torch::stable::parallel_for(0, size_, kGrain, [&](int64_t first, int64_t last) {
      auto job = std::upper_bound(jobs_.begin(), jobs_.end(), first, starts_after) - 1;
      for (; job != jobs_.end() && job->start < last; ++job) {
        if (job->size == 0) continue;
        const int64_t unit = job->size / job->rows, skipped = std::max<int64_t>(first - job->start, 0);
        int64_t row = skipped / unit, i = (skipped % unit + kPiece - 1) / kPiece;
        for (; row < job->rows; ++row, i = 0) {
          for (; i < job->pieces; ++i) {
            const int64_t begin = row * unit + i * kPiece;
            if (job->start + begin >= last) return;
            visit(*job, Piece{.begin = begin,
                              .size = std::min(kPiece, unit - i * kPiece),
                              .unit = job->first_unit + row,
                              .number = job->first_piece + row * job->pieces + i});
          }
        }
      }
    });
  }

 private:
  void* pointer(const TensorList* list, size_t k, Lists kinds, size_t i) const {
    if (!list->size() && kinds.optional >> i & 1) return nullptr;
    STD_TORCH_CHECK(list->size() == jobs_.size(), "lists differ in length");
    const AtenTensorHandle x = (*list)[k];
    const Type own = jobs_[k].type, wide = own == Type::kDouble ? Type::kDouble : Type::kFloat;
    STD_TORCH_CHECK(get(aoti_torch_get_numel, x) == jobs_[k].size, "sizes differ");
    STD_TORCH_CHECK(type_of(x) == (kinds.wide >> i & 1 ? wide : own), "dtypes differ");
    return kinds.written >> i & 1 ? get(torch_get_mutable_data_ptr, x)
                                  : const_cast<void*>(get(torch_get_const_data_ptr, x));
  }

  std::vector<Job<N>> jobs_;
  int64_t size_ = 0, units_ = 0, pieces_ = 0, bytes_ = 0;
};

}  // namespace gasam
