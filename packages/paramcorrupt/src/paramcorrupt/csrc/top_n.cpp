// Selects and collects at once: one pass keeps all that may belong to the n largest, if that is little.
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <memory>
#include <optional>

#include "collect.h"
#include "select.h"

namespace paramcorrupt {
namespace {

constexpr int64_t kKept = 27 << 18;  // bytes, at most: 8 MiB with the sample and the parts

template <class S>
class TopN {
 public:
  using K = Bits<S>;

  TopN(const Blocks& blocks, int64_t n) : blocks_(blocks), n_(n) {}

  // Gives what `collect` gives, and returns what `select` returns.
  std::array<int64_t, 4> run(StableIValue* stack) {
    const Bracket<K> bracket = bracket_of<S>(blocks_, n_);
    const bool few = n_ <= std::min(kCapacity, blocks_.size() / 32) && blocks_.count() <= kParts;
    if (few && keep(bracket) && find(bracket.high)) {
      write().give(stack);
      return {key_, above_, n_ - above_, kSampled};
    }
    bits_.reset();
    places_.reset();
    const std::array<int64_t, 4> found = Selection<S>(blocks_, n_).run(bracket);
    Collection<S>(blocks_, K(found[0]), found[2]).run(n_).give(stack);
    return found;
  }

 private:
  static constexpr int64_t kCapacity = kKept / int64_t(sizeof(K) + sizeof(uint16_t)), kParts = 1 << 17;

  // Where the elements of a block are among those that are kept.
  struct Part {
    int32_t begin, size;
  };

  // Keeps the elements that are not below the bracket.
  bool keep(const Bracket<K>& bracket) {
    const int64_t capacity = std::min(kCapacity, blocks_.size());
    bits_.reset(new K[capacity]);
    places_.reset(new uint16_t[capacity]);
    parts_.resize(blocks_.count());
    const K limit = std::max<K>(bracket.low, 0) - 1;
    std::atomic<int64_t> end = 0;
    blocks_.run([&, limit](const auto& each) {
      KeyTile<K> tile;
      uint16_t places[kBlock + kSlack];
      each([&](const Source& source, const Block& block) {
        if (end.load(std::memory_order_relaxed) > capacity) return;
        const K* bits = bits_of<S>(source, block, tile);
        const int found = find_above(bits, block.size, limit, places);
        const int64_t at = end.fetch_add(found, std::memory_order_relaxed);
        if (at + found > capacity) return;
        parts_[block.number] = {int32_t(at), found};
        for (int i = 0; i < found; ++i) bits_[at + i] = bits[places[i]];
        std::copy_n(places, found, places_.get() + at);
      });
    });
    kept_ = end;
    return n_ <= kept_ && kept_ <= capacity;
  }

  // Finds the threshold among them, if it is not above the bracket.
  bool find(K high) {
    const K *const begin = bits_.get(), *const end = begin + kept_;
    const int64_t inside = std::count_if(begin, end, [high](K bits) { return key(bits) <= high; });
    if (n_ <= kept_ - inside) return false;
    const std::unique_ptr<K[]> candidates(new K[inside + 1]);
    K *const first = candidates.get(), *const nth = first + (n_ - (kept_ - inside) - 1), *last = first;
    for (const K* bits = begin; bits < end; ++bits) {
      *last = key(*bits);
      last += *last <= high;
    }
    std::nth_element(first, nth, last, std::greater());
    key_ = *nth;
    above_ = kept_ - inside + std::count_if(first, nth, [nth](K k) { return k > *nth; });
    return true;
  }

  Output<S> write() const {
    Output<S> output(blocks_, n_);
    uint16_t places[kBlock];
    K values[kBlock];
    int64_t at = 0, ties = n_ - above_;
    blocks_.walk(0, blocks_.count(), [&](const Source& source, const Block& block) {
      const auto [begin, size] = parts_[block.number];
      int selected = 0;
      for (int i = 0; i < size; ++i) {
        const K bits = bits_[begin + i], k = key(bits);
        const bool taken = k > key_ || (k == key_ && ties > 0);
        ties -= taken && k == key_;
        places[selected] = places_[begin + i];
        values[selected] = bits;
        selected += taken;
      }
      output.write(source, block, at, selected, places, [&](int i) { return values[i]; });
      at += selected;
    });
    return output;
  }

  const Blocks& blocks_;
  const int64_t n_;
  std::unique_ptr<K[]> bits_;
  std::unique_ptr<uint16_t[]> places_;
  std::vector<Part> parts_;
  int64_t kept_ = 0, above_ = 0;
  K key_ = 0;
};

void boxed_top_n(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList list(stack[0]);
  const auto n = argument<int64_t>(stack[1]);
  const Blocks blocks(list);
  STD_TORCH_CHECK(1 <= n && n <= blocks.size(), "n must be from 1 to the number of elements");
  const Tensor threshold = new_vector(4, aoti_torch_dtype_int64());
  with_type(blocks.type(), [&]<class S>(S) {
    std::ranges::copy(TopN<S>(blocks, n).run(stack + 1), threshold.mutable_data_ptr<int64_t>());
  });
  stack[0] = torch::stable::detail::from(threshold);
}

}  // namespace
}  // namespace paramcorrupt

STABLE_TORCH_LIBRARY_IMPL(paramcorrupt, CPU, m) { m.impl("top_n", paramcorrupt::boxed_top_n); }
