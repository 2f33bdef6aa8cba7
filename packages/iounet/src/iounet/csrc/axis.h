#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

// The bins of one axis of one box, in map units and float64.
namespace iounet {

// What a bin takes from one pixel, and the derivatives of that by the bin's two edges.
struct Share {
  double weight, low, high;
};

struct Bin {
  int64_t start, count;  // pixels
  size_t offset;         // of the first one's share
};

class Axis {
 public:
  Axis(int64_t size, bool border) : size_(size), border_(border) {}

  // Equal bins from a to b; where these are the same, or no numbers lie between them, a bin is a point.
  void set(double a, double b, int64_t count) {
    bins.clear();
    shares.clear();
    first = size_;
    stop = 0;
    double from = a;
    for (int64_t k = 1; k <= count; ++k) {
      const double to = a + double(k) / double(count) * (b - a);
      add(from, to);
      from = to;
      if (const Bin& bin = bins.back(); bin.count) {
        first = std::min(first, bin.start);
        stop = std::max(stop, bin.start + bin.count);
      }
    }
    first = std::min(first, stop);
  }

  std::vector<Bin> bins;
  std::vector<Share> shares;
  int64_t first = 0, stop = 0;  // the pixels of all bins

 private:
  // Between pixels c and c + 1 the map is linear. Beyond the outermost pixels it falls to 0 within one cell more, or
  // with a border is constant: that makes one endless cell.
  void add(double from, double to) {
    const bool point = !(to > from);
    const double end = double(size_), low = std::floor(std::clamp(from, -1.0, end));
    const double high = point ? low + 1 : std::ceil(std::clamp(to, -1.0, end));
    const int64_t cell = std::clamp<int64_t>(int64_t(low), -1, size_ - 1);
    int64_t stop_cell = std::clamp<int64_t>(int64_t(high), -1, size_);
    if (border_) stop_cell = std::max(stop_cell, cell + 1);
    const bool off = !border_ && !(from < end && (point ? from >= -1 : to > -1));
    if (off) stop_cell = cell;
    const int64_t start = std::max<int64_t>(cell, 0), stop = off ? start : std::min(stop_cell + 1, size_);
    bins.push_back({start, stop - start, shares.size()});
    shares.resize(shares.size() + size_t(stop - start));
    Share* const share = shares.data() + bins.back().offset;
    for (int64_t c = cell; c < stop_cell; ++c) {
      const bool flat = border_ && (c < 0 || c == size_ - 1);
      const double u = flat && c < 0 ? from : std::max(from, double(c));
      const double v = flat && c >= 0 ? to : std::min(to, double(c + 1));
      const double width = to - from, part = point ? 1 : (v - u) / width;
      if (flat) {
        share[std::max<int64_t>(c, 0) - start].weight += part;
        continue;
      }
      const double middle = point ? from - double(c) : ((u - double(c)) + (v - double(c))) / 2;
      const double by_high = part * (point ? 0.5 : ((u - from) + (v - from)) / (2 * width)), by_low = part - by_high;
      if (c >= start) {
        share[c - start].weight += part * (1 - middle);
        share[c - start].low -= by_low;
        share[c - start].high -= by_high;
      }
      if (c + 1 < stop) {
        share[c + 1 - start].weight += part * middle;
        share[c + 1 - start].low += by_low;
        share[c + 1 - start].high += by_high;
      }
    }
  }

  int64_t size_;
  bool border_;
};

}  // namespace iounet
