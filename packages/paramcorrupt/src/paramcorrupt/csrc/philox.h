#pragma once

#include <cstdint>

namespace paramcorrupt {

struct Words {
  uint32_t x, y, z, w;
};

// Philox4x32-10 (Salmon et al., SC 2011) at (counter, stream) under a key.
inline Words philox(uint64_t counter, uint64_t stream, uint64_t key) {
  uint32_t x = uint32_t(counter), y = uint32_t(counter >> 32), z = uint32_t(stream), w = uint32_t(stream >> 32);
  uint32_t key0 = uint32_t(key), key1 = uint32_t(key >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(x) * 0xD2511F53, b = uint64_t(z) * 0xCD9E8D57;
    x = uint32_t(b >> 32) ^ y ^ key0;
    y = uint32_t(b);
    z = uint32_t(a >> 32) ^ w ^ key1;
    w = uint32_t(a);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return {x, y, z, w};
}

}  // namespace paramcorrupt
