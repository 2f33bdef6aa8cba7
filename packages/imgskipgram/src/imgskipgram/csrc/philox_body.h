// Philox for one instruction set. Included inside its namespace, which says kBytes and multiply_low: the products of
// the low halves of 64-bit lanes.

inline void philox16(uint64_t seed, Counter middle, const uint32_t* position, const uint32_t* stream,
                     uint32_t (*out)[kLanes]) {
  typedef uint64_t Wide __attribute__((vector_size(kBytes)));
  typedef uint32_t Narrow __attribute__((vector_size(kBytes / 2), aligned(4), may_alias));
  constexpr int n = kBytes / 8;
  for (int lane = 0; lane < kLanes; lane += n) {
    // Words are low halves; what the high ones hold does not matter.
    Wide a = __builtin_convertvector(*reinterpret_cast<const Narrow*>(position + lane), Wide);
    Wide d = __builtin_convertvector(*reinterpret_cast<const Narrow*>(stream + lane), Wide);
    Wide b = Wide{} + middle.sentence, c = Wide{} + middle.epoch, k0 = Wide{} + seed, k1 = Wide{} + (seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      const Wide p = multiply_low(a, 0xD2511F53u), q = multiply_low(c, 0xCD9E8D57u);
      a = q >> 32 ^ b ^ k0;
      b = q;
      c = p >> 32 ^ d ^ k1;
      d = p;
    }
    *reinterpret_cast<Narrow*>(out[0] + lane) = __builtin_convertvector(a, Narrow);
    *reinterpret_cast<Narrow*>(out[1] + lane) = __builtin_convertvector(b, Narrow);
    *reinterpret_cast<Narrow*>(out[2] + lane) = __builtin_convertvector(c, Narrow);
    *reinterpret_cast<Narrow*>(out[3] + lane) = __builtin_convertvector(d, Narrow);
  }
}
