#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "simd.h"

// A linear chain over T tags in scaled float32 recursions: log Z, marginals, and the gradient of a sentence's loss.
namespace cws::tagger {

// Helpers of functions with CLONES, which must become part of each clone.
#define ALWAYS inline __attribute__((always_inline))

inline constexpr int kLanes = 16;
ALWAYS int padded(int tags) { return (tags + kLanes - 1) / kLanes * kLanes; }

// exp(x) for x <= 0, to 2 ulp; below -40 it is exp(-40): then a product of two and of
// an alpha, of which the largest is at least 1 / 127, is a normal number, and no scaled sum can vanish.
ALWAYS float exponential(float x) {
  x = x < -40.0f ? -40.0f : x;
  const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // nearest integer, in any instruction set
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

// Sums in an order that does not depend on the width of the machine's vectors.
ALWAYS float sum(const float* x, int n) {
  float lanes[kLanes] = {};
  for (int i = 0; i < n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] += x[i + j];
  }
  for (int w = kLanes / 2; w > 0; w /= 2) {
    for (int j = 0; j < w; ++j) lanes[j] += lanes[j + w];
  }
  return lanes[0];
}

// exp(transition - its largest entry), rows by the previous tag, and the same transposed. Padding is zero.
struct Transitions {
  int tags = 0, pad = 0;
  float shift = 0;
  std::vector<float> rows, columns;

  void set(const std::vector<float>& scores, int tags_) {  // [tags, pad]
    tags = tags_;
    pad = padded(tags);
    rows.assign(size_t(pad) * pad, 0);
    columns = rows;
    shift = scores[0];
    for (int p = 0; p < tags; ++p) {
      for (int t = 0; t < tags; ++t) shift = std::max(shift, scores[size_t(p) * pad + t]);
    }
    for (int p = 0; p < tags; ++p) {
      for (int t = 0; t < tags; ++t) {
        rows[size_t(p) * pad + t] = columns[size_t(t) * pad + p] = exponential(scores[size_t(p) * pad + t] - shift);
      }
    }
  }
};

struct Chain {
  double log_z = 0;
  std::vector<float> potentials, alpha, beta, nodes;  // [length, pad]
  std::vector<float> scale, edges;                    // [length]; [tags, pad], added to
};

// out[t] = sum over p of x[p] * matrix[p, t]
ALWAYS void multiply(const float* x, const float* matrix, int tags, int pad, float* out) {
  for (int t = 0; t < pad; ++t) out[t] = 0;
  for (int p = 0; p < tags; ++p) {
    const float v = x[p];
    if (v == 0) continue;
    const float* row = matrix + size_t(p) * pad;
    for (int t = 0; t < pad; ++t) out[t] += v * row[t];
  }
}

// Marginals of the paths that keep to `allowed` ([length] rows of 0 and 1 of width pad; null: all paths). Node
// marginals are written to chain.nodes, edge marginals added to chain.edges.
CLONES void marginals(const float* emissions, int length, const Transitions& transitions, const float* const* allowed,
                      Chain& chain) {
  const int tags = transitions.tags, pad = transitions.pad;
  const size_t size = size_t(length) * pad;
  chain.potentials.resize(size);
  chain.alpha.resize(size);
  chain.beta.resize(size);
  chain.nodes.resize(size);
  chain.scale.resize(length);
  double log_z = length > 1 ? double(transitions.shift) * (length - 1) : 0.0;
  for (int i = 0; i < length; ++i) {
    const float* e = emissions + size_t(i) * pad;
    float* y = &chain.potentials[size_t(i) * pad];
    const float* mask = allowed ? allowed[i] : nullptr;
    float top = -INFINITY;
    for (int t = 0; t < tags; ++t) top = (!mask || mask[t] != 0) && e[t] > top ? e[t] : top;
    for (int t = 0; t < pad; ++t) y[t] = exponential(std::min(e[t] - top, 0.0f));
    for (int t = tags; t < pad; ++t) y[t] = 0;
    if (mask) {
      for (int t = 0; t < pad; ++t) y[t] *= mask[t];
    }
    float* a = &chain.alpha[size_t(i) * pad];
    if (i == 0) {
      for (int t = 0; t < pad; ++t) a[t] = y[t];
    } else {
      multiply(a - pad, transitions.rows.data(), tags, pad, a);
      for (int t = 0; t < pad; ++t) a[t] *= y[t];
    }
    const float s = sum(a, pad);
    chain.scale[i] = 1 / s;
    for (int t = 0; t < pad; ++t) a[t] *= chain.scale[i];
    log_z += top + std::log(double(s));
  }
  chain.log_z = log_z;
  float* last = &chain.beta[size_t(length - 1) * pad];
  for (int t = 0; t < pad; ++t) last[t] = 1;
  float x[128];
  for (int i = length - 1; i >= 0; --i) {
    const float* a = &chain.alpha[size_t(i) * pad];
    const float* b = &chain.beta[size_t(i) * pad];
    float* node = &chain.nodes[size_t(i) * pad];
    for (int t = 0; t < pad; ++t) node[t] = a[t] * b[t];
    if (i == 0) break;
    const float* y = &chain.potentials[size_t(i) * pad];
    for (int t = 0; t < pad; ++t) x[t] = y[t] * b[t] * chain.scale[i];
    multiply(x, transitions.columns.data(), tags, pad, &chain.beta[size_t(i - 1) * pad]);
    for (int p = 0; p < tags; ++p) {
      const float v = a[p - pad];
      if (v == 0) continue;
      const float* row = &transitions.rows[size_t(p) * pad];
      float* edge = &chain.edges[size_t(p) * pad];
      for (int t = 0; t < pad; ++t) edge[t] += v * row[t] * x[t];
    }
  }
}

// log Z minus the score of the labels (a tag, or tags + the index of a set: then the log Z of all paths that the sets
// allow). Leaves the gradients by emissions in chain.nodes and by transitions in chain.edges.
inline double sentence_loss(const float* emissions, int length, const std::vector<float>& scores,
                            const Transitions& transitions, const uint16_t* labels,
                            const std::vector<std::vector<float>>& sets, Chain& chain, Chain& gold) {
  const int tags = transitions.tags, pad = transitions.pad;
  chain.edges.assign(size_t(tags) * pad, 0);
  marginals(emissions, length, transitions, nullptr, chain);
  if (std::all_of(labels, labels + length, [=](uint16_t label) { return label < tags; })) {
    double score = 0;
    for (int i = 0; i < length; ++i) {
      score += emissions[size_t(i) * pad + labels[i]];
      chain.nodes[size_t(i) * pad + labels[i]] -= 1;
      if (i > 0) {
        const size_t edge = size_t(labels[i - 1]) * pad + labels[i];
        score += scores[edge];
        chain.edges[edge] -= 1;
      }
    }
    return chain.log_z - score;
  }
  std::vector<std::vector<float>> single;
  single.reserve(length);
  std::vector<const float*> allowed(length);
  for (int i = 0; i < length; ++i) {
    if (labels[i] < tags) {
      single.emplace_back(pad, 0.0f)[labels[i]] = 1;
      allowed[i] = single.back().data();
    } else {
      allowed[i] = sets[labels[i] - tags].data();
    }
  }
  gold.edges.assign(size_t(tags) * pad, 0);
  marginals(emissions, length, transitions, allowed.data(), gold);
  for (size_t j = 0; j < chain.nodes.size(); ++j) chain.nodes[j] -= gold.nodes[j];
  for (size_t j = 0; j < chain.edges.size(); ++j) chain.edges[j] -= gold.edges[j];
  return chain.log_z - gold.log_z;
}

}  // namespace cws::tagger
