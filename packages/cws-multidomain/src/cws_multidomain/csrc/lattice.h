#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "rules.h"
#include "viterbi.h"
#include "words.h"

// All paths through one or several sentences, with the costs of user words: best paths, probabilities, margins.
//
// Besides the tags there is, for each position where words begin, a chain of nodes "the token begun there is still
// open". Plain B excludes such beginnings; leaving a chain by E adds the cost of the word that ends; a token that
// outgrows all words goes on as plain M. So each segmentation is one path, whatever the signs of the costs.
namespace cws {

class Lattice {
 public:
  static constexpr double kNever = -std::numeric_limits<double>::infinity();

  // Emissions are 4 scores per position. `first` tells where sentences begin: no transition leads there. Matches are
  // positions, in the order of their beginnings; forced ones are left out. A unit of score is 1 / units nats.
  Lattice(std::vector<double> emission, const std::vector<uint8_t>& mask, std::vector<uint8_t> first,
          std::vector<const int32_t*> transition, const std::vector<Match>& matches, double units)
      : emission_(std::move(emission)), first_(std::move(first)), transition_(std::move(transition)) {
    const int64_t n = size();
    for (int64_t t = 0; t < n; ++t) {
      if (mask[t] == kJoint || mask[t] == kInside) at(t, kB) = at(t, kS) = kNever;
      if (mask[t] == kStart || first_[t]) at(t, kM) = at(t, kE) = kNever;
    }
    std::vector<int32_t> begins(n, -1);
    for (size_t k = 0; k < matches.size();) {
      const int64_t begin = matches[k].begin;
      Chain chain{begin, begin - 1, {}};
      for (; k < matches.size() && matches[k].begin == begin; ++k) {
        const double cost = matches[k].cost == kForbid ? kForbidden : double(matches[k].cost) * units;
        const int64_t length = matches[k].end - begin;
        if (length == 1) {
          at(begin, kS) -= cost;
          continue;
        }
        chain.last = matches[k].end - 2;
        chain.costs.resize(length + 1, 0);
        chain.costs[length] = cost;
      }
      if (chain.last < begin) continue;
      begins[begin] = int32_t(chains_.size());
      chains_.push_back(std::move(chain));
    }
    nodes_.resize(n + 1);
    std::vector<int32_t> open;
    for (int64_t t = 0; t < n; ++t) {
      nodes_[t] = 4 * t + int64_t(open_.size());
      std::erase_if(open, [&](int32_t c) { return chains_[c].last < t; });
      if (begins[t] >= 0) open.push_back(begins[t]);
      open_.insert(open_.end(), open.begin(), open.end());
    }
    nodes_[n] = 4 * n + int64_t(open_.size());
  }

  int64_t size() const { return int64_t(first_.size()); }

  void best(uint8_t* tags) const {
    if (size() == 0) return;
    std::vector<double> score, next;
    std::vector<uint16_t> back(nodes_.back());
    enter(0, score);
    for (int64_t t = 1; t < size(); ++t) {
      next.assign(count(t), kNever);
      uint16_t* from = back.data() + nodes_[t];
      for_each_edge(t, [&](int p, int q, double w) {
        if (score[p] + w > next[q]) {
          next[q] = score[p] + w;
          from[q] = uint16_t(p);
        }
      });
      for (int q = 0; q < count(t); ++q) next[q] += weight(t, q);
      if (t % 4096 == 0) {
        const double top = *std::max_element(next.begin(), next.end());
        for (double& x : next) x -= top;
      }
      std::swap(score, next);
    }
    int q = score[kE] >= score[kS] ? kE : kS;
    for (int64_t t = size() - 1; t >= 0; --t) {
      tags[t] = tag(t, q);
      q = back[nodes_[t] + q];
    }
  }

  struct Path {
    double score;
    std::vector<uint8_t> tags;
  };

  // The k best paths, best first.
  std::vector<Path> best(int64_t k) const {
    if (size() == 0) return {{0, {}}};
    struct Entry {
      double score;
      uint32_t node, rank;
    };
    const auto better = [](const Entry& a, const Entry& b) { return a.score > b.score; };
    std::vector<std::vector<Entry>> entries(nodes_.back());
    const auto keep = [&](std::vector<Entry>& all) {
      std::stable_sort(all.begin(), all.end(), better);
      if (int64_t(all.size()) > k) all.resize(k);
      all.shrink_to_fit();
    };
    std::vector<double> score;
    enter(0, score);
    for (int q = 0; q < count(0); ++q) {
      if (score[q] > kNever) entries[q] = {{score[q], 0, 0}};
    }
    for (int64_t t = 1; t < size(); ++t) {
      for_each_edge(t, [&](int p, int q, double w) {
        if (w + weight(t, q) == kNever) return;
        const auto& from = entries[nodes_[t - 1] + p];
        for (uint32_t r = 0; r < from.size(); ++r) {
          entries[nodes_[t] + q].push_back({from[r].score + w + weight(t, q), uint32_t(p), r});
        }
      });
      for (int q = 0; q < count(t); ++q) keep(entries[nodes_[t] + q]);
    }
    std::vector<Entry> ends;
    for (uint32_t q : {kE, kS}) {
      const auto& from = entries[nodes_[size() - 1] + q];
      for (uint32_t r = 0; r < from.size(); ++r) ends.push_back({from[r].score, q, r});
    }
    keep(ends);
    std::vector<Path> paths;
    for (const Entry& end : ends) {
      Path path{end.score, std::vector<uint8_t>(size())};
      uint32_t q = end.node, r = end.rank;
      for (int64_t t = size() - 1; t >= 0; --t) {
        path.tags[t] = tag(t, int(q));
        const Entry& e = entries[nodes_[t] + q][r];
        q = e.node;
        r = e.rank;
      }
      paths.push_back(std::move(path));
    }
    return paths;
  }

  // log of the sum over paths of exp(score / temperature); `starts` becomes P(a token starts here), if it is asked for.
  double sum(double temperature, float* starts) const {
    const int64_t n = size();
    if (n == 0) return 0;
    const double scale = 1 / temperature;
    std::vector<double> forward(nodes_.back(), kNever), behind, next;
    enter(0, next);
    for (int q = 0; q < count(0); ++q) forward[q] = next[q] * scale;
    for (int64_t t = 1; t < n; ++t) {
      const double* from = forward.data() + nodes_[t - 1];
      double* to = forward.data() + nodes_[t];
      for_each_edge(t, [&](int p, int q, double w) { to[q] = add(to[q], from[p] + w * scale); });
      for (int q = 0; q < count(t); ++q) to[q] += weight(t, q) * scale;
    }
    const double* last = forward.data() + nodes_[n - 1];
    const double total = add(last[kE], last[kS]);
    if (!starts) return total;
    behind.assign(count(n - 1), kNever);
    behind[kE] = behind[kS] = 0;
    for (int64_t t = n - 1;; --t) {
      double p = 0;
      for (int q = 0; q < count(t); ++q) {
        if (tag(t, q) == kB || tag(t, q) == kS) p += std::exp(forward[nodes_[t] + q] + behind[q] - total);
      }
      starts[t] = float(std::min(p, 1.0));
      if (t == 0) return total;
      next.assign(count(t - 1), kNever);
      for_each_edge(
          t, [&](int a, int q, double w) { next[a] = add(next[a], w * scale + weight(t, q) * scale + behind[q]); });
      std::swap(behind, next);
    }
  }

  // By how much the best path beats the best one that has another tag at each position.
  void margins(const uint8_t* tags, double* margin) const {
    const int64_t n = size();
    if (n == 0) return;
    std::vector<double> forward(nodes_.back(), kNever), behind(nodes_.back(), kNever), start;
    enter(0, start);
    std::copy(start.begin(), start.end(), forward.begin());
    for (int64_t t = 1; t < n; ++t) {
      const double* from = forward.data() + nodes_[t - 1];
      double* to = forward.data() + nodes_[t];
      for_each_edge(t, [&](int p, int q, double w) { to[q] = std::max(to[q], from[p] + w); });
      for (int q = 0; q < count(t); ++q) to[q] += weight(t, q);
    }
    behind[nodes_[n - 1] + kE] = behind[nodes_[n - 1] + kS] = 0;
    for (int64_t t = n - 1; t > 0; --t) {
      const double* from = behind.data() + nodes_[t];
      double* to = behind.data() + nodes_[t - 1];
      for_each_edge(t, [&](int p, int q, double w) { to[p] = std::max(to[p], w + weight(t, q) + from[q]); });
    }
    for (int64_t t = 0; t < n; ++t) {
      double same = kNever, other = kNever;
      for (int q = 0; q < count(t); ++q) {
        const double through = forward[nodes_[t] + q] + behind[nodes_[t] + q];
        (tag(t, q) == tags[t] ? same : other) = std::max(tag(t, q) == tags[t] ? same : other, through);
      }
      margin[t] = same - other;
    }
  }

 private:
  static constexpr double kForbidden = 1e9;

  struct Chain {
    int64_t begin, last;        // positions of its first and last node
    std::vector<double> costs;  // by length
  };

  double& at(int64_t t, int y) { return emission_[4 * t + y]; }
  int count(int64_t t) const { return int(nodes_[t + 1] - nodes_[t]); }
  const Chain& chain(int64_t t, int q) const { return chains_[open_[nodes_[t] - 4 * t + q - 4]]; }
  uint8_t tag(int64_t t, int q) const { return uint8_t(q < 4 ? q : chain(t, q).begin == t ? kB : kM); }
  bool begins_chain(int64_t t) const { return count(t) > 4 && chain(t, count(t) - 1).begin == t; }
  double weight(int64_t t, int q) const { return emission_[4 * t + tag(t, q)]; }

  static double add(double x, double y) {
    const double high = std::max(x, y), low = std::min(x, y);
    return low == kNever ? high : high + std::log1p(std::exp(low - high));
  }

  // Scores of the nodes of a position where a path may begin.
  void enter(int64_t t, std::vector<double>& score) const {
    score.assign(count(t), kNever);
    const int b = begins_chain(t) ? count(t) - 1 : int(kB);
    score[b] = weight(t, b);
    score[kS] = weight(t, kS);
  }

  // visit(node at t - 1, node at t, transition and cost).
  template <class Visit>
  void for_each_edge(int64_t t, Visit visit) const {
    const int b = begins_chain(t) ? count(t) - 1 : int(kB);
    const auto a = [table = transition_[t]](int from, int to) { return double(table[4 * from + to]); };
    for (int from : {kE, kS}) {
      visit(from, b, first_[t] ? 0 : a(from, kB));
      visit(from, int(kS), first_[t] ? 0 : a(from, kS));
    }
    if (first_[t]) return;
    for (int from : {kB, kM}) {
      visit(from, int(kM), a(from, kM));
      visit(from, int(kE), a(from, kE));
    }
    int same = 4;  // the node of the chain at t
    for (int q = 4; q < count(t - 1); ++q) {
      const Chain& c = chain(t - 1, q);
      const int from = tag(t - 1, q);
      visit(q, int(kE), a(from, kE) - c.costs[t - c.begin + 1]);
      visit(q, t <= c.last ? same++ : int(kM), a(from, kM));
    }
  }

  std::vector<double> emission_;
  std::vector<uint8_t> first_;
  std::vector<const int32_t*> transition_;  // at each position, the table of the transition that leads there
  std::vector<Chain> chains_;
  std::vector<int32_t> open_;   // chains that are open at each position, in the order of their beginnings
  std::vector<int64_t> nodes_;  // where the nodes of each position begin, with 4 plain ones each
};

}  // namespace cws
