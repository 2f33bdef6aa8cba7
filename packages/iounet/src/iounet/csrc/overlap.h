#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "simd.h"

namespace iounet {

template <class T>
struct Box {
  T x1, y1, x2, y2;
  T area = (x2 - x1) * (y2 - y1);

  // Whether the IoU with any box can be above 0: not if the box is empty, inverted or not finite.
  bool active() const { return x2 > x1 && y2 > y1 && area > 0 && std::isfinite(area); }
};

// So many boxes that one test serves all of them. In a place that is free there is a box that overlaps nothing.
template <class T>
struct alignas(64) Block {
  static constexpr int kSize = 32;

  T x1[kSize], y1[kSize], x2[kSize], y2[kSize], area[kSize];

  Block() {
    for (int k = 0; k < kSize; ++k) clear(k);
  }
  void set(int k, const Box<T>& box) {
    x1[k] = box.x1, y1[k] = box.y1, x2[k] = box.x2, y2[k] = box.y2, area[k] = box.area;
  }
  void clear(int k) { x1[k] = y1[k] = 1, x2[k] = y2[k] = 0, area[k] = std::numeric_limits<T>::infinity(); }
  Box<T> operator[](int k) const { return {x1[k], y1[k], x2[k], y2[k], area[k]}; }
};

// The outer maximum changes nothing but keeps a compiler from fusing the product into the sum that subtracts it: the
// IoU has the same bits on every processor.
template <class T>
inline T intersection(const Block<T>& block, int k, const Box<T>& box) {
  const T low_x = block.x1[k] > box.x1 ? block.x1[k] : box.x1, high_x = block.x2[k] < box.x2 ? block.x2[k] : box.x2;
  const T low_y = block.y1[k] > box.y1 ? block.y1[k] : box.y1, high_y = block.y2[k] < box.y2 ? block.y2[k] : box.y2;
  const T width = high_x - low_x, product = (width > 0 ? width : 0) * (high_y - low_y);
  return product > 0 ? product : 0;
}

template <class T>
inline std::array<T, Block<T>::kSize> ious(const Block<T>& block, const Box<T>& box) {
  std::array<T, Block<T>::kSize> result;
  for (int k = 0; k < Block<T>::kSize; ++k) {
    const T inter = intersection(block, k, box);
    result[k] = inter / (block.area[k] + box.area - inter);
  }
  return result;
}

// Whether an IoU of type T is above a threshold in double, which is what torchvision asks.
template <class T>
class Threshold {
 public:
  explicit Threshold(double exact) : exact_(exact), highest_(T(exact)) {
    if (double(highest_) > exact) highest_ = std::nextafter(highest_, T(0));
    below_ = highest_ * (1 - 8 * std::numeric_limits<T>::epsilon());
  }

  double exact() const { return exact_; }
  bool exceeded_by(T iou) const { return iou > highest_; }

  // Without a division: surely true if the IoU of any of the boxes with that box is above, rarely if not.
  bool nearly_exceeded(const Block<T>& block, const Box<T>& box) const {
    constexpr T kTiny = std::numeric_limits<T>::denorm_min();
    int any = 0;
    for (int k = 0; k < Block<T>::kSize; ++k) {
      const T inter = intersection(block, k, box), least = below_ * (block.area[k] + box.area - inter);
      any |= inter >= (kTiny > least ? kTiny : least);
    }
    return any;
  }

 private:
  double exact_;
  T highest_;  // of type T that is not above
  T below_;
};

}  // namespace iounet
