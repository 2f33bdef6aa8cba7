// The gradient of the map: dF += Wy^T G Wx. A task owns rows of a block of channels of an image, and adds up the boxes
// in their order: no result depends on the number of threads.
#include <torch/csrc/stable/library.h>

#include "blocks.h"
#include "call.h"

namespace iounet {
namespace {

constexpr int64_t kBand = 1 << 20;  // bytes of a task's rows, which stay in the cache

// sums[q] = sum over p of weights[p] grad[p][q]
template <int BYTES, int CHANNELS, class T>
INLINE void blend(const T* grad, int64_t stride, const Line<T>& y, int64_t pw, T* sums) {
  using V = Vector<T, BYTES>;
  constexpr int N = CHANNELS / V::kSize;
  for (int64_t q = 0; q < pw; ++q) {
    typename V::type sum[N] = {};
    const T* bin = grad + (y.start * pw + q) * stride;
    for (int32_t p = 0; p < y.count; ++p, bin += pw * stride) {
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) sum[n] += y.weights[p] * load<T, BYTES>(bin + n * V::kSize);
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) aligned<BYTES>(sums + q * CHANNELS + n * V::kSize) = sum[n];
  }
}

// row[i] += sum over q of weights[q] sums[q]
template <int BYTES, int CHANNELS, class T>
INLINE void spread(const T* sums, const Table<T>& x, T* row) {
  using V = Vector<T, BYTES>;
  constexpr int N = CHANNELS / V::kSize;
  for (const Line<T>& line : x.lines) {
    typename V::type pixel[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) pixel[n] = aligned<BYTES>(row + n * V::kSize);
    const T* bin = sums + line.start * CHANNELS;
    for (int32_t q = 0; q < line.count; ++q, bin += CHANNELS) {
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) pixel[n] += line.weights[q] * aligned<BYTES>(bin + n * V::kSize);
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) aligned<BYTES>(row + n * V::kSize) = pixel[n];
    row += CHANNELS;
  }
}

template <class S, bool LAST>
struct GradInput {
  using T = typename Arithmetic<S>::type;
  Maps<const S, LAST> grad;
  Maps<S, LAST> output;
  int64_t pw;
  const std::vector<Roi<T>>& rois;
  const std::vector<std::vector<int32_t>>& by_image;
  const std::vector<Block>& blocks;
  int64_t band, bands;  // rows of a task, tasks of a block

  template <int BYTES>
  INLINE void run(int64_t begin, int64_t end) const {
    const int widest = std::max(blocks[0].count, kNarrow<T>);
    const auto sums = make_scratch<T>(size_t(pw * widest));
    const auto packed = make_scratch<T>(size_t((grad.width + BYTES) * widest));
    const auto rows = make_scratch<T>(size_t(band * output.width * widest));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / (bands * int64_t(blocks.size())), first = i % bands * band;
      const Block& block = blocks[size_t(i / bands) % blocks.size()];
      if (block.count > kNarrow<T>)
        add<BYTES, kWide<T>>(image, block, first, sums.get(), packed.get(), rows.get());
      else
        add<BYTES, kNarrow<T>>(image, block, first, sums.get(), packed.get(), rows.get());
    }
  }

  template <int BYTES, int CHANNELS>
  INLINE void add(int64_t image, const Block& block, int64_t first, T* sums, T* packed, T* rows) const {
    const int64_t stop = std::min(first + band, output.height), pixels = (stop - first) * output.width;
    std::memset(rows, 0, size_t(pixels) * CHANNELS * sizeof(T));
    for (int32_t k : by_image[size_t(image)]) {
      const Roi<T>& roi = rois[size_t(k)];
      const int64_t from = std::max(first, roi.y.first), to = std::min(stop, roi.y.first + roi.y.pixels);
      if (from >= to) continue;
      int64_t stride;
      const T* g = line<BYTES, CHANNELS>(grad, k, block, 0, 0, grad.width, packed, stride);
      for (int64_t row = from; row < to; ++row) {
        blend<BYTES, CHANNELS>(g, stride, roi.y.lines[size_t(row - roi.y.first)], pw, sums);
        spread<BYTES, CHANNELS>(sums, roi.x, rows + ((row - first) * output.width + roi.x.first) * CHANNELS);
      }
    }
    unpack<BYTES, CHANNELS, LAST>(rows, pixels, block.count, output.at(image, block.channel, first, 0),
                                  output.stride());
  }
};

template <class S, bool LAST>
void grad_input(const Tensor& grad, const Tensor& boxes, const Tensor& output, const Options& options) {
  using T = typename Arithmetic<S>::type;
  const int64_t images = output.size(0), channels = output.size(1), height = output.size(2), width = output.size(3);
  const int64_t ph = grad.size(2), pw = grad.size(3);
  const auto rois = make_rois<T>(boxes, {images, height, width, ph, pw}, By::kPixel, false, options);
  std::vector<std::vector<int32_t>> by_image(static_cast<size_t>(images));
  for (size_t k = 0; k < rois.size(); ++k)
    if (rois[k].y.pixels) by_image[size_t(rois[k].image)].push_back(int32_t(k));
  const auto blocks = make_blocks<T>(channels, LAST);
  const auto row_bytes = width * std::max(blocks[0].count, kNarrow<T>) * int64_t(sizeof(T));
  const int64_t band = std::clamp<int64_t>(kBand / row_bytes, 1, height), bands = (height + band - 1) / band;
  const GradInput<S, LAST> task{{static_cast<const S*>(grad.const_data_ptr()), channels, 1, ph * pw},
                                {static_cast<S*>(output.mutable_data_ptr()), channels, height, width},
                                pw,
                                rois,
                                by_image,
                                blocks,
                                band,
                                bands};
  torch::stable::parallel_for(0, images * bands * int64_t(blocks.size()), 1,
                              [&](int64_t begin, int64_t end) { run(task, begin, end); });
}

Tensor prroi_pool_grad_input(const Tensor& grad, const Tensor& boxes, int64_t n, int64_t h, int64_t w,
                             bool channels_last, double scale, bool border, bool aligned, bool limit) {
  check_grad(grad, boxes);
  const Tensor rows = dense_boxes(boxes);
  const Tensor output = empty({n, grad.size(1), h, w}, grad.scalar_type(), channels_last);
  if (output.numel() == 0) return output;
  with_type(grad, [&]<class S>(S) {
    const auto call = channels_last ? grad_input<S, true> : grad_input<S, false>;
    call(dense(grad, channels_last), rows, output, {scale, border, aligned, limit});
  });
  return output;
}

}  // namespace
}  // namespace iounet

STABLE_TORCH_LIBRARY_IMPL(iounet, CPU, m) {
  m.impl("prroi_pool_grad_input", TORCH_BOX(&iounet::prroi_pool_grad_input));
}
