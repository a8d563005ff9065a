// What both layouts share: the split of work, moments of a set of values, numbers of any dtype.
#pragma once

#include <omp.h>
#include <stdlib.h>

#include "kernels.h"
#include "simd-inl.h"

namespace batchnorm::BATCHNORM_TARGET {
namespace {

// Below this many values one thread is faster than waking a second one.
constexpr int64_t kSerial = 1 << 15;

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t threads_for(const Call& call, int64_t tasks) {
  const int64_t values = call.shape.outer * call.shape.channels * call.shape.inner;
  return values < kSerial ? 1 : at_most(call.threads, tasks);
}

// Give each thread a contiguous range of tasks: body(first task, last task). Which thread runs a task never changes
// what the task computes.
template <class Body>
inline void share_tasks(const Call& call, int64_t tasks, const Body& body) {
  const int64_t wanted = threads_for(call, tasks);
  if (wanted <= 1) {
    body(0, tasks);
    if (call.streams) fence();
    return;
  }
#pragma omp parallel num_threads(static_cast<int>(wanted))
  {
    const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    body(tasks * me / threads, tasks * (me + 1) / threads);
    if (call.streams) fence();
  }
}

template <class Body>
inline void for_each_task(const Call& call, int64_t tasks, const Body& body) {
  share_tasks(call, tasks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

// Each thread's last task first: after a pass in the other direction, what it touched last is still in cache.
template <class Body>
inline void for_each_task_backwards(const Call& call, int64_t tasks, const Body& body) {
  share_tasks(call, tasks, [&](int64_t begin, int64_t end) {
    for (int64_t i = end; i-- > begin;) body(i);
  });
}

// Small arrays of one call, freed with it.
template <class F>
class Scratch {
 public:
  explicit Scratch(int64_t size) : data_(static_cast<F*>(malloc(static_cast<size_t>(at_least(size, 1)) * sizeof(F)))) {
    if (data_ == nullptr) abort();  // a few vectors of C numbers: the caller has just allocated far more
  }
  ~Scratch() { free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  F* data() const { return data_; }
  F& operator[](int64_t i) const { return data_[i]; }

 private:
  F* data_;
};

// Sum of squared deviations from the mean, given the squares `s` and the sum `d` of deviations from almost the mean.
// Rounding must not make it negative (a NaN passes).
inline double about_the_mean(double s, double d, double count) {
  const double m2 = s - d * (d / count);
  return m2 < 0 ? 0 : m2;
}

// Count, mean and sum of squared deviations of a set of values.
struct Moments {
  double count = 0, mean = 0, m2 = 0;

  // Chan, Golub and LeVeque 1983, (1.5a, b): DERIVATION (51) to (53).
  void merge(const Moments& other) {
    if (other.count == 0) return;
    const double total = count + other.count;
    const double delta = other.mean - mean;
    mean += delta * (other.count / total);
    m2 += other.m2 + delta * delta * (count * (other.count / total));
    count = total;
  }
};

inline double element(const void* vector, Dtype dtype, int64_t c) {
  switch (dtype) {
    case Dtype::kFloat32:
      return static_cast<double>(static_cast<const float*>(vector)[c]);
    case Dtype::kFloat64:
      return static_cast<const double*>(vector)[c];
    default: {
      const Half half = Half{} + static_cast<const uint16_t*>(vector)[c];
      const Vec<float> v = dtype == Dtype::kBFloat16 ? widen(half, BFloat16{}) : widen(half, Float16{});
      return static_cast<double>(v[0]);
    }
  }
}

inline void put_element(void* vector, Dtype dtype, int64_t c, double value) {
  switch (dtype) {
    case Dtype::kFloat32:
      static_cast<float*>(vector)[c] = static_cast<float>(value);
      return;
    case Dtype::kFloat64:
      static_cast<double*>(vector)[c] = value;
      return;
    default: {
      const Vec<float> v = splat(static_cast<float>(value));
      static_cast<uint16_t*>(vector)[c] = (dtype == Dtype::kBFloat16 ? narrow(v, BFloat16{}) : narrow(v, Float16{}))[0];
    }
  }
}

// One value in float64. The moments of a channel whose squares overflow the arithmetic, or that holds values that are
// not finite, are taken from these, value by value: slow, but right.
template <class T>
inline double value_at(const T* p) {
  if constexpr (__is_same(T, float) || __is_same(T, double)) return static_cast<double>(*p);
  else return static_cast<double>(load(p, 1)[0]);
}

}  // namespace
}  // namespace batchnorm::BATCHNORM_TARGET
