// Counts and sums of magnitudes by some bits of their keys.
#include <torch/csrc/stable/library.h>

#include "blocks.h"

namespace paramcorrupt {
namespace {

constexpr int64_t kBins = 1 << 17;  // in all tables of the parts together, at most: 2 MiB

// Parts of the blocks have tables of their own, which are added in order: the sums do not depend on the threads.
template <class S>
void histogram(const Blocks& blocks, int64_t prefix, int prefix_bits, int bits, int64_t* counts, double* sums) {
  using K = Bits<S>;
  const int rest = int(8 * sizeof(K)) - 1 - prefix_bits - bits;
  STD_TORCH_CHECK(prefix_bits >= 0 && bits >= 0 && rest >= 0, "a prefix and the bits after it must fit into a key");
  const int64_t bins = int64_t(1) << bits, parts = std::clamp<int64_t>(kBins / bins, 1, 16);
  std::vector<int64_t> part_counts((parts - 1) * bins);
  std::vector<double> part_sums((parts - 1) * bins);
  std::fill_n(counts, bins, 0);
  std::fill_n(sums, bins, 0.0);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    KeyTile<K> tile;
    for (int64_t part = first; part < last; ++part) {
      int64_t* const count = part ? part_counts.data() + (part - 1) * bins : counts;
      double* const sum = part ? part_sums.data() + (part - 1) * bins : sums;
      blocks.walk(blocks.count() * part / parts, blocks.count() * (part + 1) / parts,
                  [&](const Source& source, const Block& block) {
        const K* x = bits_of<S>(source, block, tile);
        for (int i = 0; i < block.size; ++i) {
          const K k = key(x[i]);
          const auto bin = uint64_t(k >> rest) - (uint64_t(prefix) << bits);
          if (bin >= uint64_t(bins)) continue;
          ++count[bin];
          sum[bin] += magnitude<S>(k);
        }
      });
    }
  });
  for (int64_t i = 0; i < (parts - 1) * bins; ++i) {
    counts[i % bins] += part_counts[i];
    sums[i % bins] += part_sums[i];
  }
}

void boxed_key_histogram(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList list(stack[0]);
  const auto prefix = argument<int64_t>(stack[1]), prefix_bits = argument<int64_t>(stack[2]);
  const auto bits = argument<int64_t>(stack[3]);
  STD_TORCH_CHECK(0 <= bits && bits <= 31, "bits must be from 0 to 31");
  const Blocks blocks(list);
  const Tensor counts = new_vector(int64_t(1) << bits, aoti_torch_dtype_int64());
  const Tensor sums = new_vector(int64_t(1) << bits, aoti_torch_dtype_float64());
  with_type(blocks.type(), [&]<class S>(S) {
    histogram<S>(blocks, prefix, int(prefix_bits), int(bits), counts.mutable_data_ptr<int64_t>(),
                 sums.mutable_data_ptr<double>());
  });
  stack[0] = torch::stable::detail::from(counts);
  stack[1] = torch::stable::detail::from(sums);
}

}  // namespace
}  // namespace paramcorrupt

STABLE_TORCH_LIBRARY_IMPL(paramcorrupt, CPU, m) { m.impl("key_histogram", paramcorrupt::boxed_key_histogram); }
