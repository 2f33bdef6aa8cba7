// Different bits by chance, where they lie in bytes, and flips of them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "pages.h"
#include "philox.h"

namespace paramcorrupt {
namespace {

constexpr int kBlock = 512;
constexpr int kRounds = 6;
constexpr int64_t kAhead = 32;        // numbers whose bytes or words are asked for in advance
constexpr int64_t kSparse = 256;      // numbers for each that is drawn from which on sorting is faster than a map
constexpr int kWords = 64;            // words of a map whose bits are listed at once
constexpr int64_t kTaskWords = 4096;  // words of a map in a task

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

// The places of the bits of some words, kWords at most, in order. Four more may be written behind the last.
CLONES int list_bits(const uint64_t* words, int n, uint16_t* places) {
  uint16_t* to = places;
  for (int i = 0; i < n; ++i) {
    uint64_t word = words[i];
    const auto next = [&] {
      const int place = std::countr_zero(word | uint64_t(1) << 63);  // never zero, which would be a case apart
      word &= word - 1;
      return uint16_t(64 * i + place);
    };
    const int bits = std::popcount(word);
    for (int k = 0; k < 4; ++k) to[k] = next();  // also where there are fewer: a processor guesses wrong how many
    for (int k = 4; k < bits; ++k) to[k] = next();
    to += bits;
  }
  return int(to - places);
}

CLONES void widen(const uint16_t* __restrict places, int64_t origin, int n, int64_t* __restrict to) {
  for (int i = 0; i < n; ++i) to[i] = origin + places[i];
}

CLONES int64_t count_bits(const uint64_t* words, int64_t n) {
  int64_t bits = 0;
  for (int64_t i = 0; i < n; ++i) bits += std::popcount(words[i]);
  return bits;
}

// A bit for each number: those that are there are listed in order without being sorted.
class Map {
 public:
  Map(int64_t total, const int64_t* numbers, int64_t count) : words_((total + 63) / 64) {
    for (int64_t i = 0; i < count; ++i) {
      if (i + kAhead < count) __builtin_prefetch(&words_[numbers[i + kAhead] >> 6], 1);
      words_[numbers[i] >> 6] |= uint64_t(1) << (numbers[i] & 63);
    }
  }

  void list(int64_t* to) const {
    const auto size = int64_t(words_.size()), tasks = (size + kTaskWords - 1) / kTaskWords;
    std::vector<int64_t> first(tasks + 1);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t task, int64_t last) {
      for (; task < last; ++task)
        first[task + 1] = count_bits(&words_[task * kTaskWords], std::min(kTaskWords, size - task * kTaskWords));
    });
    for (int64_t task = 0; task < tasks; ++task) first[task + 1] += first[task];
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t task, int64_t last) {
      uint16_t places[64 * kWords + 4];
      for (; task < last; ++task) {
        int64_t at = first[task];
        for (int64_t i = task * kTaskWords; i < std::min(size, (task + 1) * kTaskWords); i += kWords) {
          const int n = list_bits(&words_[i], int(std::min<int64_t>(kWords, size - i)), places);
          widen(places, 64 * i, n, to + at);
          at += n;
        }
      }
    });
  }

 private:
  std::vector<uint64_t> words_;
};

Tensor sample_bits(int64_t total, int64_t count, int64_t seed) {
  STD_TORCH_CHECK(count <= total, "more numbers than there are");
  const Tensor drawn = new_vector(count, aoti_torch_dtype_int64());
  auto* to = drawn.mutable_data_ptr<int64_t>();
  prefer_large_pages(to, count * int64_t(sizeof(int64_t)));
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
  if (total / kSparse < count)
    Map(total, to, count).list(to);
  else
    std::sort(to, to + count);
  return drawn;
}

CLONES void locate(const int64_t* __restrict place, int64_t n, int64_t* __restrict byte_index,
                   uint8_t* __restrict mask) {
  for (int64_t i = 0; i < n; ++i) {
    byte_index[i] = place[i] >> 3;
    mask[i] = uint8_t(1 << (place[i] & 7));
  }
}

std::tuple<Tensor, Tensor> locate_bits(const Tensor& place) {
  const int64_t count = place.numel();
  const Tensor byte_index = new_vector(count, aoti_torch_dtype_int64());
  const Tensor mask = new_vector(count, aoti_torch_dtype_uint8());
  const auto* from = static_cast<const int64_t*>(place.const_data_ptr());
  auto* to = byte_index.mutable_data_ptr<int64_t>();
  auto* masks = static_cast<uint8_t*>(mask.mutable_data_ptr());
  prefer_large_pages(to, count * int64_t(sizeof(int64_t)));
  torch::stable::parallel_for(0, count, kGrain, [&](int64_t first, int64_t last) {
    locate(from + first, last - first, to + first, masks + first);
  });
  return {byte_index, mask};
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
  m.impl("locate_bits", TORCH_BOX(&paramcorrupt::locate_bits));
  m.impl("xor_bits_", TORCH_BOX(&paramcorrupt::xor_bits_));
}

// Without a tensor the dispatcher does not come to the CPU by itself.
STABLE_TORCH_LIBRARY_IMPL(paramcorrupt, BackendSelect, m) {
  m.impl("sample_bits", TORCH_BOX(&paramcorrupt::sample_bits));
}
