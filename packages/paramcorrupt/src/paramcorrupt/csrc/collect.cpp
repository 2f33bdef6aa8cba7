// The elements that a threshold selects, in order: their places and their values.
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <optional>

#include "blocks.h"
#include "find.h"

namespace paramcorrupt {
namespace {

template <class S>
class Collection {
 public:
  using K = Bits<S>;

  // `ties` of the elements with this key are selected, the first.
  Collection(const Blocks& blocks, K key, int64_t ties)
      : blocks_(blocks), key_(key), ties_(ties), sizes_(blocks.sources().size()) {}

  // Collects in one pass, by one thread, if `expected` elements are there. It is known where a threshold is of this
  // list.
  bool run_at_once(int64_t expected) {
    if (torch::stable::get_num_threads() > 1 || expected > blocks_.size()) return false;
    allocate(expected);
    return write(0, blocks_.count(), 0, ties_) == expected;
  }

  // Counts, then collects in parallel.
  void run() {
    std::vector<Count> counts(blocks_.count());
    blocks_.run([&](const auto& each) {
      KeyTile<K> tile;
      uint16_t places[kBlock + kSlack];
      each([&](const Source& source, const Block& block) {
        const K* bits = bits_of<S>(source, block, tile);
        const int above = find_above(bits, block.size, key_, places);
        const int from = find_above(bits, block.size, K(key_ - 1), places);
        counts[block.number] = {uint16_t(above), uint16_t(from - above)};
      });
    });
    // Where the output of block `number` begins, and the ties that are left for it.
    const auto before = [&](int64_t number) {
      int64_t above = 0, equal = 0;
      for (int64_t i = 0; i < number; ++i) {
        above += counts[i].above;
        equal += counts[i].equal;
      }
      equal = std::min(equal, ties_);
      return std::pair(above + equal, ties_ - equal);
    };
    allocate(before(blocks_.count()).first);
    torch::stable::parallel_for(0, blocks_.count(), kGrain / kBlock, [&](int64_t first, int64_t last) {
      const auto [at, ties] = before(first);
      write(first, last, at, ties);
    });
  }

  void give(StableIValue* stack) {
    const Tensor offsets = new_vector(int64_t(sizes_.size()) + 1, aoti_torch_dtype_int64());
    int64_t* const to = offsets.template mutable_data_ptr<int64_t>();
    to[0] = 0;
    for (size_t k = 0; k < sizes_.size(); ++k) to[k + 1] = to[k] + sizes_[k];
    stack[0] = torch::stable::detail::from(offsets);
    stack[1] = torch::stable::detail::from(*index_);
    stack[2] = torch::stable::detail::from(*value_);
  }

 private:
  struct Count {
    uint16_t above, equal;
  };

  void allocate(int64_t size) {
    size_ = size;
    index_ = new_vector(size, aoti_torch_dtype_int64());
    value_ = new_vector(size, dtype_of(blocks_.type()));
    std::ranges::fill(sizes_, 0);
  }

  // Writes what is selected of blocks first .. last at `at`, unless there is more than expected. Returns the end.
  int64_t write(int64_t first, int64_t last, int64_t at, int64_t ties) {
    int64_t* const index = index_->template mutable_data_ptr<int64_t>();
    K* const value = static_cast<K*>(value_->mutable_data_ptr());
    KeyTile<K> tile;
    uint16_t places[kBlock + kSlack];
    blocks_.walk(first, last, [&](const Source& source, const Block& block) {
      const K* bits = bits_of<S>(source, block, tile);
      const int found = select(bits, block.size, ties, places);
      if (at + found <= size_) {
        for (int i = 0; i < found; ++i) index[at + i] = block.begin + places[i];
        for (int i = 0; i < found; ++i) value[at + i] = bits[places[i]];
      }
      at += found;
      std::atomic_ref(sizes_[&source - blocks_.sources().data()]) += found;
    });
    return at;
  }

  int select(const K* bits, int n, int64_t& ties, uint16_t* places) const {
    if (ties == 0) return find_above(bits, n, key_, places);
    const int found = find_above(bits, n, K(key_ - 1), places);
    int selected = 0;
    for (int i = 0; i < found; ++i) {
      const bool equal = key(bits[places[i]]) == key_, taken = !equal || ties > 0;
      places[selected] = places[i];
      selected += taken;
      ties -= equal && taken;
    }
    return selected;
  }

  const Blocks& blocks_;
  const K key_;
  const int64_t ties_;
  std::vector<int64_t> sizes_;  // of the output of each tensor
  std::optional<Tensor> index_, value_;
  int64_t size_ = 0;
};

void boxed_collect(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList list(stack[0]);
  const auto threshold = argument<Tensor>(stack[1]);
  STD_TORCH_CHECK(threshold.numel() == 4 && threshold.is_contiguous(), "threshold must be that of select");
  const auto* const t = threshold.const_data_ptr<int64_t>();
  const Blocks blocks(list);
  with_type(blocks.type(), [&]<class S>(S) {
    Collection<S> collection(blocks, Bits<S>(t[0]), t[2]);
    if (!collection.run_at_once(t[1] + t[2])) collection.run();
    collection.give(stack);
  });
}

}  // namespace
}  // namespace paramcorrupt

STABLE_TORCH_LIBRARY_IMPL(paramcorrupt, CPU, m) { m.impl("collect", paramcorrupt::boxed_collect); }
