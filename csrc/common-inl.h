// What both layouts share: moments, constants of a channel, the split of work.

namespace batchnorm::BATCHNORM_TARGET {
namespace {

// Below this many values one thread is faster than waking a second one.
constexpr int64_t kSerial = 1 << 15;

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Run body(task) for every task. A thread takes a contiguous range, last one first where `backwards`: what it touched
// last is still in cache. Which thread runs a task never changes what the task computes.
template <class Body>
inline void for_each_task(const Call& call, int64_t tasks, bool backwards, const Body& body) {
  const int64_t values = call.shape.outer * call.shape.channels * call.shape.inner;
  const int64_t wanted = values < kSerial ? 1 : at_most(call.threads, tasks);
  if (wanted <= 1) {
    for (int64_t i = 0; i < tasks; ++i) body(backwards ? tasks - 1 - i : i);
    if (call.streams) fence();
    return;
  }
#pragma omp parallel num_threads(static_cast<int>(wanted))
  {
    const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t begin = tasks * me / threads, end = tasks * (me + 1) / threads;
    for (int64_t i = begin; i < end; ++i) body(backwards ? begin + end - 1 - i : i);
    if (call.streams) fence();
  }
}

// Small float64 and arithmetic arrays of one call, freed with it.
template <class F>
class Scratch {
 public:
  explicit Scratch(int64_t size) : data_(static_cast<F*>(malloc(static_cast<size_t>(at_least(size, 1)) * sizeof(F)))) {
    if (data_ == nullptr) abort();  // a few vectors of C numbers: the caller has just allocated far more
  }
  ~Scratch() { free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  F* operator+(int64_t offset) const { return data_ + offset; }
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

inline double parameter(const void* vector, Dtype dtype, int64_t c, double neutral) {
  return vector == nullptr ? neutral : element(vector, dtype, c);
}

// The numbers that normalize one channel, from its statistics.
//   z     = (x - mean) * scale + shift            scale = weight / sqrt(var + eps)
//   x_hat = (x - mean) * invstd + x_hat_shift
// `mean` is the float64 one rounded; what it loses is in the shifts, where it is small, so x - mean is exact for data
// close to their mean and nothing cancels.
template <class F>
struct Channel {
  F mean, scale, shift, invstd, x_hat_shift;

  Channel(const Call& call, int64_t c, double exact_mean, double var) {
    const double wide_invstd = 1.0 / __builtin_sqrt(var + call.eps);
    const double weight = parameter(call.affine.weight, call.affine.weight_dtype, c, 1.0);
    const double bias = parameter(call.affine.bias, call.affine.bias_dtype, c, 0.0);
    mean = static_cast<F>(exact_mean);
    const double rest = exact_mean - static_cast<double>(mean);
    scale = static_cast<F>(weight * wide_invstd);
    invstd = static_cast<F>(wide_invstd);
    shift = static_cast<F>(bias - rest * (weight * wide_invstd));
    x_hat_shift = static_cast<F>(-rest * wide_invstd);
  }
};

// dx = dz * scale + (x_hat * of_x_hat + constant): the two averages of dz, where the statistics depend on x.
template <class F>
struct Correction {
  F of_x_hat = 0, constant = 0;

  Correction(const Channel<F>& channel, double sum_dy, double sum_dy_xhat, double count) {
    of_x_hat = static_cast<F>(-static_cast<double>(channel.scale) * (sum_dy_xhat / count));
    constant = static_cast<F>(-static_cast<double>(channel.scale) * (sum_dy / count));
  }
};

// One value in float64. The moments of a channel whose squares overflow the arithmetic, or that holds values that are not
// finite, are taken from these, value by value.
template <class T>
inline double value_at(const T* p) {
  if constexpr (__is_same(T, float) || __is_same(T, double)) return static_cast<double>(*p);
  else return static_cast<double>(load(p, 1)[0]);
}

}  // namespace
}  // namespace batchnorm::BATCHNORM_TARGET
