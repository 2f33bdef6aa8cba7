#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <span>
#include <vector>

#include "arguments.h"
#include "keys.h"

// How the elements of a list of tensors are read, and shared out among threads.
namespace paramcorrupt {

struct Source {
  const void* data;
  Type type;
  int64_t size, start, first_block;  // start: in the concatenation of all tensors
};

// Consecutive elements of a tensor. They depend on the sizes of the tensors alone.
struct Block {
  int64_t begin, number;
  int size;
};

class Blocks {
 public:
  explicit Blocks(const TensorList& list) : sources_(list.size()) {
    for (size_t k = 0; k < sources_.size(); ++k) {
      const AtenTensorHandle x = list[k];
      STD_TORCH_CHECK(get(aoti_torch_is_contiguous, x), "tensors must be contiguous");
      const int64_t size = get(aoti_torch_get_numel, x);
      sources_[k] = {get(torch_get_const_data_ptr, x), type_of(x), size, size_, count_};
      type_ = k == 0 || sources_[k].type == type_                           ? sources_[k].type
              : sources_[k].type == Type::kDouble || type_ == Type::kDouble ? Type::kDouble
                                                                            : Type::kFloat;
      size_ += size;
      count_ += (size + kBlock - 1) / kBlock;
    }
  }

  std::span<const Source> sources() const { return sources_; }
  int64_t size() const { return size_; }    // in elements
  int64_t count() const { return count_; }  // of blocks
  // The type of all, of several float32, or float64 where it is among them: its bits are compared.
  Type type() const { return type_; }

  // Calls visit(source, block) for blocks first .. last, in order.
  template <class Visit>
  void walk(int64_t first, int64_t last, const Visit& visit) const {
    const auto starts_after = [](int64_t block, const Source& source) { return block < source.first_block; };
    auto source = std::upper_bound(sources_.begin(), sources_.end(), first, starts_after) - 1;
    for (int64_t number = first; number < last; ++source) {
      int64_t begin = (number - source->first_block) * kBlock;
      for (; begin < source->size && number < last; begin += kBlock, ++number)
        visit(*source, Block{begin, number, int(std::min<int64_t>(kBlock, source->size - begin))});
    }
  }

  // Calls work(each) for parts of the blocks, in parallel; each(visit) walks through the part.
  template <class Work>
  void run(const Work& work) const {
    torch::stable::parallel_for(0, count_, kGrain / kBlock, [&](int64_t first, int64_t last) {
      work([&](const auto& visit) { walk(first, last, visit); });
    });
  }

 private:
  std::vector<Source> sources_;
  int64_t size_ = 0, count_ = 0;
  Type type_ = Type::kFloat;
};

template <class K>
struct KeyTile {
  alignas(64) K bits[kBlock];
};

template <class To, class From>
CLONES void widen_bits(const From* __restrict from, Bits<To>* __restrict to, int n) {
  for (int i = 0; i < n; ++i) to[i] = std::bit_cast<Bits<To>>(To(widen(from[i])));
}

// The bits of elements as type S: in the tensor itself, or in the tile if it has another type.
template <class S>
inline const Bits<S>* bits_of(const Source& source, int64_t begin, int n, KeyTile<Bits<S>>& tile) {
  const Bits<S>* bits = tile.bits;
  with_type(source.type, [&]<class From>(From) {
    const auto* from = static_cast<const From*>(source.data) + begin;
    if constexpr (std::is_same_v<From, S>)
      bits = reinterpret_cast<const Bits<S>*>(from);
    else if constexpr (sizeof(From) < sizeof(S))
      widen_bits<S>(from, tile.bits, n);
  });
  return bits;
}

template <class S>
inline const Bits<S>* bits_of(const Source& source, const Block& block, KeyTile<Bits<S>>& tile) {
  return bits_of<S>(source, block.begin, block.size, tile);
}

}  // namespace paramcorrupt
