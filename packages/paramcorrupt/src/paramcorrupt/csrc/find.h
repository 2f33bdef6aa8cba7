#pragma once

#include "keys.h"

// Where keys lie that are asked for.
namespace paramcorrupt {

inline constexpr int kSlack = 32;  // places that may be written behind the last

// How many keys are above a bracket, on its upper and on its lower edge.
struct Edges {
  int64_t above = 0, high = 0, low = 0;

  void add(const Edges& other) {
    above += other.above;
    high += other.high;
    low += other.low;
  }
};

// Writes the places of the keys above `limit` and returns how many they are. n is at most kBlock.
template <class K>
int find_above(const K* bits, int n, K limit, uint16_t* places);

// The same of the keys between `low` and `high`, neither included; counts those that are not below it.
template <class K>
int find_between(const K* bits, int n, K low, K high, uint16_t* places, Edges& edges);

}  // namespace paramcorrupt
