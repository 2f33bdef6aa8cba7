// Dense changes of weights in place that leave what undoes them: a copy, or two bits of each weight.
#include <torch/csrc/stable/library.h>

#include "change.h"
#include "pages.h"

namespace paramcorrupt {
namespace {

static_assert(std::endian::native == std::endian::little);

using torch::stable::detail::from;

Tensor new_bytes(int64_t size) {
  const Tensor bytes = new_vector(size, aoti_torch_dtype_uint8());
  prefer_large_pages(bytes.mutable_data_ptr(), size);
  return bytes;
}

int64_t rounded_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Where the part of each tensor starts in a buffer, and where the last ends. Each starts a line of the cache.
template <size_t N, class Bytes>
std::vector<int64_t> places_of(const Plan<N>& plan, const Bytes& bytes) {
  std::vector<int64_t> places{0};
  for (const Job<N>& job : plan.jobs()) places.push_back(places.back() + rounded_up(bytes(job), 64));
  return places;
}

// --- a copy ---------------------------------------------------------------------------------------------------------

template <size_t N>
std::vector<int64_t> places_of_copies(const Plan<N>& plan) {
  return places_of(plan, [](const Job<N>& job) { return job.size * bytes_of(job.types[0]); });
}

void boxed_apply_backup_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList w(stack[0]), g(stack[1]);
  const Change change(argument<double>(stack[2]), argument<double>(stack[3]));
  const double p = norm_of(change.power);
  const Plan<2> plan({&w, &g});
  const bool past_caches = plan.bytes() >= kStreamed;
  const std::vector<int64_t> places = places_of_copies(plan);
  const Tensor backup = new_bytes(places.back());
  auto* copies = static_cast<char*>(backup.mutable_data_ptr());
  std::vector<Moved> moved(plan.pieces());
  plan.run([&](const Job<2>& job, const Piece& piece) {
    with_type(job.types[0], [&]<class S>(S) {
      S* weights = job.at<S>(0, piece.begin);
      char* kept = copies + places[&job - plan.jobs().data()] + piece.begin * sizeof(S);
      Tile<double> a, distance;
      Tile<Signed<S>> sum;
      Moved& total = moved[piece.number];
      tiles(piece.size, [&](int64_t i, int n) {
        copy(weights + i, kept + i * sizeof(S), n * sizeof(S), past_caches);
        change(job.types[0], job.types[1], job.data[1], piece.begin + i, a, n);
        fetch(weights + i);
        total.changed += add_tile(weights + i, a.values, sum.values, distance.values, n);
        total.add<Arithmetic<S>>(distance.values, p, n);
        std::memcpy(weights + i, sum.values, n * sizeof(S));
      });
    });
    if (past_caches) finish_stream();
  });
  stack[0] = from(summary_of(moved, p));
  stack[1] = from(backup);
}

void boxed_restore_backup_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList w(stack[0]);
  const auto backup = argument<Tensor>(stack[1]);
  const Plan<1> plan({&w});
  const bool past_caches = plan.bytes() >= kStreamed;
  const std::vector<int64_t> places = places_of_copies(plan);
  STD_TORCH_CHECK(backup.numel() == places.back(), "a backup of other tensors");
  const auto* copies = static_cast<const char*>(backup.const_data_ptr());
  plan.run([&](const Job<1>& job, const Piece& piece) {
    const int64_t size = bytes_of(job.types[0]);
    copy(copies + places[&job - plan.jobs().data()] + piece.begin * size, job.at<char>(0, piece.begin * size),
         piece.size * size, past_caches);
    if (past_caches) finish_stream();
  });
}

// --- two bits -------------------------------------------------------------------------------------------------------

constexpr int kQuarter = kTile / 4;  // bytes of codes of a tile, of which byte j has elements j, j + 64, j + 128, ...

template <size_t N>
std::vector<int64_t> places_of_codes(const Plan<N>& plan) {
  return places_of(plan, [](const Job<N>& job) { return rounded_up(job.size, kTile) / 4; });
}

// round(w - a): from it the clean weight is at most a unit of the last place away, but where rounding took more of it.
// One function for both directions: a NaN comes out of both with the same bits.
template <class S>
CLONES void subtract_tile(const Signed<S>* __restrict w, const double* __restrict a, Signed<S>* __restrict bits,
                          int n) {
  for (int i = 0; i < n; ++i) bits[i] = std::bit_cast<Signed<S>>(sum_of(std::bit_cast<S>(w[i]), -a[i]));
}

// The distance of bits in units of the last place: 0, 1 for -1, 2 for 1, 3 for any other.
template <class S>
CLONES void encode_tile(const S* __restrict w, const Signed<S>* __restrict near, uint8_t* __restrict codes, int n) {
  using U = std::make_unsigned_t<Signed<S>>;
  for (int i = 0; i < n; ++i) {
    const U distance = U(std::bit_cast<Signed<S>>(w[i])) - U(near[i]);
    const U folded = U(distance << 1) ^ U(-(distance >> (8 * sizeof(S) - 1)));
    codes[i] = uint8_t(folded < 3 ? folded : 3);
  }
}

template <class B>
CLONES void decode_tile(const uint8_t* __restrict codes, const B* __restrict near, B* __restrict bits, int n) {
  using U = std::make_unsigned_t<B>;
  for (int i = 0; i < n; ++i) bits[i] = B(U(U(near[i]) + (codes[i] >> 1) - (codes[i] & 1)));
}

CLONES void pack_tile(const uint8_t* __restrict codes, uint8_t* __restrict packed) {
  for (int j = 0; j < kQuarter; ++j)
    packed[j] =
        uint8_t(codes[j] | codes[j + kQuarter] << 2 | codes[j + 2 * kQuarter] << 4 | codes[j + 3 * kQuarter] << 6);
}

CLONES void unpack_tile(const uint8_t* __restrict packed, uint8_t* __restrict codes) {
  for (int k = 0; k < 4; ++k)
    for (int j = 0; j < kQuarter; ++j) codes[j + k * kQuarter] = packed[j] >> 2 * k & 3;
}

// Calls visit(element) for every code 3 of a tile.
template <class Visit>
void each_escape(const uint8_t* codes, const Visit& visit) {
  for (int i = 0; i < kTile; i += 8) {
    uint64_t word;
    std::memcpy(&word, codes + i, 8);
    for (uint64_t found = word & word >> 1 & 0x0101010101010101; found; found &= found - 1)
      visit(i + std::countr_zero(found) / 8);
  }
}

void boxed_apply_compact_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList w(stack[0]), g(stack[1]);
  const Change change(argument<double>(stack[2]), argument<double>(stack[3]));
  const double p = norm_of(change.power);
  const Plan<2> plan({&w, &g});
  const std::vector<int64_t> places = places_of_codes(plan);
  const Tensor codes = new_bytes(places.back());
  auto* packed = static_cast<uint8_t*>(codes.mutable_data_ptr());
  std::vector<Moved> moved(plan.pieces());
  std::vector<std::vector<char>> escaped(plan.pieces());  // the bits of weights that a code does not tell, in order
  plan.run([&](const Job<2>& job, const Piece& piece) {
    with_type(job.types[0], [&]<class S>(S) {
      S* weights = job.at<S>(0, piece.begin);
      uint8_t* to = packed + places[&job - plan.jobs().data()] + piece.begin / 4;
      Tile<double> a, distance;
      Tile<Signed<S>> sum;
      Tile<Signed<S>> near;
      Tile<uint8_t> code{};
      Moved& total = moved[piece.number];
      std::vector<char>& old = escaped[piece.number];
      tiles(piece.size, [&](int64_t i, int n) {
        change(job.types[0], job.types[1], job.data[1], piece.begin + i, a, n);
        fetch(weights + i);
        total.changed += add_tile(weights + i, a.values, sum.values, distance.values, n);
        total.add<Arithmetic<S>>(distance.values, p, n);
        subtract_tile<S>(sum.values, a.values, near.values, n);
        encode_tile(weights + i, near.values, code.values, n);
        std::fill(code.values + n, code.values + kTile, uint8_t(0));
        pack_tile(code.values, to + i / 4);
        each_escape(code.values, [&](int k) {
          const auto* bits = reinterpret_cast<const char*>(weights + i + k);
          old.insert(old.end(), bits, bits + sizeof(S));
        });
        std::memcpy(weights + i, sum.values, n * sizeof(S));
      });
    });
  });
  const Tensor starts = new_vector(plan.pieces() + 1, aoti_torch_dtype_int64());
  auto* start = starts.mutable_data_ptr<int64_t>();
  start[0] = 0;
  for (int64_t k = 0; k < plan.pieces(); ++k) start[k + 1] = start[k] + int64_t(escaped[k].size());
  const Tensor bits = new_bytes(start[plan.pieces()]);
  auto* next = static_cast<char*>(bits.mutable_data_ptr());
  for (auto& old : escaped) {
    next = std::copy(old.begin(), old.end(), next);
    std::vector<char>().swap(old);
  }
  stack[0] = from(summary_of(moved, p));
  stack[1] = from(codes);
  stack[2] = from(starts);
  stack[3] = from(bits);
}

void boxed_restore_compact_(StableIValue* stack, uint64_t, uint64_t) {
  const TensorList w(stack[0]), g(stack[1]);
  const Change change(argument<double>(stack[2]), argument<double>(stack[3]));
  const auto codes = argument<Tensor>(stack[4]), starts = argument<Tensor>(stack[5]), bits = argument<Tensor>(stack[6]);
  const Plan<2> plan({&w, &g});
  const std::vector<int64_t> places = places_of_codes(plan);
  const auto* start = static_cast<const int64_t*>(starts.const_data_ptr());
  STD_TORCH_CHECK(
      codes.numel() == places.back() && starts.numel() == plan.pieces() + 1 && bits.numel() == start[plan.pieces()],
      "codes of other tensors");
  const auto* packed = static_cast<const uint8_t*>(codes.const_data_ptr());
  const auto* escaped = static_cast<const char*>(bits.const_data_ptr());
  plan.run([&](const Job<2>& job, const Piece& piece) {
    with_type(job.types[0], [&]<class S>(S) {
      S* weights = job.at<S>(0, piece.begin);
      const uint8_t* kept = packed + places[&job - plan.jobs().data()] + piece.begin / 4;
      const char* old = escaped + start[piece.number];
      Tile<double> a;
      Tile<Signed<S>> near, sum;
      Tile<uint8_t> code;
      tiles(piece.size, [&](int64_t i, int n) {
        change(job.types[0], job.types[1], job.data[1], piece.begin + i, a, n);
        fetch(weights + i);
        std::memcpy(sum.values, weights + i, n * sizeof(S));
        subtract_tile<S>(sum.values, a.values, near.values, n);
        unpack_tile(kept + i / 4, code.values);
        decode_tile(code.values, near.values, sum.values, n);
        std::memcpy(weights + i, sum.values, n * sizeof(S));
        each_escape(code.values, [&](int k) {
          std::memcpy(weights + i + k, old, sizeof(S));
          old += sizeof(S);
        });
      });
    });
  });
}

}  // namespace
}  // namespace paramcorrupt

STABLE_TORCH_LIBRARY_IMPL(paramcorrupt, CPU, m) {
  m.impl("apply_backup_", paramcorrupt::boxed_apply_backup_);
  m.impl("restore_backup_", paramcorrupt::boxed_restore_backup_);
  m.impl("apply_compact_", paramcorrupt::boxed_apply_compact_);
  m.impl("restore_compact_", paramcorrupt::boxed_restore_compact_);
}
