#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// Zeros that begin at a cache line; large ones at a huge page, which spares look-ups of addresses.
namespace sgns {

struct Free {
  void operator()(void* p) const noexcept { std::free(p); }
};

template <class T>
class Aligned {
 public:
  explicit Aligned(size_t size) {
    const size_t page = size_t(2) << 20, unit = size * sizeof(T) >= page ? page : 64;
    const size_t bytes = (size * sizeof(T) + unit) / unit * unit;
    data_.reset(static_cast<T*>(std::aligned_alloc(unit, bytes)));
    if (!data_) throw std::bad_alloc();
#if defined(__linux__)
    if (unit == page) madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
    std::fill(data_.get(), data_.get() + size, T(0));
  }

  T* data() const { return data_.get(); }
  T* release() { return data_.release(); }

 private:
  std::unique_ptr<T, Free> data_;
};

}  // namespace sgns
