#pragma once

#include <torch/headeronly/util/Half.h>

#include <array>
#include <cstdint>

#include "rounding.h"
#include "statistics.h"
#include "strides.h"
#include "update.h"

namespace adamod {

enum Role { kParam, kGrad, kExpAvg, kExpAvgSq, kExpAvgLr };
enum class Type : uint8_t { kFloat, kDouble, kBFloat16, kHalf, kByte };

template <class Call>
inline void with_type(Type type, const Call& call) {
  switch (type) {
    case Type::kFloat:
      return call(float());
    case Type::kDouble:
      return call(double());
    case Type::kBFloat16:
      return call(BFloat16());
    case Type::kHalf:
      return call(torch::headeronly::Half());
    case Type::kByte:
      return call(uint8_t());
  }
}

struct Stream {
  void* data;
  int16_t* scale;  // of kByte
  Type type;
  bool dense;  // lies in memory in the order in which the step visits it
};

// One step of one parameter.
struct Job {
  std::array<Stream, kStreams> streams;
  int64_t size;
  int64_t first_run;  // in the list of all runs of the call
  const Walk* walk;   // of the streams that are not dense
  const Coefficients<double>* coefficients;
  Row row;
  Random random;
};

// What all parameters of a call share.
struct Options {
  Variant variant;
  bool bounded_decay, stochastic;
  double grad_divisor;  // 1 where the coefficients have it
};

// Steps elements begin .. end of a parameter; begin is a multiple of kRun, and so is end unless it is the last.
void advance(const Job& job, const Options& options, int64_t begin, int64_t end);

}  // namespace adamod
