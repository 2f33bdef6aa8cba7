// Compiles the file KERNELS for each width of register, after numbers.h, in a namespace of its own: `baseline`, `avx2`
// and `avx512`. GCC takes comparisons and selections of vectors apart before it inlines, with the instructions of the
// function in which they are written: an attribute of the outermost function would be too late.
#include <algorithm>
#include <limits>

#include "simd.h"

#define WIDTH baseline
namespace vade_robust::WIDTH {
inline constexpr int kBytes = 16;
}
#include "numbers.h"
#include KERNELS
#undef WIDTH

#if defined(__x86_64__) && defined(__linux__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define WIDTH avx2
namespace vade_robust::WIDTH {
inline constexpr int kBytes = 32;
}
#include "numbers.h"
#include KERNELS
#undef WIDTH
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define WIDTH avx512
namespace vade_robust::WIDTH {
inline constexpr int kBytes = 64;
}
#include "numbers.h"
#include KERNELS
#undef WIDTH
#pragma GCC pop_options

// The function of this name for the widest registers that the processor has.
#define WIDEST(...)                                             \
  (__builtin_cpu_supports("x86-64-v4")   ? &avx512::__VA_ARGS__ \
   : __builtin_cpu_supports("x86-64-v3") ? &avx2::__VA_ARGS__   \
                                         : &baseline::__VA_ARGS__)
#else
#define WIDEST(...) (&baseline::__VA_ARGS__)
#endif
