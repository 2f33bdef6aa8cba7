// How far to go in each segment.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "arguments.h"

namespace gasam {
namespace {

constexpr double kTiny = 1e-12;  // added to norms before they divide
constexpr double kDecay = 0.99;  // of the running reference

enum Reference : int64_t { kNone, kGlobal, kRunning };

struct Segment {
  double sum = 0, layer = 0, elements = 0;
};

void boxed_strengths(StableIValue* stack, uint64_t, uint64_t) {
  const auto tensor = [&](int i) { return argument<Tensor>(stack[i]); };
  const Tensor sums = tensor(0), segment = tensor(1), sizes = tensor(2), rho = tensor(3), running = tensor(4);
  const auto scale = argument<std::optional<Tensor>>(stack[5]), layer = argument<std::optional<Tensor>>(stack[6]);
  const auto a = argument<double>(stack[7]), b = argument<double>(stack[8]), clip = argument<double>(stack[9]);
  const auto reference = argument<int64_t>(stack[10]), norm = argument<int64_t>(stack[11]);
  const int64_t units = sums.numel();
  const double* sum = vector_of<double>(sums, units);
  const int64_t* number_of = vector_of<int64_t>(segment, units);
  const int64_t* size = vector_of<int64_t>(sizes, units);
  const double* radius = vector_of<double>(rho, units);
  const double* weights = layer ? vector_of<double>(*layer, units) : nullptr;
  STD_TORCH_CHECK(running.numel() == 2 && running.is_contiguous(), "running must be two numbers");
  double* average = running.mutable_data_ptr<double>();
  const double loss_scale = scale ? number(scale->get()) : 1;

  std::vector<Segment> segments(units);
  double total = 0;
  bool finite = true;
  for (int64_t i = 0; i < units; ++i) {
    STD_TORCH_CHECK(0 <= number_of[i] && number_of[i] < units, "a segment's number is out of range");
    Segment& s = segments[number_of[i]];
    s.sum += sum[i];
    s.elements += double(size[i]);
    if (weights) s.layer += weights[i];
    total += double(size[i]);
    finite = finite && std::isfinite(sum[i]);
  }
  const auto weight = [&](const Segment& s) { return weights ? std::sqrt(s.layer) : 1; };
  double squares = 0;
  for (const Segment& s : segments) squares += (weights ? s.layer : 1) * s.sum;
  const double mean = std::sqrt(squares / std::max(total, 1.0)) / loss_scale;
  const double m = kDecay * average[0] + (1 - kDecay) * mean, t = average[1] + 1;
  if (reference == kRunning && finite) {
    average[0] = m;
    average[1] = t;
  }
  const double expected = reference == kNone ? 1 : reference == kGlobal ? mean : m / (1 - std::pow(kDecay, t));

  const Tensor multiplier = new_vector(units), strength = new_vector(units);
  const Tensor found_inf = new_tensor({}, aoti_torch_dtype_float32());
  double* out = multiplier.mutable_data_ptr<double>();
  double* s_out = strength.mutable_data_ptr<double>();
  *found_inf.mutable_data_ptr<float>() = finite ? 0 : 1;
  for (int64_t i = 0; i < units; ++i) {
    const Segment& segment = segments[number_of[i]];
    const double length = weight(segment), norm_u = length * std::sqrt(segment.sum);
    const double r = norm_u / (loss_scale * std::sqrt(std::max(segment.elements, 1.0)));
    double ratio = r / (expected + kTiny);
    if (reference != kNone) ratio = std::clamp(ratio, 1 / clip, clip);
    double s = radius[i] * std::pow(segment.elements / total, norm == 2 ? a : a - 0.5) * std::pow(ratio, b);
    if (r == 0) s = 0;
    s_out[i] = finite ? s : std::numeric_limits<double>::quiet_NaN();
    const double along = norm == 2 ? length * length / (norm_u + kTiny * loss_scale) : length;
    out[i] = finite ? s * along : 0;
  }
  stack[0] = torch::stable::detail::from(multiplier);
  stack[1] = torch::stable::detail::from(strength);
  stack[2] = torch::stable::detail::from(found_inf);
}

}  // namespace
}  // namespace gasam

STABLE_TORCH_LIBRARY_IMPL(gasam, CPU, m) { m.impl("strengths", gasam::boxed_strengths); }
