// The pooling itself: V = Wy F Wx^T, row by row of the map.
#include <torch/csrc/stable/library.h>

#include "blocks.h"
#include "call.h"

namespace iounet {
namespace {

// Adds to the sums [ph][pw][CHANNELS] what one row of the map gives.
template <int BYTES, int CHANNELS, class T>
INLINE void pool_row(const T* row, int64_t stride, const Table<T>& x, const Line<T>& y, T* sums) {
  using V = Vector<T, BYTES>;
  constexpr int N = CHANNELS / V::kSize;
  const auto pw = int64_t(x.lines.size());
  for (int64_t q = 0; q < pw; ++q) {
    const Line<T>& line = x.lines[size_t(q)];
    const T* pixel = row + line.start * stride;
    typename V::type mean[N] = {};
    for (int32_t i = 0; i < line.count; ++i, pixel += stride) {
      const T weight = line.weights[i];
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) mean[n] += weight * load<T, BYTES>(pixel + n * V::kSize);
    }
    for (int32_t p = 0; p < y.count; ++p) {
      const T weight = y.weights[p];
      auto* sum = reinterpret_cast<typename V::type*>(sums + ((y.start + p) * pw + q) * CHANNELS);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) sum[n] += weight * mean[n];
    }
  }
}

template <class S, bool LAST>
struct Pool {
  using T = typename Arithmetic<S>::type;
  Maps<const S, LAST> input;
  Maps<S, LAST> output;
  const std::vector<Roi<T>>& rois;
  const Pairs<LAST>& pairs;

  template <int BYTES>
  INLINE void run(int64_t begin, int64_t end) const {
    const int widest = std::max(pairs.blocks[0].count, kNarrow<T>);
    const auto sums = make_scratch<T>(size_t(output.width * widest));
    const auto packed = make_scratch<T>(size_t((widest_box(rois) + BYTES) * widest));
    for (int64_t i = begin; i < end; ++i) {
      const Block& block = pairs.blocks[pairs.block(i)];
      const auto k = int64_t(pairs.box(i));
      if (block.count > kNarrow<T>)
        pool<BYTES, kWide<T>>(block, k, sums.get(), packed.get());
      else
        pool<BYTES, kNarrow<T>>(block, k, sums.get(), packed.get());
    }
  }

  template <int BYTES, int CHANNELS>
  INLINE void pool(const Block& block, int64_t k, T* sums, T* packed) const {
    const Roi<T>& roi = rois[size_t(k)];
    const T start = roi.image < 0 ? std::numeric_limits<T>::quiet_NaN() : T(0);
    for (int64_t i = 0; i < output.width * CHANNELS; ++i) sums[i] = start;
    prefetch<For::kWriting>(output, k, block, 0, 0, output.width);
    for (int32_t r = 0; r < roi.y.pixels; ++r) {
      int64_t stride;
      prefetch(input, roi.image, block, roi.y.first + r + kAhead, roi.x.first, roi.x.pixels);
      const T* row =
          line<BYTES, CHANNELS>(input, roi.image, block, roi.y.first + r, roi.x.first, roi.x.pixels, packed, stride);
      pool_row<BYTES, CHANNELS>(row, stride, roi.x, roi.y.lines[size_t(r)], sums);
    }
    unpack<BYTES, CHANNELS, LAST>(sums, output.width, block.count, output.at(k, block.channel, 0, 0), output.stride());
  }
};

template <class S, bool LAST>
void pool(const Tensor& input, const Tensor& boxes, const Tensor& output, const Options& options) {
  using T = typename Arithmetic<S>::type;
  const int64_t channels = input.size(1), ph = output.size(2), pw = output.size(3);
  const Shape shape{input.size(0), input.size(2), input.size(3), ph, pw};
  const auto rois = make_rois<T>(boxes, shape, By::kBin, false, options);
  const Pairs<LAST> pairs{near_to_near(rois), make_blocks<T>(channels, LAST)};
  const Pool<S, LAST> task{{static_cast<const S*>(input.const_data_ptr()), channels, shape.height, shape.width},
                           {static_cast<S*>(output.mutable_data_ptr()), channels, 1, ph * pw},
                           rois,
                           pairs};
  torch::stable::parallel_for(0, pairs.size(), kPairs, [&](int64_t begin, int64_t end) { run(task, begin, end); });
}

Tensor prroi_pool(const Tensor& input, const Tensor& boxes, int64_t ph, int64_t pw, double scale, bool border,
                  bool aligned, bool limit) {
  check_map(input);
  const Tensor rows = dense_boxes(boxes);
  const auto [x, last] = dense(input);
  const Tensor output = empty({boxes.size(0), x.size(1), ph, pw}, x.scalar_type(), last);
  if (output.numel() == 0) return output;
  with_type(x, [&]<class S>(S) {
    const auto call = last ? pool<S, true> : pool<S, false>;
    call(x, rows, output, {scale, border, aligned, limit});
  });
  return output;
}

}  // namespace
}  // namespace iounet

STABLE_TORCH_LIBRARY_IMPL(iounet, CPU, m) { m.impl("prroi_pool", TORCH_BOX(&iounet::prroi_pool)); }
