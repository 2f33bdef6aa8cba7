#pragma once

#include <cstdint>
#include <vector>

#include "segment.h"

// Which weights fired for a path.
namespace cws {

enum class Feature : int { kUnigram, kBigram, kSkip, kJoint, kCharmark, kTransition };

struct Fired {
  Feature feature;
  int which;              // d of a unigram or bigram, number of a lexicon, the tag before
  int key;                // m and its neighbours of a joint row
  int32_t shared, added;  // weights, in units of score
};

// What fired at a position, for its tag; `before` is the tag there, -1 at the beginning of a sentence.
inline std::vector<Fired> fired(const Model& model, const Tables& active, const Rows& rows, int64_t i, int tag,
                                int before) {
  const Tables& shared = model.general();
  std::vector<Fired> out;
  const auto add = [&](Feature feature, int which, int key, int own, int all) {
    if (own || all) out.push_back({feature, which, key, own, all - own});
  };
  for (int d = -2; d <= 2; ++d) {
    const size_t at = 20 * size_t(rows.symbols[i + d]) + 4 * size_t(d + 2) + tag;
    add(Feature::kUnigram, d, 0, shared.unigram[at], active.unigram[at]);
  }
  for (int d = -2; d <= 1; ++d) {
    const size_t at = 16 * size_t(rows.bigram[i + d]) + 4 * size_t(d + 2) + tag;
    const int8_t* delta = active.delta(rows.bigram[i + d]);
    add(Feature::kBigram, d, 0, shared.bigram[at], active.bigram[at] + (delta ? delta[4 * (1 - d) + tag] : 0));
  }
  if (shared.skip) {
    const size_t at = 4 * size_t(rows.skip[i]) + tag;
    add(Feature::kSkip, 0, 0, shared.skip[at], active.skip[at]);
  }
  for (int k = 0; k < model.n_lexicons(); ++k) {
    size_t at = 4 * size_t(rows.joint[k][i]) + tag;
    add(Feature::kJoint, k, rows.joint[k][i], shared.joint[k][at], active.joint[k][at]);
    at = 4 * size_t(rows.charmark[k][i]) + tag;
    add(Feature::kCharmark, k, rows.joint[k][i], shared.charmark[k][at], active.charmark[k][at]);
  }
  if (before >= 0) {
    const int at = 4 * before + tag;
    add(Feature::kTransition, before, 0, shared.transition[at], active.transition[at]);
  }
  return out;
}

}  // namespace cws
