#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "blocks.h"
#include "job.h"
#include "lists.h"

// The arguments of the operator, checked and turned into jobs.
namespace adamod {

using torch::stable::Tensor;

struct Arguments {
  std::array<TensorList, kStreams> lists;
  TensorList scales;
  Tensor steps;
  std::vector<int64_t> index;
  Tensor hyper;
  bool paper, bounded_decay, skip_unseen, maximize;
  std::optional<int64_t> seed;
  std::optional<Tensor> grad_scale, found_inf, stats;
};

inline Type type_of(AtenTensorHandle x) {
  static const int32_t codes[] = {aoti_torch_dtype_float32(), aoti_torch_dtype_float64(), aoti_torch_dtype_bfloat16(),
                                  aoti_torch_dtype_float16(), aoti_torch_dtype_uint8()};
  const auto* code = std::ranges::find(codes, get(aoti_torch_get_dtype, x));
  STD_TORCH_CHECK(code != std::end(codes), "unsupported dtype");
  return Type(code - std::begin(codes));
}

inline double number(const Tensor& x) {
  STD_TORCH_CHECK(x.numel() == 1, "expected one number");
  double value = 0;
  with_type(type_of(x.get()),
            [&]<class S>(S) { value = static_cast<double>(*static_cast<const S*>(x.const_data_ptr())); });
  return value;
}

inline std::span<const int64_t> ints(AOTITorchError (*read)(AtenTensorHandle, int64_t**), AtenTensorHandle x) {
  return {get(read, x), size_t(get(aoti_torch_get_dim, x))};
}

// The jobs of a call, and what they point to.
class Plan {
 public:
  explicit Plan(const Arguments& a) : a_(a), jobs_(a.index.size()) {
    const size_t n = jobs_.size();
    for (const TensorList& list : a.lists) STD_TORCH_CHECK(list.size() == n, "lists differ in length");
    STD_TORCH_CHECK(a.scales.size() == 0 || a.scales.size() == 3 * n, "expected 3 scales per parameter");
    STD_TORCH_CHECK(a.hyper.numel() == 6 && a.hyper.is_contiguous(), "hyper must have 6 numbers");
    STD_TORCH_CHECK(a.steps.dim() == 1 && a.steps.is_contiguous(), "steps must be a vector");
    counts_ = a.steps.mutable_data_ptr<float>();
    rows_ = a.steps.numel();
    if (a.stats) {
      STD_TORCH_CHECK(a.stats->numel() == rows_ * kColumns && a.stats->is_contiguous(), "stats has the wrong shape");
      stats_ = a.stats->mutable_data_ptr<int64_t>();
    }
    const double* hyper = a.hyper.const_data_ptr<double>();
    std::copy_n(hyper, 6, hyper_.begin());

    const double divisor = (a.grad_scale ? number(*a.grad_scale) : 1) * (a.maximize ? -1 : 1);
    int exponent;
    const bool exact = std::abs(std::frexp(divisor, &exponent)) == 0.5 && std::abs(exponent) < 100;
    gradient_ = exact ? 1 / divisor : 1;
    const auto [lr, beta1, beta2, beta3, eps, weight_decay] = hyper_;
    const Variant variant = a.paper || a.bounded_decay || a.skip_unseen ? Variant::kAny
                            : weight_decay * lr != 0                    ? Variant::kDecayed
                                                                        : Variant::kPlain;
    options_ = {variant, a.bounded_decay, a.seed.has_value(), exact ? 1 : divisor};

    for (size_t k = 0; k < n; ++k) add(k);
  }

  void run() {
    const auto starts_after = [](int64_t run, const Job& job) { return run < job.first_run; };
    torch::stable::parallel_for(0, runs_, kGrain / kRun, [&](int64_t first, int64_t last) {
      auto job = std::upper_bound(jobs_.begin(), jobs_.end(), first, starts_after) - 1;
      for (; job != jobs_.end() && job->first_run < last; ++job) {
        const int64_t begin = std::max<int64_t>(first - job->first_run, 0) * kRun;
        const int64_t end = std::min((last - job->first_run) * kRun, job->size);
        if (begin < end) advance(*job, options_, begin, end);
      }
    });
    for (const Job& job : jobs_) job.row.add(0, job.size);
    for (int64_t i : a_.index) counts_[i] = float(double(counts_[i]) + 1);
  }

 private:
  void add(size_t k) {
    Job& job = jobs_[k];
    const int64_t i = a_.index[k];
    STD_TORCH_CHECK(0 <= i && i < rows_, "index is out of range");
    const double t = double(counts_[i]) + 1;
    job.size = get(aoti_torch_get_numel, a_.lists[kParam][k]);
    job.first_run = runs_;
    runs_ += runs_of(job.size);
    job.coefficients = coefficients(t);
    if (a_.seed) job.random = Random::of(int64_t(t), i, *a_.seed);
    if (stats_) {
      const int64_t every = std::max<int64_t>(1, runs_of(job.size) / 8);
      job.row = {stats_ + i * kColumns, every, int64_t(t) % every};
    }
    bool dense = true;
    for (int role = 0; role < kStreams; ++role) {
      const AtenTensorHandle x = a_.lists[role][k];
      STD_TORCH_CHECK(get(aoti_torch_get_numel, x) == job.size, "sizes differ");
      Stream& stream = job.streams[role];
      stream.type = type_of(x);
      stream.data =
          role == kGrad ? const_cast<void*>(get(torch_get_const_data_ptr, x)) : get(torch_get_mutable_data_ptr, x);
      stream.dense = get(aoti_torch_is_contiguous, x);
      dense = dense && stream.dense;
      if (stream.type == Type::kByte) stream.scale = scale(k, Role(role), job.size);
    }
    if (!dense) set_walk(job, k);
  }

  int16_t* scale(size_t k, Role role, int64_t size) const {
    STD_TORCH_CHECK(role >= kExpAvg && a_.scales.size(), "uint8 is for states with scales");
    const AtenTensorHandle x = a_.scales[3 * k + role - kExpAvg];
    STD_TORCH_CHECK(get(aoti_torch_get_dtype, x) == aoti_torch_dtype_int16() && get(aoti_torch_is_contiguous, x) &&
                        get(aoti_torch_get_numel, x) == (size + kBlock - 1) / kBlock,
                    "expected an int16 scale per block");
    return static_cast<int16_t*>(get(torch_get_mutable_data_ptr, x));
  }

  void set_walk(Job& job, size_t k) {
    const auto sizes = ints(aoti_torch_get_sizes, a_.lists[kParam][k]);
    std::array<std::span<const int64_t>, kStreams> strides;
    for (int role = 0; role < kStreams; ++role) {
      const AtenTensorHandle x = a_.lists[role][k];
      STD_TORCH_CHECK(std::ranges::equal(ints(aoti_torch_get_sizes, x), sizes), "shapes differ");
      strides[role] = ints(aoti_torch_get_strides, x);
    }
    job.walk = &walks_.emplace_back(sizes, strides, job.streams[kParam].dense);
    for (int role = 0; role < kStreams; ++role) job.streams[role].dense = job.walk->is_dense(role);
  }

  const Coefficients<double>* coefficients(double t) {
    if (coefficients_.empty() || t != last_t_) {
      const auto [lr, beta1, beta2, beta3, eps, weight_decay] = hyper_;
      const double correction1 = 1 - std::pow(beta1, t), correction2 = 1 - std::pow(beta2, t);
      coefficients_.push_back({.gradient = gradient_,
                               .keep1 = beta1,
                               .take1 = 1 - beta1,
                               .keep2 = beta2,
                               .take2 = 1 - beta2,
                               .keep3 = beta3,
                               .take3 = 1 - beta3,
                               .rate = a_.paper ? lr : lr * std::sqrt(correction2) / correction1,
                               .eps = eps,
                               .decay = weight_decay * lr,
                               .correction1 = a_.paper ? correction1 : 1,
                               .correction2 = a_.paper ? correction2 : 1,
                               .unseen = a_.skip_unseen ? 0 : std::nan("")});
      last_t_ = t;
    }
    return &coefficients_.back();
  }

  const Arguments& a_;
  std::vector<Job> jobs_;
  std::deque<Coefficients<double>> coefficients_;
  std::deque<Walk> walks_;
  std::array<double, 6> hyper_;
  double gradient_, last_t_;
  Options options_;
  float* counts_;
  int64_t rows_, runs_ = 0;
  int64_t* stats_ = nullptr;
};

}  // namespace adamod
