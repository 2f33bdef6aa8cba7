#pragma once

#include <string>
#include <utility>
#include <vector>

#include "philox.h"
#include "tile.h"

#if defined(__x86_64__) && defined(__linux__)
#define SGNS_X86
#include <immintrin.h>
#endif

#include "avx2.h"
#include "avx512.h"
#include "scalar.h"

// Which kernels serve.
namespace sgns {

// Which instructions this machine has kernels for: the widest first.
inline std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
#ifdef SGNS_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) names.emplace_back("avx512");
  if (__builtin_cpu_supports("x86-64-v3")) names.emplace_back("avx2");
#endif
  names.emplace_back("scalar");
  return names;
}

template <class T, bool Gradient>
Step<T> choose(const std::string& isa) {
#ifdef SGNS_X86
  if (isa == "avx512") return avx512::step<T, Gradient>;
  if (isa == "avx2") return avx2::step<T, Gradient>;
#endif
  return scalar::step<T, Gradient>;
}

inline Philox16 choose_philox(const std::string& isa) {
#ifdef SGNS_X86
  if (isa == "avx512") return avx512::philox16;
  if (isa == "avx2") return avx2::philox16;
#endif
  return scalar::philox16;
}

// Random words are the same with all of them.
inline const Philox16 philox16 = choose_philox(instruction_sets().front());

}  // namespace sgns
