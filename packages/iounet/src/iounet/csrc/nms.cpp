// Non-maximum suppression that tells who removed whom.
#include <torch/csrc/stable/library.h>

#include <array>
#include <numeric>

#include "boxes.h"

namespace iounet {
namespace {

constexpr int32_t kNone = std::numeric_limits<int32_t>::max();

// Some of the kept boxes, in any order, each with its number.
template <class T>
struct Leaf {
  Block<T> block;
  int32_t numbers[Block<T>::kSize];
  int count = 0;

  void add(const Box<T>& box, int32_t number) {
    block.set(count, box);
    numbers[count++] = number;
  }
};

// The kept boxes, in leaves that divide the range of x1. A full leaf becomes two.
template <class T>
struct Leaves {
  static constexpr int kSize = Block<T>::kSize;

  std::vector<Leaf<T>> leaves;
  std::vector<int32_t> order;  // of the leaves by x1
  std::vector<T> lows;         // in that order: no x1 in a leaf is below its low, or above the low of the next
  double widest = 0;

  void clear() {
    leaves.assign(1, {});
    order.assign(1, 0);
    lows.assign(1, -std::numeric_limits<T>::infinity());
    widest = 0;
  }

  void keep(const Box<T>& box, int32_t number) {
    widest = std::max(widest, double(box.x2 - box.x1));
    size_t at = std::upper_bound(lows.begin(), lows.end(), box.x1) - lows.begin() - 1;
    if (leaves[order[at]].count == kSize) {
      split(at);
      at += box.x1 >= lows[at + 1];
    }
    leaves[order[at]].add(box, number);
  }

 private:
  void split(size_t at) {
    const Leaf<T> full = std::exchange(leaves[order[at]], {});
    const auto new_leaf = int32_t(leaves.size());
    Leaf<T>& upper = leaves.emplace_back();
    Leaf<T>& lower = leaves[order[at]];
    std::array<int, kSize> places;
    std::iota(places.begin(), places.end(), 0);
    const auto less = [&](int i, int j) { return full.block.x1[i] < full.block.x1[j]; };
    std::nth_element(places.begin(), places.begin() + kSize / 2, places.end(), less);
    for (int i = 0; i < kSize; ++i) (i < kSize / 2 ? lower : upper).add(full.block[places[i]], full.numbers[places[i]]);
    order.insert(order.begin() + at + 1, new_leaf);
    lows.insert(lows.begin() + at + 1, full.block.x1[places[kSize / 2]]);
  }
};

// The least number of the kept boxes that remove the box, of those whose x1 is between the bounds.
template <class T>
CLONES int32_t first_above(const Leaves<T>& kept, double from, double to, const Box<T>& box,
                           const Threshold<T>& threshold) {
  const size_t start = std::lower_bound(kept.lows.begin(), kept.lows.end(), from) - kept.lows.begin();
  int32_t first = kNone;
  for (size_t at = start ? start - 1 : 0; at < kept.lows.size() && kept.lows[at] <= to; ++at) {
    const Leaf<T>& leaf = kept.leaves[kept.order[at]];
    if (!threshold.nearly_exceeded(leaf.block, box)) continue;
    const auto iou = ious(leaf.block, box);
    for (int k = 0; k < Block<T>::kSize; ++k)
      if (threshold.exceeded_by(iou[k])) first = std::min(first, leaf.numbers[k]);
  }
  return first;
}

// Writes the owners of a group of boxes that may remove each other, and of the next group.
template <class T>
class Suppression {
 public:
  Suppression(const Reader<T>& boxes, const Threshold<T>& threshold, int64_t* owner)
      : boxes_(boxes), threshold_(threshold), owner_(owner) {}

  // `rows` are in the order in which boxes are kept or removed.
  void operator()(const int32_t* rows, int64_t n) {
    kept_.clear();
    for (int64_t i = 0; i < n; ++i) {
      const Box<T> box = boxes_.box(rows[i]);
      const int32_t first = box.active() ? find(box) : kNone;
      owner_[rows[i]] = first == kNone ? rows[i] : rows[first];
      if (first == kNone && box.active()) kept_.keep(box, int32_t(i));
    }
  }

 private:
  // IoU > t asks of the common width to be above t times either width: that bounds the x1 of a box that can remove
  // this one, whatever the sizes of the others. The margins are for rounding.
  int32_t find(const Box<T>& box) const {
    constexpr double kMargin = 1e-5;
    const double t = threshold_.exact(), width = box.x2 - box.x1;
    const double from = box.x1 - (t > 0 ? std::min(width / t, kept_.widest) : kept_.widest) * (1 - t + kMargin);
    const double to = box.x2 - t * width * (1 - kMargin);
    return first_above(kept_, from, to, box, threshold_);
  }

  const Reader<T>& boxes_;
  const Threshold<T>& threshold_;
  int64_t* owner_;
  Leaves<T> kept_;
};

Tensor nms_owner(Tensor boxes, Tensor key, std::optional<Tensor> labels, double thr) {
  check(boxes, key, labels);
  const int64_t n = boxes.size(0);
  const Tensor result = torch::stable::new_empty(boxes, {n}, ScalarType::Long);
  int64_t* owner = result.mutable_data_ptr<int64_t>();

  std::vector<int32_t> order;
  with_accuracy(is_double(key), [&]<class K>(K) {
    const Tensor values = as<K>(key);
    order = by_decreasing(Reader<K>(values), n);
  });
  const Groups groups(std::move(order), labels);
  with_accuracy(is_double(boxes), [&]<class T>(T) {
    const Tensor coordinates = as<T>(boxes);
    const Reader<T> reader(coordinates);
    const Threshold<T> threshold(thr);
    groups.for_each([&] { return Suppression<T>(reader, threshold, owner); });
  });
  return result;
}

}  // namespace
}  // namespace iounet

STABLE_TORCH_LIBRARY_IMPL(iounet, CPU, m) { m.impl("nms_owner", TORCH_BOX(&iounet::nms_owner)); }
