#pragma once

#include <algorithm>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "numbers.h"

// A few elements at a time, which stay in the nearest cache.
namespace gasam {

inline constexpr int kTile = 1024;

template <class T>
struct Tile {
  alignas(64) T values[kTile];
};

// Calls visit(begin, how many) for the tiles of a piece.
template <class Visit>
inline void tiles(int64_t size, const Visit& visit) {
  for (int64_t i = 0; i < size; i += kTile) visit(i, int(std::min<int64_t>(kTile, size - i)));
}

template <class S>
CLONES void convert(const S* __restrict from, Arithmetic<S>* __restrict to, int n) {
  for (int i = 0; i < n; ++i) to[i] = widen(from[i]);
}

template <class S>
CLONES void round_to_nearest(const Arithmetic<S>* __restrict from, S* __restrict to, int n) {
  for (int i = 0; i < n; ++i) to[i] = narrow<S>(from[i]);
}

// Where the elements are in the type of the arithmetic: in the tensor itself, or in the tile.
template <class S>
inline const Arithmetic<S>* load(const S* from, Tile<Arithmetic<S>>& tile, int n) {
  if constexpr (!kSmall<S>) {
    return from;
  } else {
    convert(from, tile.values, n);
    return tile.values;
  }
}

template <class S>
inline Arithmetic<S>* load(S* from, Tile<Arithmetic<S>>& tile, int n) {
  return const_cast<Arithmetic<S>*>(load(static_cast<const S*>(from), tile, n));
}

// Writes back what `load` has put into the tile.
template <class S>
inline void store(const Arithmetic<S>* from, S* to, int n) {
  if constexpr (kSmall<S>) round_to_nearest(from, to, n);
}

// Copies past the caches: a store that goes through them first reads what it overwrites.
inline void stream(const void* from, void* to, size_t bytes) {
#if defined(__SSE2__)
  const auto* source = static_cast<const char*>(from);
  auto* target = static_cast<char*>(to);
  const size_t head = std::min(-reinterpret_cast<uintptr_t>(target) % 16, bytes);
  std::memcpy(target, source, head);
  size_t i = head;
  for (; i + 64 <= bytes; i += 64)
    for (size_t j = i; j < i + 64; j += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(target + j),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + j)));
  std::memcpy(target + i, source + i, bytes - i);
#else
  std::memcpy(to, from, bytes);
#endif
}

// To be called by the thread that streamed before another reads.
inline void finish_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

inline void copy(const void* from, void* to, size_t bytes, bool past_caches) {
  if (past_caches)
    stream(from, to, bytes);
  else
    std::memcpy(to, from, bytes);
}

inline constexpr int64_t kStreamed = 8 << 20;  // bytes of a list from which on it is worth it to stream

}  // namespace gasam
