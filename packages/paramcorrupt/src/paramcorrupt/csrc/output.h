#pragma once

#include "blocks.h"
#include "pages.h"

namespace paramcorrupt {

CLONES inline void add_each(const uint16_t* __restrict places, int64_t begin, int64_t* __restrict to, int n) {
  for (int i = 0; i < n; ++i) to[i] = begin + places[i];
}

// Selected elements, tensor after tensor: where each begins among them, their places, their values.
template <class S>
class Output {
 public:
  using K = Bits<S>;

  Output(const Blocks& blocks, int64_t size)
      : blocks_(blocks),
        size_(size),
        offsets_(new_vector(int64_t(blocks.sources().size()) + 1, aoti_torch_dtype_int64())),
        index_(new_vector(size, aoti_torch_dtype_int64())),
        value_(new_vector(size, dtype_of(blocks.type()))),
        to_offsets_(offsets_.mutable_data_ptr<int64_t>()),
        to_index_(index_.mutable_data_ptr<int64_t>()),
        to_value_(static_cast<K*>(value_.mutable_data_ptr())) {
    prefer_large_pages(to_index_, size * int64_t(sizeof(int64_t)));
    prefer_large_pages(to_value_, size * int64_t(sizeof(K)));
  }

  // Those of a block, from `at` on. Every block of a tensor must be written, also if nothing of it is selected.
  template <class Value>
  void write(const Source& source, const Block& block, int64_t at, int count, const uint16_t* places,
             const Value& value) {
    if (block.begin == 0) to_offsets_[&source - blocks_.sources().data()] = at;
    if (at + count > size_) return;
    add_each(places, block.begin, to_index_ + at, count);
    for (int i = 0; i < count; ++i) to_value_[at + i] = value(i);
  }

  void give(StableIValue* stack) {
    size_t k = blocks_.sources().size();
    to_offsets_[k] = size_;
    while (k--)
      if (blocks_.sources()[k].size == 0) to_offsets_[k] = to_offsets_[k + 1];
    stack[0] = torch::stable::detail::from(offsets_);
    stack[1] = torch::stable::detail::from(index_);
    stack[2] = torch::stable::detail::from(value_);
  }

 private:
  const Blocks& blocks_;
  const int64_t size_;
  const Tensor offsets_, index_, value_;
  int64_t *const to_offsets_, *const to_index_;
  K* const to_value_;
};

}  // namespace paramcorrupt
