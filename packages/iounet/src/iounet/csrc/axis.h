#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

// The bins of one axis of one box, in map units and float64.
namespace iounet {

struct Span {
  int64_t start = 0, count = 0;  // pixels
  size_t offset = 0;             // of the first one's entries
};

class Axis {
 public:
  Axis(int64_t size, bool border) : size_(size), last_(double(size - 1)), border_(border) {}

  // Equal bins between two edges; `point`: all of them are the point a.
  void set(double a, double b, int64_t bins) {
    spans.clear();
    for (auto* table : {&weight, &low, &high}) table->clear();
    double from = a;
    for (int64_t k = 0; k < bins; ++k) {
      const double to = a + (b - a) * double(k + 1) / double(bins);
      if (to > from)
        add_mean(from, to);
      else
        add_point(from);
      from = to;
    }
    first = size_;
    stop = 0;
    for (const Span& span : spans) {
      if (span.count == 0) continue;
      first = std::min(first, span.start);
      stop = std::max(stop, span.start + span.count);
    }
    first = std::min(first, stop);
  }

  std::vector<Span> spans;                // one per bin
  std::vector<double> weight, low, high;  // of each pixel of each bin: its weight and that by the bin's two edges
  int64_t first = 0, stop = 0;            // the pixels of all bins

 private:
  double* add(int64_t start, int64_t count) {
    start = std::clamp<int64_t>(start, 0, size_);
    count = std::max<int64_t>(count, 0);
    const size_t offset = weight.size();
    spans.push_back({start, count, offset});
    for (auto* table : {&weight, &low, &high}) table->resize(offset + size_t(count));
    return weight.data() + offset;
  }

  // The mean of the map over [from, to]. Beyond the outermost pixels it is 0 one pixel further, or with a border
  // constant.
  void add_mean(double from, double to) {
    const double width = to - from, begin = border_ ? 0 : -1, end = border_ ? last_ : last_ + 1;
    const double u = std::clamp(from, begin, end), v = std::clamp(to, begin, end);
    const int64_t cell = int64_t(std::floor(u)), cells = int64_t(std::ceil(v)) - cell;
    const int64_t start = std::max<int64_t>(cell, 0), pixels = std::min(cell + cells + 1, size_) - start;
    if (u == v && !border_) {
      add(start, 0);
      return;
    }
    double* w = add(start, pixels);
    for (int64_t c = cell; c < cell + cells; ++c) {
      const double near = std::max(u, double(c)) - double(c), far = std::min(v, double(c + 1)) - double(c);
      const double share = (far - near) / width, middle = (near + far) / 2;
      if (c >= start) w[c - start] += share * (1 - middle);
      if (c + 1 < start + pixels) w[c + 1 - start] += share * middle;
    }
    if (border_) {
      w[0] += std::max(std::min(to, 0.0) - from, 0.0) / width;
      w[pixels - 1] += std::max(to - std::max(from, last_), 0.0) / width;
    }
    const size_t offset = spans.back().offset;
    if (to <= std::floor(from) + 1) {
      add_slope(std::floor(from));
    } else {
      for (int64_t i = 0; i < pixels; ++i) {
        low[offset + i] = (w[i] - hat(from, start + i)) / width;
        high[offset + i] = (hat(to, start + i) - w[i]) / width;
      }
    }
  }

  // The map at a point, with the slope of the cell on its right.
  void add_point(double at) {
    const bool outside = !(at >= -1 && at < last_ + 1);
    if (outside && !border_) {
      add(0, 0);
      return;
    }
    const int64_t cell = int64_t(std::floor(border_ ? std::clamp(at, 0.0, last_) : at));
    const int64_t start = std::max<int64_t>(cell, 0), pixels = std::min(cell + 2, size_) - start;
    double* w = add(start, pixels);
    for (int64_t i = 0; i < pixels; ++i) w[i] = hat(at, start + i);
    add_slope(std::floor(at));
  }

  // Within one cell the mean moves with either edge by half the slope of the map.
  void add_slope(double cell) {
    if (border_ && !(cell >= 0 && cell < last_)) return;
    const Span& span = spans.back();
    for (auto [pixel, slope] : {std::pair{cell, -0.5}, {cell + 1, 0.5}}) {
      const double i = pixel - double(span.start);
      if (i >= 0 && i < double(span.count)) low[span.offset + size_t(i)] = high[span.offset + size_t(i)] = slope;
    }
  }

  double hat(double x, int64_t pixel) const {
    return std::max(0.0, 1 - std::abs((border_ ? std::clamp(x, 0.0, last_) : x) - double(pixel)));
  }

  int64_t size_;
  double last_;
  bool border_;
};

}  // namespace iounet
