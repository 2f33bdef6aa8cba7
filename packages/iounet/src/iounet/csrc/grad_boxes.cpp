// The gradient of the boxes, by the derivatives of the weights: dx sums (Wy F dWx^T) G and dy sums (dWy F Wx^T) G.
#include <torch/csrc/stable/library.h>

#include "blocks.h"
#include "call.h"

namespace iounet {
namespace {

using Ends = std::array<double, 4>;  // x1, y1, x2, y2

// Adds what one row of the map gives to the gradients of the weights: along_x of each pixel in each bin of a line,
// along_y of this row in each line of bins. Each is a vector, whose lanes are still to be summed.
template <int BYTES, int CHANNELS, class T>
INLINE void pull_row(const T* row, int64_t stride, const T* grad, int64_t grad_stride, const Table<T>& x,
                     const Line<T>& y, T* along_x, T* along_y) {
  using V = Vector<T, BYTES>;
  constexpr int N = CHANNELS / V::kSize;
  const auto pw = int64_t(x.lines.size());
  for (int64_t q = 0; q < pw; ++q) {
    const Line<T>& line = x.lines[size_t(q)];
    const T* bin = grad + (y.start * pw + q) * grad_stride;
    typename V::type up[N] = {}, mean[N] = {};
    for (int32_t p = 0; p < y.count; ++p) {
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) up[n] += y.weights[p] * load<T, BYTES>(bin + p * pw * grad_stride + n * V::kSize);
    }
    const T* pixel = row + line.start * stride;
    for (int32_t i = 0; i < line.count; ++i, pixel += stride, along_x += V::kSize) {
      typename V::type sum = aligned<BYTES>(along_x);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        const typename V::type f = load<T, BYTES>(pixel + n * V::kSize);
        mean[n] += line.weights[i] * f;
        sum += f * up[n];
      }
      aligned<BYTES>(along_x) = sum;
    }
    for (int32_t p = 0; p < y.count; ++p) {
      typename V::type sum = aligned<BYTES>(along_y + p * V::kSize);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) sum += mean[n] * load<T, BYTES>(bin + p * pw * grad_stride + n * V::kSize);
      aligned<BYTES>(along_y + p * V::kSize) = sum;
    }
  }
}

template <class S, bool LAST>
struct GradBoxes {
  using T = typename Arithmetic<S>::type;
  Maps<const S, LAST> input, grad;
  const std::vector<Roi<T>>& rois;
  const Pairs<LAST>& pairs;
  size_t most_slopes;
  std::vector<Ends>& ends;  // of each block of each box

  template <int BYTES>
  INLINE void run(int64_t begin, int64_t end) const {
    const int widest = std::max(pairs.blocks[0].count, kNarrow<T>);
    const auto packed_grad = make_scratch<T>(size_t((grad.width + BYTES) * widest));
    const auto packed = make_scratch<T>(size_t((widest_box(rois) + BYTES) * widest));
    const auto along = make_scratch<T>(most_slopes * BYTES / sizeof(T));
    for (int64_t i = begin; i < end; ++i) {
      const Block& block = pairs.blocks[pairs.block(i)];
      const size_t k = pairs.box(i);
      if (i + 1 < end) prefetch(grad, int64_t(pairs.box(i + 1)), pairs.blocks[pairs.block(i + 1)], 0, 0, grad.width);
      Ends& to = ends[k * pairs.blocks.size() + pairs.block(i)];
      if (block.count > kNarrow<T>)
        pull<BYTES, kWide<T>>(block, k, packed_grad.get(), packed.get(), along.get(), to);
      else
        pull<BYTES, kNarrow<T>>(block, k, packed_grad.get(), packed.get(), along.get(), to);
    }
  }

  template <int BYTES, int CHANNELS>
  INLINE void pull(const Block& block, size_t k, T* packed_grad, T* packed, T* along, Ends& to) const {
    constexpr int L = Vector<T, BYTES>::kSize;
    const Roi<T>& roi = rois[k];
    to = {};
    if (roi.y.pixels == 0) return;
    const size_t nx = roi.x.slopes.size(), ny = roi.y.slopes.size();
    std::memset(along, 0, (nx + ny) * BYTES);
    T *const along_x = along, *const along_y = along + nx * L;
    int64_t stride, grad_stride;
    const T* g = line<BYTES, CHANNELS>(grad, int64_t(k), block, 0, 0, grad.width, packed_grad, grad_stride);
    const T* first_weight = roi.y.lines[0].weights;
    for (int32_t r = 0; r < roi.y.pixels; ++r) {
      const Line<T>& y = roi.y.lines[size_t(r)];
      prefetch(input, roi.image, block, roi.y.first + r + kAhead, roi.x.first, roi.x.pixels);
      const T* row =
          line<BYTES, CHANNELS>(input, roi.image, block, roi.y.first + r, roi.x.first, roi.x.pixels, packed, stride);
      pull_row<BYTES, CHANNELS>(row, stride, g, grad_stride, roi.x, y, along_x,
                                along_y + (y.weights - first_weight) * L);
    }
    contract<BYTES>(along_x, roi.x.slopes, to[0], to[2]);
    contract<BYTES>(along_y, roi.y.slopes, to[1], to[3]);
  }

  template <int BYTES>
  INLINE void contract(const T* along, const std::vector<Slope>& slopes, double& low, double& high) const {
    constexpr int L = Vector<T, BYTES>::kSize;
    for (const Slope& slope : slopes) {
      T sum = 0;
      for (int n = 0; n < L; ++n) sum += along[n];
      low += slope.low * double(sum);
      high += slope.high * double(sum);
      along += L;
    }
  }
};

template <class S, bool LAST>
void grad_boxes(const Tensor& grad, const Tensor& input, const Tensor& boxes, double* output, const Options& options) {
  using T = typename Arithmetic<S>::type;
  const int64_t channels = input.size(1), height = input.size(2), width = input.size(3);
  const int64_t ph = grad.size(2), pw = grad.size(3);
  const auto rois = make_rois<T>(boxes, {input.size(0), height, width, ph, pw}, By::kBin, true, options);
  const Pairs<LAST> pairs{near_to_near(rois), make_blocks<T>(channels, LAST)};
  size_t most_slopes = 0;
  for (const Roi<T>& roi : rois) most_slopes = std::max(most_slopes, roi.x.slopes.size() + roi.y.slopes.size());
  std::vector<Ends> ends(size_t(pairs.size()));
  const GradBoxes<S, LAST> task{{static_cast<const S*>(input.const_data_ptr()), channels, height, width},
                                {static_cast<const S*>(grad.const_data_ptr()), channels, 1, ph * pw},
                                rois,
                                pairs,
                                most_slopes,
                                ends};
  torch::stable::parallel_for(0, pairs.size(), kPairs, [&](int64_t begin, int64_t end) { run(task, begin, end); });
  for (size_t k = 0; k < rois.size(); ++k, output += 5) {
    const double start = rois[k].image < 0 ? std::numeric_limits<double>::quiet_NaN() : 0;
    std::fill_n(output, 5, start);
    for (size_t b = 0; b < pairs.blocks.size(); ++b)
      for (size_t i = 0; i < 4; ++i) output[i + 1] += ends[k * pairs.blocks.size() + b][i];
  }
}

Tensor prroi_pool_grad_boxes(const Tensor& grad, const Tensor& input, const Tensor& boxes, double scale, bool border,
                             bool aligned, bool limit) {
  check_map(input);
  check_grad(grad, boxes);
  STD_TORCH_CHECK(grad.size(1) == input.size(1) && grad.scalar_type() == input.scalar_type(), "grad is of another map");
  const Tensor rows = dense_boxes(boxes);
  const auto [x, last] = dense(input);
  const Tensor output = torch::stable::new_empty(boxes, {boxes.size(0), 5}, ScalarType::Double);
  if (output.numel() == 0) return torch::stable::to(output, boxes.scalar_type());
  with_type(x, [&]<class S>(S) {
    const auto call = last ? grad_boxes<S, true> : grad_boxes<S, false>;
    call(dense(grad, last), x, rows, static_cast<double*>(output.mutable_data_ptr()), {scale, border, aligned, limit});
  });
  return torch::stable::to(output, boxes.scalar_type());
}

}  // namespace
}  // namespace iounet

STABLE_TORCH_LIBRARY_IMPL(iounet, CPU, m) {
  m.impl("prroi_pool_grad_boxes", TORCH_BOX(&iounet::prroi_pool_grad_boxes));
}
