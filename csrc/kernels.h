// What the bindings may call: plain structs and one table of functions per instruction-set target.
// Nothing here knows Python or torch; every argument is already valid.
#pragma once

#include <cstdint>

namespace batchnorm {

enum class Dtype : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

enum class Activation : int { kNone, kRelu, kRelu6, kLeakyRelu, kSilu, kHardswish, kGelu, kSigmoid, kTanh };

// How (N, C, *S) lies in memory.
//   planes: each of the N * C planes of S values is contiguous; samples and channels may be any distance apart.
//   rows:   each of the N * S rows of C values is contiguous; rows are one distance apart.
struct Shape {
  bool rows;
  int64_t outer;     // N for planes, N * S for rows
  int64_t channels;  // C
  int64_t inner;     // S for planes, 1 for rows
};

struct Input {
  const void* data;        // null: absent
  int64_t outer_stride;    // in elements: between samples (planes) or rows (rows)
  int64_t channel_stride;  // in elements: between channels (planes); 1 for rows
};

struct Output {
  void* data;  // null: not wanted
  int64_t outer_stride;
  int64_t channel_stride;
};

// (C,) affine parameters; null: 1 and 0.
struct Affine {
  const void* weight;
  const void* bias;
  Dtype weight_dtype, bias_dtype;
};

struct Call {
  Shape shape;
  Dtype dtype;  // of x, residual, dy and all outputs of their shape
  Affine affine;
  double eps;
  Activation activation;
  int threads;
  bool streams;  // outputs larger than the caches: written past them
};

// Statistics and sums are float64, (C,).
struct Kernels {
  const char* target;
  void (*collect)(const Call&, Input x, double* mean, double* var);
  void (*normalize)(const Call&, Input x, Input residual, const double* mean, const double* var, Output y);
  void (*forward)(const Call&, Input x, Input residual, double* mean, double* var, Output y);
  void (*reduce)(const Call&, Input dy, Input x, Input residual, const double* mean, const double* var, double* sum_dy,
                 double* sum_dy_xhat);
  void (*apply)(const Call&, Input dy, Input x, Input residual, const double* mean, const double* var,
                const double* sum_dy, const double* sum_dy_xhat, double count, Output dx, Output dz);
  void (*backward)(const Call&, Input dy, Input x, Input residual, const double* mean, const double* var,
                   bool batch_statistics, double* sum_dy, double* sum_dy_xhat, Output dx, Output dz);
  // (C,) vectors of any dtype, from and to float64; rounded to nearest.
  void (*read)(const void* vector, Dtype dtype, int64_t channels, double* values);
  void (*write)(const double* values, int64_t channels, void* vector, Dtype dtype);
};

// Targets that this build has and this processor runs, best first; the table ends with a null.
const Kernels* const* supported_targets();

}  // namespace batchnorm
