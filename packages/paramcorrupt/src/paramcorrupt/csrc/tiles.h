#pragma once

#include <algorithm>
#include <cstring>
#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>
#endif

#include "numbers.h"

// A few elements at a time, which stay in the nearest cache.
namespace paramcorrupt {

inline constexpr int kTile = 256;

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

// Copies past the caches: a store that goes through them first reads what it overwrites. Only whole lines of a cache
// are worth it, and in the widest stores, which took a tenth less time than the narrowest.
#if defined(__x86_64__) && defined(__linux__)
inline constexpr size_t kLine = 64;

__attribute__((target("avx512f"))) inline void stream_lines_avx512(const char* from, char* to, size_t lines) {
  for (size_t i = 0; i < lines * kLine; i += 64)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
}

inline void stream_lines(const char* from, char* to, size_t lines) {
  for (size_t i = 0; i < lines * kLine; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
}

inline void stream(const void* source, void* target, size_t bytes) {
  const auto* from = static_cast<const char*>(source);
  auto* to = static_cast<char*>(target);
  const size_t head = std::min(-reinterpret_cast<uintptr_t>(to) % kLine, bytes), lines = (bytes - head) / kLine;
  std::memcpy(to, from, head);
  (__builtin_cpu_supports("avx512f") ? stream_lines_avx512 : stream_lines)(from + head, to + head, lines);
  const size_t done = head + lines * kLine;
  std::memcpy(to + done, from + done, bytes - done);
}

// To be called by the thread that streamed before another reads.
inline void finish_stream() { _mm_sfence(); }
#else
inline void stream(const void* from, void* to, size_t bytes) { std::memcpy(to, from, bytes); }
inline void finish_stream() {}
#endif

inline void copy(const void* from, void* to, size_t bytes, bool past_caches) {
  if (past_caches)
    stream(from, to, bytes);
  else
    std::memcpy(to, from, bytes);
}

inline constexpr int64_t kStreamed = 8 << 20;  // bytes of a list from which on it is worth it to stream

}  // namespace paramcorrupt
