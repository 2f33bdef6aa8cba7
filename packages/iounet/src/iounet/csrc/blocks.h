#pragma once

#include <cstdlib>
#include <memory>

#include "lanes.h"
#include "rois.h"

// Blocks of channels, and lines of pixels of them: in the memory of a tensor, or packed with the channels innermost.
namespace iounet {

template <class T>
inline constexpr int kNarrow = 64 / int(sizeof(T));  // channels
template <class T>
inline constexpr int kWide = 256 / int(sizeof(T));

inline constexpr int kAhead = 1;  // rows, of those that are being prefetched
inline constexpr int kPairs = 8;  // of a box and a block, the least that are a thread's work

struct Block {
  int64_t channel;
  int count;  // at most kWide; if less, at most kNarrow
};

template <class T>
std::vector<Block> make_blocks(int64_t channels, bool wide) {
  std::vector<Block> blocks;
  int64_t c = 0;
  for (; wide && channels - c >= kWide<T>; c += kWide<T>) blocks.push_back({c, kWide<T>});
  for (; c < channels; c += kNarrow<T>) blocks.push_back({c, int(std::min<int64_t>(kNarrow<T>, channels - c))});
  return blocks;
}

// All pairs of a box and a block of channels, in the order of their memory: with channels innermost (LAST) the blocks
// of a box follow each other, else the boxes of a block.
template <bool LAST>
struct Pairs {
  std::vector<int32_t> boxes;  // near to near
  std::vector<Block> blocks;

  int64_t size() const { return int64_t(boxes.size() * blocks.size()); }
  size_t box(int64_t i) const { return size_t(boxes[size_t(i) / (LAST ? blocks.size() : 1) % boxes.size()]); }
  size_t block(int64_t i) const { return size_t(i) / (LAST ? 1 : boxes.size()) % blocks.size(); }
};

template <class T>
using Scratch = std::unique_ptr<T, void (*)(void*)>;

template <class T>
Scratch<T> make_scratch(size_t count) {
  auto* data = static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) / 64 + 1) * 64));
  STD_TORCH_CHECK(data, "out of memory");
  return {data, std::free};
}

// The memory of a tensor [images, channels, height, width]; LAST: with channels innermost.
template <class S, bool LAST>
struct Maps {
  S* data;
  int64_t channels, height, width;

  INLINE S* at(int64_t image, int64_t channel, int64_t row, int64_t column) const {
    if constexpr (LAST) return data + ((image * height + row) * width + column) * channels + channel;
    return data + ((image * channels + channel) * height + row) * width + column;
  }
  // From pixel to pixel if LAST, else from channel to channel: the other distance is 1.
  INLINE int64_t stride() const { return LAST ? channels : height * width; }
};

template <int BYTES, class T>
INLINE auto& aligned(T* x) {
  return *reinterpret_cast<
      std::conditional_t<std::is_const_v<T>, const typename Vector<std::remove_const_t<T>, BYTES>::type,
                         typename Vector<T, BYTES>::type>*>(x);
}

// Neighbouring pixels of `count` channels, from a line of a Maps to [pixels][CHANNELS], with zeros for channels to
// spare.
template <int BYTES, int CHANNELS, bool LAST, class S, class T>
INLINE void pack(const S* line, int64_t stride, int64_t pixels, int count, T* to) {
  constexpr int L = Vector<T, BYTES>::kSize;
  if constexpr (LAST) {
    for (int64_t i = 0; i < pixels; ++i, line += stride, to += CHANNELS) {
      S part[CHANNELS];
      const S* x = line;
      if (count < CHANNELS) {
        std::memset(part, 0, sizeof part);
        std::memcpy(part, x, size_t(count) * sizeof(S));
        x = part;
      }
#pragma GCC unroll 16
      for (int n = 0; n < CHANNELS; n += L) aligned<BYTES>(to + n) = load<T, BYTES>(x + n);
    }
    return;
  }
  static constexpr S kZeros[L] = {};
  for (int group = 0; group < CHANNELS; group += L) {
    for (int64_t i = 0; i < pixels; i += L) {
      const int64_t at = std::max<int64_t>(std::min<int64_t>(i, pixels - L), 0);  // the last square overlaps
      typename Vector<T, BYTES>::type square[L];
#pragma GCC unroll 16
      for (int n = 0; n < L; ++n) {
        const S* x = group + n < count ? line + (group + n) * stride + at : kZeros;
        if (pixels < L) {
          S part[L] = {};
          std::memcpy(part, x, size_t(pixels) * sizeof(S));
          square[n] = load<T, BYTES>(part);
        } else {
          square[n] = load<T, BYTES>(x);
        }
      }
      transpose(square);
#pragma GCC unroll 16
      for (int n = 0; n < L; ++n)
        if (n < pixels) aligned<BYTES>(to + (at + n) * CHANNELS + group) = square[n];
    }
  }
}

// The reverse of `pack`.
template <int BYTES, int CHANNELS, bool LAST, class S, class T>
INLINE void unpack(const T* from, int64_t pixels, int count, S* line, int64_t stride) {
  constexpr int L = Vector<T, BYTES>::kSize;
  if constexpr (LAST) {
    for (int64_t i = 0; i < pixels; ++i, line += stride, from += CHANNELS) {
      S part[CHANNELS];
      S* const x = count < CHANNELS ? part : line;
#pragma GCC unroll 16
      for (int n = 0; n < CHANNELS; n += L) store<BYTES>(aligned<BYTES>(from + n), x + n);
      if (count < CHANNELS) std::memcpy(line, part, size_t(count) * sizeof(S));
    }
    return;
  }
  for (int group = 0; group < count; group += L) {
    for (int64_t i = 0; i < pixels; i += L) {
      const int64_t at = std::max<int64_t>(std::min<int64_t>(i, pixels - L), 0);
      typename Vector<T, BYTES>::type square[L];
#pragma GCC unroll 16
      for (int n = 0; n < L; ++n)
        square[n] = aligned<BYTES>(from + std::min<int64_t>(at + n, pixels - 1) * CHANNELS + group);
      transpose(square);
#pragma GCC unroll 16
      for (int n = 0; n < L; ++n) {
        if (group + n >= count) break;
        S* const x = line + (group + n) * stride + at;
        if (pixels < L) {
          S part[L];
          store<BYTES>(square[n], part);
          std::memcpy(x, part, size_t(pixels) * sizeof(S));
        } else {
          store<BYTES>(square[n], x);
        }
      }
    }
  }
}

enum class For { kReading, kWriting };

// Fetches into the cache what `line` will read of a block, or `unpack` will write.
template <For USE = For::kReading, bool LAST, class S>
INLINE void prefetch(const Maps<S, LAST>& maps, int64_t image, const Block& block, int64_t row, int64_t first,
                     int64_t pixels) {
  constexpr int kLine = 64 / int(sizeof(S));
  const S* x = maps.at(image, block.channel, std::min(row, maps.height - 1), first);
  const int64_t length = LAST ? block.count : pixels;
  for (int64_t i = 0; i < (LAST ? pixels : block.count); ++i, x += maps.stride())
    for (int64_t j = 0; j < length; j += kLine) __builtin_prefetch(x + j, int(USE));
}

// A line of pixels of a block from `first` on: the tensor's own memory where that will do, or packed.
template <int BYTES, int CHANNELS, bool LAST, class S, class T>
INLINE const T* line(const Maps<const S, LAST>& maps, int64_t image, const Block& block, int64_t row, int64_t first,
                     int64_t pixels, T* packed, int64_t& stride) {
  if constexpr (LAST && std::is_same_v<S, T>) {
    if (block.count == CHANNELS) {
      stride = maps.stride();
      return maps.at(image, block.channel, row, first);
    }
  }
  stride = CHANNELS;
  int64_t begin = first;
  if constexpr (!LAST) {  // no part of a vector, where a whole one will do
    pixels = std::min<int64_t>(std::max<int64_t>(pixels, Vector<T, BYTES>::kSize), maps.width);
    begin = std::min(first, maps.width - pixels);
  }
  pack<BYTES, CHANNELS, LAST>(maps.at(image, block.channel, row, begin), maps.stride(), pixels, block.count, packed);
  return packed + (first - begin) * CHANNELS;
}

}  // namespace iounet
