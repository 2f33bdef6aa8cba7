// Soft-NMS: boxes are not removed by those that overlap them, but lose score.
#include <torch/csrc/stable/library.h>

#include <numeric>

#include "boxes.h"

namespace iounet {
namespace {

enum Method : int64_t { kLinear, kGaussian };

template <class T>
struct Decay {
  Threshold<T> threshold;
  Method method;
  T sigma;

  T factor(T iou) const { return method == kLinear ? 1 - iou : std::exp(-(iou * iou) / sigma); }
};

// The first block at or after b in which a box may be concerned.
template <class T>
CLONES size_t next_concerned(const Block<T>* blocks, size_t b, size_t end, const Box<T>& box,
                             const Threshold<T>& threshold) {
  while (b < end && !threshold.nearly_exceeded(blocks[b], box)) ++b;
  return b;
}

template <class T>
CLONES void find_ious(const Block<T>& block, const Box<T>& box, std::array<T, Block<T>::kSize>& result) {
  result = ious(block, box);
}

// Writes the scores of a group of boxes that lower each other's, and of the next group.
template <class T>
class Softening {
 public:
  Softening(const Reader<T>& boxes, const Reader<T>& scores, const Decay<T>& decay, T min_score, T* result)
      : read_box_(boxes), read_score_(scores), decay_(decay), min_score_(min_score), result_(result) {}

  // Of boxes that fall below `min_score` nothing is written.
  void operator()(const int32_t* rows, int64_t n) {
    load(rows, n);
    for (int64_t left = n; left; --left) {
      const size_t b = std::min_element(best_.begin(), best_.end()) - best_.begin();
      const size_t i = std::find(&ranks_[b * kSize], &ranks_[b * kSize] + kSize, best_[b]) - ranks_.data();
      if (scores_[i] < min_score_) return;
      result_[rows[i]] = scores_[i];
      const Box<T> box = blocks_[b][i % kSize];
      blocks_[b].clear(i % kSize);
      ranks_[i] = kTaken;
      find_best(b);
      if (box.active()) lower_others(box);
    }
  }

 private:
  static constexpr size_t kSize = Block<T>::kSize;
  static constexpr Bits<T> kTaken = ~Bits<T>(0);  // no number has this rank

  void load(const int32_t* rows, int64_t n) {
    const size_t blocks = (n + kSize - 1) / kSize;
    blocks_.assign(blocks, {});
    ranks_.assign(blocks * kSize, kTaken);
    scores_.resize(n);
    best_.resize(blocks);
    for (int64_t i = 0; i < n; ++i) {
      const Box<T> box = read_box_.box(rows[i]);
      if (box.active()) blocks_[i / kSize].set(i % kSize, box);
      scores_[i] = read_score_(rows[i]);
      ranks_[i] = descending(scores_[i]);
    }
    for (size_t b = 0; b < blocks; ++b) find_best(b);
  }

  void find_best(size_t b) { best_[b] = *std::min_element(&ranks_[b * kSize], &ranks_[b * kSize] + kSize); }

  void lower_others(const Box<T>& box) {
    const size_t end = blocks_.size();
    std::array<T, kSize> iou;
    for (size_t b = 0; (b = next_concerned(blocks_.data(), b, end, box, decay_.threshold)) < end; ++b) {
      find_ious(blocks_[b], box, iou);
      for (size_t k = 0; k < kSize; ++k) {
        if (!decay_.threshold.exceeded_by(iou[k])) continue;
        T& score = scores_[b * kSize + k];
        score *= decay_.factor(iou[k]);
        ranks_[b * kSize + k] = descending(score);
      }
      find_best(b);
    }
  }

  const Reader<T>&read_box_, &read_score_;
  const Decay<T>& decay_;
  const T min_score_;
  T* result_;
  std::vector<Block<T>> blocks_;
  std::vector<T> scores_;
  std::vector<Bits<T>> ranks_, best_;  // ranks ascend as scores descend; the best of each block
};

std::tuple<Tensor, Tensor> soft_nms_order(Tensor boxes, Tensor scores, std::optional<Tensor> labels, double thr,
                                          double sigma, double min_score, int64_t method) {
  check(boxes, scores, labels);
  STD_TORCH_CHECK(method == kLinear || method == kGaussian, "unknown method");
  const int64_t n = boxes.size(0);
  std::vector<int32_t> rows(n);
  std::iota(rows.begin(), rows.end(), 0);
  const Groups groups(std::move(rows), labels);
  const Tensor order = torch::stable::new_empty(boxes, {n}, ScalarType::Long);
  Tensor sorted;
  with_accuracy(is_double(boxes) || is_double(scores), [&]<class T>(T) {
    const Tensor coordinates = as<T>(boxes), start = as<T>(scores);
    const Reader<T> box(coordinates), score(start);
    const Decay<T> decay{Threshold<T>(method == kLinear ? thr : 0), Method(method), T(sigma)};
    const Tensor kept = torch::stable::new_empty(start, {n});
    std::fill_n(kept.mutable_data_ptr<T>(), n, -std::numeric_limits<T>::infinity());
    groups.for_each([&] { return Softening<T>(box, score, decay, T(min_score), kept.mutable_data_ptr<T>()); });
    sorted = torch::stable::new_empty(start, {n});
    const Reader<T> final(kept);
    const std::vector<int32_t> rows = by_decreasing(final, n);
    for (int64_t i = 0; i < n; ++i) {
      order.mutable_data_ptr<int64_t>()[i] = rows[i];
      sorted.mutable_data_ptr<T>()[i] = final(rows[i]);
    }
  });
  return {order, as(sorted, scores.scalar_type())};
}

}  // namespace
}  // namespace iounet

STABLE_TORCH_LIBRARY_IMPL(iounet, CPU, m) { m.impl("soft_nms_order", TORCH_BOX(&iounet::soft_nms_order)); }
