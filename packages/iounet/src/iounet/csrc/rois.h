#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

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
    const auto bins = int32_t(axis.spans.size());
    weights_.reserve(axis.weight.size());
    const auto append = [&](int32_t bin, size_t entry) {
      weights_.push_back(T(axis.weight[entry]));
      if (scale == 0) return;
      const double low = axis.low[entry] * scale, high = axis.high[entry] * scale;
      const double right = (low * bin + high * (bin + 1)) / bins, all = low + high;
      slopes.push_back({inverted ? all : all - right, inverted ? 0 : right});
    };
    if (by == By::kBin) {
      for (int32_t k = 0; k < bins; ++k) {
        const Span& span = axis.spans[size_t(k)];
        lines.push_back({int32_t(span.start - first), int32_t(span.count), weights_.data() + weights_.size()});
        for (size_t i = 0; i < size_t(span.count); ++i) append(k, span.offset + i);
      }
      return;
    }
    for (int64_t pixel = axis.first; pixel < axis.stop; ++pixel) {
      Line<T> line{0, 0, weights_.data() + weights_.size()};
      for (int32_t k = 0; k < bins; ++k) {
        const Span& span = axis.spans[size_t(k)];
        if (pixel < span.start || pixel >= span.start + span.count) continue;
        if (line.count++ == 0) line.start = k;  // bins begin and end in their order, so that those of a pixel adjoin
        append(k, span.offset + size_t(pixel - span.start));
      }
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

template <class T, class S>
void set_roi(Roi<T>& roi, const S* box, const Shape& shape, By by, bool slopes, const Options& options) {
  const double offset = options.aligned ? 0.5 : 0, image = double(box[0]);
  double edges[4];
  for (int i = 0; i < 4; ++i) edges[i] = double(box[i + 1]) * options.scale - offset;
  auto [x1, y1, x2, y2] = edges;
  if (!std::isfinite(x2 - x1) || !std::isfinite(y2 - y1)) return;
  if (!(image >= 0 && image < double(shape.images) && image == std::floor(image))) return;
  roi.image = int64_t(image);
  if (!options.limit && (x2 <= x1 || y2 <= y1)) return;
  const double scale = slopes ? options.scale : 0;
  Axis x(shape.width, options.border), y(shape.height, options.border);
  x.set(x1, std::max(x1, x2), shape.pw);
  y.set(y1, std::max(y1, y2), shape.ph);
  if (x.first == x.stop || y.first == y.stop) return;
  roi.x.set(x, by, scale, x2 < x1);
  roi.y.set(y, By::kPixel, scale, y2 < y1);
}

// Rows of y are listed by pixel, those of x as told.
template <class T>
std::vector<Roi<T>> make_rois(const Tensor& boxes, const Shape& shape, By by, bool slopes, const Options& options) {
  std::vector<Roi<T>> rois(size_t(boxes.size(0)));
  const bool is_double = boxes.scalar_type() == torch::headeronly::ScalarType::Double;
  const void* data = boxes.const_data_ptr();
  torch::stable::parallel_for(0, int64_t(rois.size()), 64, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      Roi<T>& roi = rois[size_t(k)];
      if (is_double)
        set_roi(roi, static_cast<const double*>(data) + 5 * k, shape, by, slopes, options);
      else
        set_roi(roi, static_cast<const float*>(data) + 5 * k, shape, by, slopes, options);
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
    return std::tuple(roi.image, roi.y.first / 16, roi.x.first);
  };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
  return order;
}

}  // namespace iounet
