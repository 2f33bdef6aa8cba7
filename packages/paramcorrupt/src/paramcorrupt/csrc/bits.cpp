// Different bits by chance, and flips of bits in bytes.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "arguments.h"
#include "philox.h"

namespace paramcorrupt {
namespace {

constexpr int kBlock = 512;
constexpr int kRounds = 6;
constexpr int64_t kAhead = 32;  // flips whose bytes are asked for in advance

// A Feistel network whose halves differ by at most a bit, so that it holds less than twice as many numbers as needed.
struct Permutation {
  uint32_t keys[kRounds];
  int right_bits;
  uint32_t left_mask, right_mask;

  Permutation(uint64_t total, uint64_t seed) {
    const int bits = std::max(2, int(std::bit_width(total - 1)));
    right_bits = bits / 2;
    right_mask = uint32_t((uint64_t(1) << right_bits) - 1);
    left_mask = uint32_t((uint64_t(1) << (bits - right_bits)) - 1);
    for (int i = 0; i < kRounds; ++i) keys[i] = philox(i, 0, seed).x;
  }

  static uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7FEB352D;
    x = (x ^ x >> 15) * 0x846CA68B;
    return x ^ x >> 16;
  }

  template <class U>
  U operator()(U x) const {
    uint32_t left = uint32_t(x >> right_bits), right = uint32_t(x) & right_mask;
#pragma GCC unroll 3
    for (int i = 0; i < kRounds; i += 2) {
      left ^= mix(right + keys[i]) & left_mask;
      right ^= mix(left + keys[i + 1]) & right_mask;
    }
    return U(left) << right_bits | right;
  }
};

template <class U>
CLONES void permute(U* x, int n, const Permutation& permutation) {
  const Permutation p = permutation;
  for (int i = 0; i < n; ++i) x[i] = p(x[i]);
}

// Where the permutation takes first .. first + n, n <= kBlock, in numbers that hold all of its domain.
template <class U>
void walk(const Permutation& permutation, U total, int64_t first, int n, int64_t* to) {
  U x[kBlock], walking[kBlock];
  int place[kBlock];
  for (int i = 0; i < n; ++i) x[i] = U(first + i);
  permute(x, n, permutation);
  int outside = 0;
  for (int i = 0; i < n; ++i) {
    place[outside] = i;
    walking[outside] = x[i];
    outside += x[i] >= total;
  }
  while (outside) {
    permute(walking, outside, permutation);
    int still = 0;
    for (int i = 0; i < outside; ++i) {
      x[place[i]] = walking[i];
      place[still] = place[i];
      walking[still] = walking[i];
      still += walking[i] >= total;
    }
    outside = still;
  }
  for (int i = 0; i < n; ++i) to[i] = int64_t(x[i]);
}

Tensor sample_bits(int64_t total, int64_t count, int64_t seed) {
  STD_TORCH_CHECK(count <= total, "more numbers than there are");
  const Tensor drawn = new_vector(count, aoti_torch_dtype_int64());
  auto* to = drawn.mutable_data_ptr<int64_t>();
  const Permutation permutation{uint64_t(total), uint64_t(seed)};
  torch::stable::parallel_for(0, count, kGrain, [&](int64_t first, int64_t last) {
    for (; first < last; first += kBlock) {
      const int n = int(std::min<int64_t>(kBlock, last - first));
      if (total <= std::numeric_limits<uint32_t>::max())
        walk(permutation, uint32_t(total), first, n, to + first);
      else
        walk(permutation, uint64_t(total), first, n, to + first);
    }
  });
  return drawn;
}

void xor_bits_(Tensor bytes, const Tensor& byte_index, const Tensor& mask) {
  STD_TORCH_CHECK(byte_index.numel() == mask.numel(), "a mask for every byte");
  auto* data = static_cast<uint8_t*>(bytes.mutable_data_ptr());
  const auto* index = static_cast<const int64_t*>(byte_index.const_data_ptr());
  const auto* bits = static_cast<const uint8_t*>(mask.const_data_ptr());
  const int64_t count = byte_index.numel();
  int64_t i = 0;
  for (; i + kAhead < count; ++i) {
    __builtin_prefetch(data + index[i + kAhead], 1);
    data[index[i]] ^= bits[i];
  }
  for (; i < count; ++i) data[index[i]] ^= bits[i];
}

}  // namespace
}  // namespace paramcorrupt

STABLE_TORCH_LIBRARY_IMPL(paramcorrupt, CPU, m) {
  m.impl("sample_bits", TORCH_BOX(&paramcorrupt::sample_bits));
  m.impl("xor_bits_", TORCH_BOX(&paramcorrupt::xor_bits_));
}

// Without a tensor the dispatcher does not come to the CPU by itself.
STABLE_TORCH_LIBRARY_IMPL(paramcorrupt, BackendSelect, m) {
  m.impl("sample_bits", TORCH_BOX(&paramcorrupt::sample_bits));
}
