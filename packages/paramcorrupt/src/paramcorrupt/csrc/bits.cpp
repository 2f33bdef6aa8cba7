// Flips of single bits in bytes, one after another, since a byte may be named more than once.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

namespace paramcorrupt {
namespace {

using torch::stable::Tensor;

void xor_bits_(Tensor bytes, const Tensor& byte_index, const Tensor& mask) {
  auto* data = static_cast<uint8_t*>(bytes.mutable_data_ptr());
  const auto* index = static_cast<const int64_t*>(byte_index.const_data_ptr());
  const auto* bits = static_cast<const uint8_t*>(mask.const_data_ptr());
  const int64_t count = byte_index.numel();
  for (int64_t i = 0; i < count; ++i) data[index[i]] ^= bits[i];
}

}  // namespace
}  // namespace paramcorrupt

STABLE_TORCH_LIBRARY_IMPL(paramcorrupt, CPU, m) { m.impl("xor_bits_", TORCH_BOX(&paramcorrupt::xor_bits_)); }
