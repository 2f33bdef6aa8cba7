#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "arguments.h"

// How the elements of lists of tensors are shared out among threads.
namespace paramcorrupt {

inline constexpr int64_t kPiece = 32768;  // elements, at most

// The tensors at one place of N lists.
template <size_t N>
struct Job {
  std::array<void*, N> data;
  std::array<Type, N> types;
  int64_t size, start, first_piece;  // `start`: in the concatenation of all tensors

  template <class S>
  S* at(size_t list, int64_t begin) const {
    return static_cast<S*>(data[list]) + begin;
  }
};

// Consecutive elements of one tensor. They depend on the sizes of the tensors alone.
struct Piece {
  int64_t begin, size, number;
};

template <size_t N>
class Plan {
 public:
  // The first list, or as many as `written` says, are written.
  explicit Plan(const std::array<const TensorList*, N>& lists, size_t written = 1) : jobs_(lists[0]->size()) {
    for (const TensorList* list : lists) STD_TORCH_CHECK(list->size() == jobs_.size(), "lists differ in length");
    for (size_t k = 0; k < jobs_.size(); ++k) {
      Job<N>& job = jobs_[k];
      job.size = get(aoti_torch_get_numel, (*lists[0])[k]);
      job.start = size_;
      job.first_piece = pieces_;
      for (size_t i = 0; i < N; ++i) {
        const AtenTensorHandle x = (*lists[i])[k];
        STD_TORCH_CHECK(get(aoti_torch_get_numel, x) == job.size, "sizes differ");
        job.types[i] = type_of(x);
        job.data[i] =
            i < written ? get(torch_get_mutable_data_ptr, x) : const_cast<void*>(get(torch_get_const_data_ptr, x));
      }
      size_ += job.size;
      pieces_ += (job.size + kPiece - 1) / kPiece;
      bytes_ += job.size * bytes_of(job.types[0]);
    }
  }

  const std::vector<Job<N>>& jobs() const { return jobs_; }
  int64_t pieces() const { return pieces_; }
  int64_t bytes() const { return bytes_; }  // of the first list

  // Calls visit(job, piece) for every piece. A thread visits those that start in its part of all elements.
  template <class Visit>
  void run(const Visit& visit) const {
    const auto starts_after = [](int64_t element, const Job<N>& job) { return element < job.start; };
    torch::stable::parallel_for(0, size_, kGrain, [&](int64_t first, int64_t last) {
      auto job = std::upper_bound(jobs_.begin(), jobs_.end(), first, starts_after) - 1;
      for (; job != jobs_.end() && job->start < last; ++job) {
        int64_t i = (std::max<int64_t>(first - job->start, 0) + kPiece - 1) / kPiece;
        for (; i * kPiece < std::min(job->size, last - job->start); ++i)
          visit(*job, Piece{i * kPiece, std::min(kPiece, job->size - i * kPiece), job->first_piece + i});
      }
    });
  }

 private:
  std::vector<Job<N>> jobs_;
  int64_t size_ = 0, pieces_ = 0, bytes_ = 0;
};

}  // namespace paramcorrupt
