#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// Sums over the legal paths of a chain of the tags B, M, E, S: four numbers at a time, scaled at each position.
namespace cws {

using Tags = float __attribute__((vector_size(16)));

// What is to be learnt from a sentence, and the buffers of its computation.
struct Chain {
  std::vector<Tags> emission;    // in: scores in nats
  std::vector<Tags> difference;  // out: P(y_i) of the model minus that of the labels
  float edges[16];               // out: the same for pairs (tag before, tag), summed
  double loss = 0;               // out: -log P(labels)

  // `allowed` has a bit for each tag that the labels permit at a position: one bit where they are known.
  void learn(int64_t n, const float* transition, const uint8_t* allowed) {
    float t[16];
    for (int j = 0; j < 16; ++j) t[j] = std::exp(std::clamp(transition[j], -kSteepest, kSteepest));
    potential_.resize(n);
    bool known = true;
    for (int64_t i = 0; i < n; ++i) {
      const Tags v = emission[i];
      const float most = std::max(std::max(v[0], v[1]), std::max(v[2], v[3]));
      for (int y = 0; y < 4; ++y) potential_[i][y] = std::exp(std::max(v[y] - most, -kDeepest));
      known &= (allowed[i] & (allowed[i] - 1)) == 0;
    }
    difference.assign(n, Tags{});
    std::memset(edges, 0, sizeof edges);
    const double all = expect(n, t, nullptr, 1);
    loss = all - (known ? follow(n, t, allowed) : expect(n, t, allowed, -1));
  }

 private:
  enum { B, M, E, S };
  using Index = int32_t __attribute__((vector_size(16)));

  Tags masked(int64_t i, const uint8_t* allowed) const {
    Tags p = potential_[i];
    if (allowed) {
      for (int y = 0; y < 4; ++y) p[y] = allowed[i] >> y & 1 ? p[y] : 0;
    }
    return p;
  }

  // Subtracts the one path that is allowed; returns its score.
  double follow(int64_t n, const float* t, const uint8_t* allowed) {
    double score = 0;
    for (int64_t i = 0, before = 0; i < n; ++i) {
      const int y = std::countr_zero(allowed[i]);
      difference[i][y] -= 1;
      score += std::log(potential_[i][y]);
      if (i) {
        edges[before * 4 + y] -= 1;
        score += std::log(t[before * 4 + y]);
      }
      before = y;
    }
    return score;
  }

  // Adds sign times the expectations over the allowed paths; returns the logarithm of their sum.
  double expect(int64_t n, const float* t, const uint8_t* allowed, float sign) {
    alpha_.resize(n);
    // Each tag has two legal predecessors: E and S of B and S, B and M of M and E.
    const Index first = {E, B, B, E}, second = {S, M, M, S};
    const Tags from_first = {t[E * 4 + B], t[B * 4 + M], t[B * 4 + E], t[E * 4 + S]};
    const Tags from_second = {t[S * 4 + B], t[M * 4 + M], t[M * 4 + E], t[S * 4 + S]};
    double log_sum = 0, product = 1;
    Tags v{};
    for (int64_t i = 0; i < n; ++i) {
      if (i == 0) {
        v = masked(0, allowed) * Tags{1, 0, 0, 1};
      } else {
        v = (__builtin_shuffle(v, first) * from_first + __builtin_shuffle(v, second) * from_second) *
            masked(i, allowed);
      }
      if (i == n - 1) v *= Tags{0, 0, 1, 1};
      const float sum = total(v);
      v /= sum;
      alpha_[i] = v;
      product *= sum;
      if (product < 1e-200 || product > 1e200 || i == n - 1) {
        log_sum += std::log(product);
        product = 1;
      }
    }
    // B and M are left for M and E, the others for B and S.
    const Index next_first = {M, M, B, B}, next_second = {E, E, S, S};
    const Tags to_first = {t[B * 4 + M], t[M * 4 + M], t[E * 4 + B], t[S * 4 + B]};
    const Tags to_second = {t[B * 4 + E], t[M * 4 + E], t[E * 4 + S], t[S * 4 + S]};
    Tags beta = {0, 0, 1, 1}, into_first{}, into_second{};
    for (int64_t i = n - 1; i >= 0; --i) {
      const Tags here = alpha_[i] * beta;
      difference[i] += sign / total(here) * here;
      if (i == 0) break;
      const Tags out = masked(i, allowed) * beta;
      const Tags a = __builtin_shuffle(out, next_first) * to_first, b = __builtin_shuffle(out, next_second) * to_second;
      beta = a + b;
      const float share = 1 / total(alpha_[i - 1] * beta);
      into_first += share * (alpha_[i - 1] * a);
      into_second += share * (alpha_[i - 1] * b);
      beta /= total(beta);
    }
    for (int y = 0; y < 4; ++y) {
      edges[y * 4 + next_first[y]] += sign * into_first[y];
      edges[y * 4 + next_second[y]] += sign * into_second[y];
    }
    return log_sum;
  }

  static float total(Tags v) { return v[0] + v[1] + v[2] + v[3]; }

  // In nats: scores beyond, which occur while rates are high, are cut off, so that no sum of paths is 0 or infinite.
  static constexpr float kDeepest = 40, kSteepest = 15;
  std::vector<Tags> potential_, alpha_;
};

}  // namespace cws
