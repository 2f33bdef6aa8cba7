#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <numeric>
#include <tuple>
#include <vector>

#include "axis.h"

// The boxes of a call, turned into tables of weights.
namespace iounet {

using torch::stable::Tensor;

struct Options {
  double scale;
  bool border, aligned, limit;
};

enum class By { kBin, kPixel };

// What a bin takes from pixels, or what a pixel gives to bins: those from `start` on, and their weights.
template <class T>
struct Line {
  int32_t start, count;
  const T* weights;
};

// The derivatives of a weight by the two edges of the box.
struct Slope {
  double low, high;
};

template <class T>
class Table {
 public:
  // With a `scale`, from box to map, slopes are kept too; of an inverted box they all belong to its first edge.
  void set(const Axis& axis, By by, double scale, bool inverted) {
    first = axis.first;
    pixels = int32_t(axis.stop - axis.first);
    const auto bins = int32_t(axis.bins.size());
    lines.reserve(size_t(by == By::kBin ? bins : pixels));
    weights_.reserve(axis.shares.size());
    slopes.reserve(scale == 0 ? 0 : axis.shares.size());
    const auto append = [&](int32_t k, const Share& share) {
      weights_.push_back(T(share.weight));
      if (scale == 0) return;
      const double low = share.low * scale, high = share.high * scale, all = low + high;
      const double right = (low * k + high * (k + 1)) / bins;
      slopes.push_back({inverted ? all : all - right, inverted ? 0 : right});
    };
    if (by == By::kBin) {
      for (int32_t k = 0; k < bins; ++k) {
        const Bin& bin = axis.bins[size_t(k)];
        lines.push_back({int32_t(bin.start - first), int32_t(bin.count), weights_.data() + weights_.size()});
        for (int64_t i = 0; i < bin.count; ++i) append(k, axis.shares[bin.offset + size_t(i)]);
      }
      return;
    }
    // Bins begin and end in their order, so that those of a pixel adjoin.
    int32_t begin = 0;
    const auto bin = [&](int32_t k) -> const Bin& { return axis.bins[size_t(k)]; };
    for (int64_t pixel = axis.first; pixel < axis.stop; ++pixel) {
      while (bin(begin).start + bin(begin).count <= pixel) ++begin;
      Line<T> line{begin, 0, weights_.data() + weights_.size()};
      for (int32_t k = begin; k < bins && bin(k).count && bin(k).start <= pixel; ++k, ++line.count)
        append(k, axis.shares[bin(k).offset + size_t(pixel - bin(k).start)]);
      lines.push_back(line);
    }
  }

  int64_t first = 0;
  int32_t pixels = 0;
  std::vector<Line<T>> lines;  // pixels are counted from `first`
  std::vector<Slope> slopes;   // of all weights, line by line

 private:
  std::vector<T> weights_;
};

template <class T>
struct Roi {
  int64_t image = -1;  // -1 if there is no such image or a coordinate is not finite
  Table<T> x, y;       // without pixels where the box is empty or off the map
};

struct Shape {
  int64_t images, height, width, ph, pw;
};

// Makes the tables: rows of the map by pixel, columns as told.
template <class T>
class Maker {
 public:
  Maker(const Shape& shape, By by, bool slopes, const Options& options)
      : shape_(shape),
        by_(by),
        slopes_(slopes),
        options_(options),
        x_(shape.width, options.border),
        y_(shape.height, options.border) {}

  void set(Roi<T>& roi, const std::array<double, 5>& box) {
    const auto [image, x1, y1, x2, y2] = box;
    for (double number : box)
      if (!std::isfinite(number)) return;
    if (!(image >= 0 && image < double(shape_.images) && image == std::floor(image))) return;
    roi.image = int64_t(image);
    if (!options_.limit && (x2 <= x1 || y2 <= y1)) return;
    x_.set(edge(x1), edge(std::max(x1, x2)), shape_.pw);
    y_.set(edge(y1), edge(std::max(y1, y2)), shape_.ph);
    if (x_.first == x_.stop || y_.first == y_.stop) return;
    const double scale = slopes_ ? options_.scale : 0;
    roi.x.set(x_, by_, scale, x2 < x1);
    roi.y.set(y_, By::kPixel, scale, y2 < y1);
  }

 private:
  double edge(double x) const {
    constexpr double kFar = 1e100;  // beyond it the width of a box would overflow
    return std::clamp(x * options_.scale - (options_.aligned ? 0.5 : 0), -kFar, kFar);
  }

  const Shape& shape_;
  const By by_;
  const bool slopes_;
  const Options& options_;
  Axis x_, y_;
};

template <class T>
std::vector<Roi<T>> make_rois(const Tensor& boxes, const Shape& shape, By by, bool slopes, const Options& options) {
  std::vector<Roi<T>> rois(size_t(boxes.size(0)));
  const bool is_double = boxes.scalar_type() == torch::headeronly::ScalarType::Double;
  const void* data = boxes.const_data_ptr();
  torch::stable::parallel_for(0, int64_t(rois.size()), 64, [&](int64_t begin, int64_t end) {
    Maker<T> maker(shape, by, slopes, options);
    std::array<double, 5> box;
    for (int64_t k = begin; k < end; ++k) {
      if (is_double)
        std::copy_n(static_cast<const double*>(data) + 5 * k, 5, box.begin());
      else
        std::copy_n(static_cast<const float*>(data) + 5 * k, 5, box.begin());
      maker.set(rois[size_t(k)], box);
    }
  });
  return rois;
}

template <class T>
int64_t widest_box(const std::vector<Roi<T>>& rois) {
  int32_t pixels = 0;
  for (const Roi<T>& roi : rois) pixels = std::max(pixels, roi.x.pixels);
  return pixels;
}

// The boxes in an order in which those that follow each other read much of the same memory.
template <class T>
std::vector<int32_t> near_to_near(const std::vector<Roi<T>>& rois) {
  std::vector<int32_t> order(rois.size());
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](int32_t k) {
    const Roi<T>& roi = rois[size_t(k)];
    return std::tuple(roi.image, roi.y.first / 8, roi.x.first);
  };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
  return order;
}

}  // namespace iounet
