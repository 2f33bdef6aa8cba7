#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "alias.h"
#include "kernels.h"

// The samples of a sentence: which words stay, how wide their windows are, their negatives and their images.
namespace sgns {

inline constexpr uint32_t kNone = 0xffffffffu;  // a negative or an image that was dropped
inline constexpr int kTries = 8;
inline constexpr uint32_t kGroup = 8;  // centres that share negatives
inline constexpr uint32_t kImageStream = 0x80000000u;
inline constexpr uint32_t kRoundingStream = 0xc0000000u;

enum class Sharing { center, batch, pair };

struct Images {
  const uint64_t* first;  // [V + 1]
  const uint32_t* ids;    // ascending within a word
  uint32_t size;          // of the bank
  uint32_t negative;

  // Words that no image, or every image, shows have no image term.
  bool grounded(uint32_t word) const {
    const uint64_t own = size ? first[word + 1] - first[word] : 0;
    return own && own < size;
  }
};

// The words of a sentence that sub-sampling kept.
struct Kept {
  std::vector<uint32_t> position, word, window;

  void resize(size_t n) { position.resize(n), word.resize(n), window.resize(n); }
  uint32_t size() const { return uint32_t(word.size()); }
  uint32_t left(uint32_t i) const { return i > window[i] ? i - window[i] : 0; }
  uint32_t right(uint32_t i) const { return std::min(size(), i + window[i] + 1); }  // one past the last
  uint32_t contexts(uint32_t i) const { return right(i) - left(i) - 1; }
};

struct Sampler {
  uint64_t seed;
  uint32_t epoch;
  const uint32_t* keep;
  AliasTable noise;
  Images images;
  uint32_t window, negative;
  bool shrink;
  Sharing sharing;

  void select(const uint32_t* ids, uint32_t n, uint64_t sentence, Kept& kept) const {
    kept.resize(n);
    uint32_t position[kLanes], stream[kLanes] = {}, r[4][kLanes], at = 0;
    for (uint32_t start = 0; start < n; start += kLanes) {
      for (uint32_t i = 0; i < kLanes; ++i) position[i] = start + i;
      philox16(seed, counter(sentence, epoch), position, stream, r);
      for (uint32_t i = 0; i < std::min<uint32_t>(kLanes, n - start); ++i) {
        const uint32_t word = ids[start + i], share = keep[word];
        kept.position[at] = start + i;
        kept.word[at] = word;
        kept.window[at] = shrink ? 1 + uint32_t(uint64_t(r[1][i]) * window >> 32) : window;
        at += uint32_t(share == kAlways) | uint32_t(r[0][i] < share);
      }
    }
    kept.resize(at);
  }

  // Rows of `negative` words for the centres [first, last): one row a centre, or with "pair" one a context.
  void negatives(const Kept& kept, uint64_t sentence, uint32_t first, uint32_t last, std::vector<uint32_t>& out) const {
    size_t rows = last - first;
    if (sharing == Sharing::pair) {
      rows = 0;
      for (uint32_t i = first; i < last; ++i) rows += kept.contexts(i);
    }
    out.resize(rows * negative);
    Requests requests(*this, counter(sentence, epoch), out.data());
    const uint32_t stride = sharing == Sharing::batch ? kGroup : 1;
    for (uint32_t i = first; i < last; i += stride) {
      if (sharing == Sharing::pair) {
        for (uint32_t slot = 0; slot < kept.contexts(i); ++slot) {
          requests.row(kept.position[i], kept.word[i], (1 + slot) << 16);
        }
      } else {
        requests.row(kept.position[i], kept.word[i], 0);
      }
    }
    requests.flush();
    if (sharing == Sharing::batch) share(kept, first, last, out.data());
  }

  // The own image and the others of one grounded centre: 1 + images.negative indices.
  void image(uint32_t position, uint32_t word, uint64_t sentence, uint32_t* out) const {
    const Counter middle = counter(sentence, epoch);
    const uint32_t* begin = images.ids + images.first[word];
    const uint32_t* end = images.ids + images.first[word + 1];
    uint32_t same[kLanes], stream[kLanes], r[4][kLanes];
    for (uint32_t i = 0; i < kLanes; ++i) same[i] = position, stream[i] = kImageStream + i;
    philox16(seed, middle, same, stream, r);
    const auto random = [&](uint32_t j) {
      const uint32_t i = 1 + j / 2;
      return i < kLanes ? r[j % 2 * 2][i] : philox(seed, middle, position, kImageStream + i)[j % 2 * 2];
    };
    out[0] = begin[uint64_t(r[0][0]) * uint64_t(end - begin) >> 32];
    for (uint32_t k = 0; k < images.negative; ++k) {
      out[1 + k] = kNone;
      for (uint32_t j = k; j < kTries * images.negative; j += images.negative) {
        const uint32_t image = uint32_t(uint64_t(random(j)) * images.size >> 32);
        if (std::binary_search(begin, end, image)) continue;
        out[1 + k] = image;
        break;
      }
    }
  }

 private:
  // Random words are made for sixteen requests at once, whatever centre they belong to.
  struct Requests {
    const Sampler& sampler;
    Counter middle;
    uint32_t* out;
    uint32_t n = 0;
    uint32_t position[kLanes], stream[kLanes], target[kLanes], count[kLanes];

    Requests(const Sampler& s, Counter m, uint32_t* o) : sampler(s), middle(m), out(o) {}

    void row(uint32_t at, uint32_t word, uint32_t offset) {
      for (uint32_t k = 0; k < sampler.negative; k += 2) {
        position[n] = at, stream[n] = offset + 1 + k / 2, target[n] = word;
        count[n] = std::min<uint32_t>(2, sampler.negative - k);
        if (++n == kLanes) flush();
      }
    }

    void flush() {
      if (!n) return;
      for (uint32_t i = n; i < kLanes; ++i) position[i] = stream[i] = 0;
      uint32_t r[4][kLanes];
      philox16(sampler.seed, middle, position, stream, r);
      for (uint32_t i = 0; i < n; ++i) {
        for (uint32_t h = 0; h < count[i]; ++h) {
          const uint32_t word = sampler.noise.draw(r[2 * h][i], r[2 * h + 1][i]);
          *out++ = word == target[i] && sampler.sharing != Sharing::batch ? again(i, h) : word;
        }
      }
      n = 0;
    }

    uint32_t again(uint32_t i, uint32_t half) const {
      const uint32_t offset = stream[i] >> 16 << 16, k = 2 * (stream[i] - offset - 1) + half;
      for (uint32_t j = k + sampler.negative; j < kTries * sampler.negative; j += sampler.negative) {
        const auto r = philox(sampler.seed, middle, position[i], offset + 1 + j / 2);
        const uint32_t word = sampler.noise.draw(r[j % 2 * 2], r[j % 2 * 2 + 1]);
        if (word != target[i]) return word;
      }
      return kNone;
    }
  };

  // Hands the row of a group to all of its centres; a negative that is the target of one is none for that.
  void share(const Kept& kept, uint32_t first, uint32_t last, uint32_t* rows) const {
    for (uint32_t i = last - first; i-- > 0;) {
      for (uint32_t k = 0; k < negative; ++k) {
        const uint32_t word = rows[i / kGroup * negative + k];
        rows[i * negative + k] = word == kept.word[first + i] ? kNone : word;
      }
    }
  }
};

}  // namespace sgns
