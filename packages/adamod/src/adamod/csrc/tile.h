#pragma once

#include <type_traits>

#include "blocks.h"
#include "job.h"

// Up to kRun elements of each tensor in the dtype of the arithmetic, loaded from any dtype and layout and stored there.
namespace adamod {

template <class T>
struct Tile {
  alignas(64) T values[kStreams][kRun];
  alignas(64) uint32_t bits[2][kRun];
  alignas(64) double raw[kRun];    // elements of a strided tensor, in its own dtype
  alignas(64) float blocks[kRun];  // what is decoded or will be encoded
};

// Through float, as torch does between double and the 16-bit dtypes.
template <class From, class To>
CLONES void convert(const From* __restrict from, To* __restrict to, int n) {
  using Middle = std::conditional_t<sizeof(From) + sizeof(To) == 10, float, From>;
  for (int i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<To, BFloat16>)
      to[i] = round_to_nearest(static_cast<float>(from[i]));
    else
      to[i] = static_cast<To>(static_cast<Middle>(from[i]));
  }
}

template <class T>
CLONES void divide(const T* from, T* to, int n, T divisor) {
  for (int i = 0; i < n; ++i) to[i] = from[i] / divisor;
}

template <Range RANGE>
void decode_blocks(const uint8_t* codes, const int16_t* scale, float* x, int n) {
  for (int i = 0; i < n; i += kBlock) decode<RANGE>(codes + i, scale[i / kBlock], x + i, std::min(kBlock, n - i));
}

template <Range RANGE, int SHIFT>
void encode_blocks(const float* x, const uint32_t* bits, uint8_t* codes, int16_t* scale, int n) {
  for (int i = 0; i < n; i += kBlock)
    scale[i / kBlock] = int16_t(encode<RANGE, SHIFT>(x + i, bits + i, codes + i, std::min(kBlock, n - i)));
}

// Returns where the values are: in the tile, or in the tensor itself if it is dense and of type T.
template <class T>
T* load(const Job& job, Role role, int64_t begin, int n, Tile<T>& tile) {
  const Stream& stream = job.streams[role];
  T* values = tile.values[role];
  with_type(stream.type, [&]<class S>(S) {
    constexpr bool kSame = std::is_same_v<S, T>;
    S* from = static_cast<S*>(stream.data);
    if (stream.dense) {
      from += begin;
      if (!kSame)  // the processor's own prefetching rests while a tile is computed
        for (int i = kRun; i < 2 * kRun; i += int(64 / sizeof(S))) __builtin_prefetch(from + i);
    } else {
      S* raw = kSame ? reinterpret_cast<S*>(values) : reinterpret_cast<S*>(tile.raw);
      gather<S>(*job.walk, role, begin, n, from, raw);
      from = raw;
    }
    if constexpr (kSame) {
      values = from;
    } else if constexpr (std::is_same_v<S, uint8_t>) {
      constexpr bool kFloat = std::is_same_v<T, float>;
      float* x = kFloat ? reinterpret_cast<float*>(values) : tile.blocks;
      const int16_t* scale = stream.scale + begin / kBlock;
      (role == kExpAvg ? decode_blocks<Range::kSigned> : decode_blocks<Range::kPositive>)(from, scale, x, n);
      if (!kFloat) convert(x, values, n);
    } else {
      convert(from, values, n);
    }
  });
  return values;
}

template <class T>
void encode_as(Role role, const T* values, int16_t* scale, uint8_t* codes, int n, Tile<T>& tile) {
  const float* x = tile.blocks;
  if constexpr (std::is_same_v<T, float>)
    x = values;
  else
    convert(values, tile.blocks, n);
  if (role == kExpAvg) encode_blocks<Range::kSigned, 0>(x, tile.bits[1], codes, scale, n);
  if (role == kExpAvgSq) encode_blocks<Range::kPositive, 0>(x, tile.bits[0], codes, scale, n);
  if (role == kExpAvgLr) encode_blocks<Range::kNonnegative, 16>(x, tile.bits[0], codes, scale, n);
}

template <class T>
void round_as(Role role, const T* values, BFloat16* out, int n, const Tile<T>& tile) {
  if (role == kExpAvg) convert(values, out, n);
  if (role == kExpAvgSq) round_stochastically<0>(values, tile.bits[0], out, n);
  if (role == kExpAvgLr) round_stochastically<16>(values, tile.bits[0], out, n);
  if (role == kParam) round_stochastically<16>(values, tile.bits[1], out, n);
}

template <class T>
void store(const Job& job, Role role, int64_t begin, int n, const T* values, bool stochastic, Tile<T>& tile) {
  const Stream& stream = job.streams[role];
  with_type(stream.type, [&]<class S>(S) {
    S* const whole = static_cast<S*>(stream.data);
    if constexpr (std::is_same_v<S, T>) {
      if (!stream.dense) scatter<S>(*job.walk, role, begin, n, values, whole);
    } else {
      S* to = stream.dense ? whole + begin : reinterpret_cast<S*>(tile.raw);
      if constexpr (std::is_same_v<S, uint8_t>)
        encode_as(role, values, stream.scale + begin / kBlock, to, n, tile);
      else if constexpr (std::is_same_v<S, BFloat16>)
        stochastic ? round_as(role, values, to, n, tile) : convert(values, to, n);
      else
        convert(values, to, n);
      if (!stream.dense) scatter<S>(*job.walk, role, begin, n, to, whole);
    }
  });
}

}  // namespace adamod
