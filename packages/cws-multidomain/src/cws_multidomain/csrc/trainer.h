#pragma once

#include <algorithm>
#include <barrier>
#include <bit>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "chain.h"
#include "features.h"

// ADF (Sun et al., ACL 2012) for a CRF whose features have a shared weight and one per domain: stochastic steps whose
// learning rates fall the faster, the more often a feature fires. Decay is applied when a weight is next met.
namespace cws {

// Sentences end to end, as symbols.
struct Corpus {
  std::vector<uint16_t> symbols;
  std::vector<int64_t> splits{0};           // [sentences + 1]
  std::vector<std::vector<uint8_t>> marks;  // per lexicon
  std::vector<uint8_t> allowed;             // bits of the tags that the labels permit
  std::vector<uint8_t> domains;             // of the sentences

  int64_t size() const { return int64_t(splits.size()) - 1; }
};

struct Options {
  float upper, lower, l2;
  float transition;       // factor of the transitions' rates at each update
  float domain_dropout;   // share of the sentences that train the shared weights alone
  float feature_dropout;  // share of the n-grams that are left out where they occur
  bool shared;            // whether the shared weights learn
  int updates;            // of the learning rates, per epoch
  int shards;             // sentences that learn from the same weights
  int threads;
};

class Trainer {
 public:
  Trainer(int lexicons, int domains) : lexicons_(lexicons), domains_(domains), transitions_(16 * (domains + 1)) {}

  // Weights to start from, of one component: set before `load`. Keys must be among those of the shared component.
  void set(int component, const std::vector<uint64_t>& keys, const float* weights, const float* transition) {
    for (size_t k = 0; k < keys.size(); ++k) {
      const uint32_t id = features_.add(keys[k]);
      if (id == masks_.size()) masks_.push_back(0);
      if (component) masks_[id] |= 1u << (component - 1);
      Tags w;
      std::memcpy(&w, weights + 4 * k, sizeof w);
      given_.push_back({id, component, w});
    }
    std::copy_n(transition, 16, &transitions_[16 * component]);
  }

  void load(Corpus corpus, float rate) {
    corpus_ = std::move(corpus);
    const int count = feature_count(lexicons_);
    at_.resize(corpus_.symbols.size() * count);
    std::vector<uint64_t> keys(count);
    std::vector<const uint8_t*> marks(lexicons_);
    for (int64_t s = 0; s < corpus_.size(); ++s) {
      const int64_t begin = corpus_.splits[s], n = corpus_.splits[s + 1] - begin;
      for (int k = 0; k < lexicons_; ++k) marks[k] = corpus_.marks[k].data() + begin;
      for (int64_t i = 0; i < n; ++i) {
        feature_keys(&corpus_.symbols[begin], marks, n, i, keys.data());
        for (int f = 0; f < count; ++f) {
          const uint32_t id = features_.add(keys[f]);
          if (id == masks_.size()) masks_.push_back(0);
          if (corpus_.domains[s] < domains_) masks_[id] |= 1u << corpus_.domains[s];
          at_[(begin + i) * count + f] = id;
        }
      }
    }
    first_.resize(masks_.size());
    uint32_t next = 0;
    for (size_t id = 0; id < masks_.size(); ++id) {
      first_[id] = next;
      next += 1 + std::popcount(masks_[id]);
    }
    table_.assign(next, Row{.eta = rate});
    for (size_t id = 0; id < masks_.size(); ++id) table_[first_[id]].mask = masks_[id];
    uint32_t present = 0;
    for (const uint8_t domain : corpus_.domains) {
      if (domain < domains_) present |= 1u << domain;
    }
    for (const Given& g : given_) {
      Row& start = *row(g.id, g.component);
      start.w = g.w;
      if (g.component && !(present >> (g.component - 1) & 1)) start.eta = 0;  // does not learn, nor decay
    }
    given_ = {};
    for (uint32_t& at : at_) at = first_[at];
    transition_eta_.assign(domains_ + 1, rate);
    for (int c = 1; c <= domains_; ++c) {
      if (!(present >> (c - 1) & 1)) transition_eta_[c] = 0;
    }
  }

  // One pass over the sentences in an order; returns the summed loss in nats. The same for any number of threads.
  double epoch(const Options& options, const std::vector<int32_t>& order, uint64_t seed) {
    options_ = options;
    seed_ = seed;
    if (!options.shared) {  // without a rate they do not decay either
      for (const uint32_t first : first_) table_[first].eta = 0;
      transition_eta_[0] = 0;
    }
    const int64_t total = int64_t(order.size()), every = std::max<int64_t>(1, total / options.updates);
    const int64_t shards = std::max(1, options.shards);
    const int threads = int(std::min<int64_t>(std::max(1, options.threads), shards));
    std::vector<Shard> block(shards);
    double loss = 0;
    int64_t at = 0, in_phase = 0;
    bool done = false;
    std::barrier meet(threads);
    const auto read = [&](int thread) {
      for (int64_t k = thread; k < shards && at + k < total; k += threads) gather(block[k], order[at + k], at + k);
    };
    std::vector<std::jthread> workers;
    for (int thread = 1; thread < threads; ++thread) {
      workers.emplace_back([&, thread] {
        for (;;) {
          meet.arrive_and_wait();
          if (done) return;
          read(thread);
          meet.arrive_and_wait();
        }
      });
    }
    for (; at < total; at += shards) {
      if (threads > 1) meet.arrive_and_wait();
      read(0);
      if (threads > 1) meet.arrive_and_wait();
      for (int64_t k = 0; k < shards && at + k < total; ++k) {
        if (at + k + 1 < total) prefetch(order[at + k + 1]);
        apply(block[k]);
        loss += block[k].chain.loss;
        ++in_phase;
        const int64_t q = at + k;
        if ((q > 0 && q % every == 0) || q == total - 1) {
          end_phase(in_phase, float(in_phase) / float(total));
          in_phase = 0;
        }
      }
    }
    done = true;
    if (threads > 1) meet.arrive_and_wait();
    for (Row& row : table_) catch_up(row);
    return loss;
  }

  const std::vector<uint64_t>& keys() const { return features_.keys(); }
  const float* transition(int component) const { return &transitions_[16 * component]; }

  // The weights of a feature, null where a domain has none.
  const Tags* weights(uint32_t id, int component) const {
    const Row* found = const_cast<Trainer*>(this)->row(id, component);
    return found ? &found->w : nullptr;
  }

 private:
  struct Row {
    Tags w{};
    float eta = 0;
    uint16_t phase = 0;  // up to which rate and decay are applied
    uint16_t count = 0;  // of sentences with this feature since then
    uint32_t last = 0;   // the sentence that was counted last
    uint32_t mask = 0;   // of the domains whose rows follow
  };
  struct Given {
    uint32_t id;
    int component;
    Tags w;
  };
  struct Phase {
    float sentences, share;
  };
  struct Shard {
    Chain chain;
    int32_t sentence;
    int domain;  // -1: the shared weights alone
    std::vector<uint8_t> dropped;
  };

  static uint64_t hash(uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
  }

  static int follows(const Row& row, int domain) { return 1 + std::popcount(row.mask & ((1u << domain) - 1)); }

  Row* row(uint32_t id, int component) {
    Row* shared = &table_[first_[id]];
    if (component == 0) return shared;
    return shared->mask >> (component - 1) & 1 ? shared + follows(*shared, component - 1) : nullptr;
  }

  void prefetch(int32_t sentence) const {
    const int count = feature_count(lexicons_);
    for (int64_t i = corpus_.splits[sentence] * count; i < corpus_.splits[sentence + 1] * count; ++i) {
      __builtin_prefetch(&table_[at_[i]], 1, 2);
    }
  }

  // Rate and decay of the phases that ended since the row was last met.
  void advance(float& eta, Tags& w, uint32_t phase, float count) const {
    const float decay = 1 / (options_.l2 * options_.l2);
    for (; phase < phases_.size(); ++phase) {
      const float fired = std::min(1.0f, count / phases_[phase].sentences);
      eta *= options_.upper - (options_.upper - options_.lower) * fired;
      w *= 1 - eta * phases_[phase].share * decay;
      count = 0;
    }
  }

  void catch_up(Row& row) const {
    if (row.phase == phases_.size()) return;
    advance(row.eta, row.w, row.phase, row.count);
    row.count = 0;
    row.phase = uint16_t(phases_.size());
  }

  Tags current(const Row& row) const {
    Tags w = row.w;
    if (row.phase != phases_.size()) {
      float eta = row.eta;
      advance(eta, w, row.phase, row.count);
    }
    return w;
  }

  void end_phase(int64_t sentences, float share) {
    if (phases_.size() == UINT16_MAX) throw std::length_error("too many updates of the learning rates");
    phases_.push_back({float(sentences), share});
    for (int c = 0; c <= domains_; ++c) {
      transition_eta_[c] *= options_.transition;
      for (int j = 0; j < 16; ++j) {
        transitions_[16 * c + j] *= 1 - transition_eta_[c] * share / (options_.l2 * options_.l2);
      }
    }
  }

  // Scores a sentence by the weights as they are, and finds what it would change. Writes nothing that others read.
  void gather(Shard& shard, int32_t sentence, int64_t turn) const {
    const int64_t begin = corpus_.splits[sentence], n = corpus_.splits[sentence + 1] - begin;
    const int count = feature_count(lexicons_);
    uint64_t random = hash(seed_ + uint64_t(turn) * 0x9E3779B97F4A7C15u);
    shard.sentence = sentence;
    shard.domain = -1;
    const bool named = corpus_.domains[sentence] < domains_;  // or it is nobody's, and for the shared weights alone
    if (named && (!options_.shared || float(random >> 40) * 0x1p-24f >= options_.domain_dropout)) {
      shard.domain = corpus_.domains[sentence];
    }
    shard.dropped.assign(options_.feature_dropout > 0 ? n * kNgrams : 0, 0);
    shard.chain.emission.resize(n);
    const auto limit = uint32_t(options_.feature_dropout * 256);
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t* at = &at_[(begin + i) * count];
      Tags sum{};
      for (int f = 0; f < count; ++f) {
        if (limit && f < int(kNgrams)) {
          if (f % 8 == 0) random = hash(random + 1);
          if (f != 2 && (random >> f % 8 * 8 & 255) < limit) {  // the symbol itself always stays
            shard.dropped[i * kNgrams + f] = 1;
            continue;
          }
        }
        const Row& row = table_[at[f]];
        sum += current(row);
        if (shard.domain >= 0) sum += current(table_[at[f] + follows(row, shard.domain)]);
      }
      shard.chain.emission[i] = sum;
    }
    float transition[16];
    for (int j = 0; j < 16; ++j) {
      transition[j] = transitions_[j] + (shard.domain >= 0 ? transitions_[16 * (shard.domain + 1) + j] : 0);
    }
    shard.chain.learn(n, transition, &corpus_.allowed[begin]);
  }

  void learn(Row& row, Tags difference) {
    catch_up(row);
    if (row.last != serial_) {
      row.last = serial_;
      if (row.count != UINT16_MAX) ++row.count;
    }
    row.w -= row.eta * difference;
  }

  void apply(const Shard& shard) {
    const int64_t begin = corpus_.splits[shard.sentence], n = corpus_.splits[shard.sentence + 1] - begin;
    const int count = feature_count(lexicons_);
    ++serial_;
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t* at = &at_[(begin + i) * count];
      for (int f = 0; f < count; ++f) {
        if (!shard.dropped.empty() && f < int(kNgrams) && shard.dropped[i * kNgrams + f]) continue;
        Row& row = table_[at[f]];
        if (options_.shared) learn(row, shard.chain.difference[i]);
        if (shard.domain >= 0) learn(table_[at[f] + follows(row, shard.domain)], shard.chain.difference[i]);
      }
    }
    for (int j = 0; j < 16; ++j) {
      if (options_.shared) transitions_[j] -= transition_eta_[0] * shard.chain.edges[j];
      if (shard.domain >= 0) {
        transitions_[16 * (shard.domain + 1) + j] -= transition_eta_[shard.domain + 1] * shard.chain.edges[j];
      }
    }
  }

  int lexicons_, domains_;
  Options options_{};
  uint64_t seed_ = 0;
  Corpus corpus_;
  FeatureMap features_;
  std::vector<uint32_t> masks_, first_;  // by feature: its domains; its row, which those of its domains follow
  std::vector<uint32_t> at_;             // the rows of the shared weights at each position
  std::vector<Given> given_;
  std::vector<Row> table_;
  std::vector<Phase> phases_;
  std::vector<float> transitions_, transition_eta_;
  uint32_t serial_ = 0;
};

}  // namespace cws
