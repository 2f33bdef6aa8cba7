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

template <class T>
using Scratch = std::unique_ptr<T, void (*)(void*)>;

template <class T>
Scratch<T> make_scratch(size_t count) {
  auto* data = static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64));
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

// Neighbouring pixels of `count` channels, from a line of a Maps to [pixels][CHANNELS].
template <int BYTES, int CHANNELS, bool LAST, class S, class T>
INLINE void pack(const S* line, int64_t stride, int64_t pixels, int count, T* to) {
  using V = Vector<T, BYTES>;
  constexpr int L = V::kSize;
  if constexpr (LAST) {
    for (int64_t i = 0; i < pixels; ++i, to += CHANNELS) {
      const S* x = line + i * stride;
      S part[CHANNELS];
      if (count < CHANNELS) {
        std::memset(part, 0, sizeof part);
        std::memcpy(part, x, size_t(count) * sizeof(S));
        x = part;
      }
#pragma GCC unroll 16
      for (int n = 0; n < CHANNELS; n += L) *reinterpret_cast<typename V::type*>(to + n) = load<T, BYTES>(x + n);
    }
    return;
  }
  for (int group = 0; group < count; group += L) {
    for (int64_t i = 0; i < pixels; i += L) {
      // The last square begins earlier, over pixels that are packed already.
      const int64_t at = pixels < L ? 0 : std::min<int64_t>(i, pixels - L);
      typename V::type square[L];
#pragma GCC unroll 16
      for (int n = 0; n < L; ++n) {
        const S* x = line + std::min(group + n, count - 1) * stride + at;
        if (pixels < L) {
          S part[L];
          std::memset(part, 0, sizeof part);
          std::memcpy(part, x, size_t(pixels) * sizeof(S));
          square[n] = load<T, BYTES>(part);
        } else {
          square[n] = load<T, BYTES>(x);
        }
      }
      transpose(square);
#pragma GCC unroll 16
      for (int n = 0; n < L; ++n)
        if (n < pixels) *reinterpret_cast<typename V::type*>(to + (at + n) * CHANNELS + group) = square[n];
    }
  }
}

// The reverse of `pack`.
template <int BYTES, int CHANNELS, bool LAST, class S, class T>
INLINE void unpack(const T* from, int64_t pixels, int count, S* line, int64_t stride) {
  using V = Vector<T, BYTES>;
  constexpr int L = V::kSize;
  if constexpr (LAST) {
    for (int64_t i = 0; i < pixels; ++i, from += CHANNELS) {
      S* x = line + i * stride;
      if (count == CHANNELS)
        for (int n = 0; n < CHANNELS; ++n) store(from[n], x + n);
      else
        for (int n = 0; n < count; ++n) store(from[n], x + n);
    }
    return;
  }
  for (int group = 0; group < count; group += L) {
    for (int64_t i = 0; i < pixels; i += L) {
      const int64_t at = pixels < L ? 0 : std::min<int64_t>(i, pixels - L);
      typename V::type square[L];
#pragma GCC unroll 16
      for (int n = 0; n < L; ++n)
        square[n] = *reinterpret_cast<const typename V::type*>(
            from + (pixels < L && n >= pixels ? at : at + n) * CHANNELS + group);
      transpose(square);
      alignas(BYTES) T rows[L][L];
#pragma GCC unroll 16
      for (int n = 0; n < L; ++n) *reinterpret_cast<typename V::type*>(rows[n]) = square[n];
      const int channels = std::min(count - group, L);
      for (int n = 0; n < channels; ++n) {
        S* x = line + (group + n) * stride + at;
        if (pixels < L)
          for (int64_t j = 0; j < pixels; ++j) store(rows[n][j], x + j);
        else
          for (int j = 0; j < L; ++j) store(rows[n][j], x + j);
      }
    }
  }
}

// A line of pixels under a box, from its first one on: the tensor's own memory where that will do, or packed.
template <int BYTES, int CHANNELS, bool LAST, class S, class T>
INLINE const T* line(const Maps<const S, LAST>& maps, int64_t image, const Block& block, int64_t row, const Table<T>& x,
                     T* packed, int64_t& stride) {
  if constexpr (LAST && std::is_same_v<S, T>) {
    if (block.count == CHANNELS) {
      stride = maps.stride();
      return maps.at(image, block.channel, row, x.first);
    }
  }
  stride = CHANNELS;
  int64_t first = x.first, pixels = x.pixels;
  if constexpr (!LAST) {
    pixels = std::min<int64_t>(std::max(x.pixels, BYTES / int(sizeof(T))), maps.width);
    first = std::min(first, maps.width - pixels);
  }
  pack<BYTES, CHANNELS, LAST>(maps.at(image, block.channel, row, first), maps.stride(), pixels, block.count, packed);
  return packed + (x.first - first) * CHANNELS;
}

}  // namespace iounet
