// What the bindings may call: plain structs and one table of functions per instruction-set target.
// Nothing here knows Python or torch; every argument is already valid.
#pragma once

#include <cstdint>

namespace batchnorm {

enum class Dtype : int { kFloat32, kFloat64, kBFloat16, kFloat16 };
// Their names in torch, in this order.
constexpr const char* kDtypes[] = {"float32", "float64", "bfloat16", "float16"};

enum class Activation : int { kNone, kRelu, kRelu6, kLeakyRelu, kSilu, kHardswish, kGelu, kSigmoid, kTanh };
// Their names in torch.nn.functional, in this order, after kNone.
constexpr const char* kActivations[] = {"relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "sigmoid", "tanh"};

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

// One byte, 0 or 1, for each sample and place, contiguous in this order, whatever the layout of x; null: 1 everywhere.
using Mask = const uint8_t*;

// Everything that a kernel reads and writes. Statistics and sums are float64, of shape (G, C) for G groups: `collect`
// and `forward` write the statistics, `reduce` and `backward` the sums, and the others read them.
struct Call {
  Shape shape;
  int64_t group;  // Shape::outer of a group; the last group may have less
  Dtype dtype;    // of x, dy, residual and all outputs of their shape
  Input x, dy, residual;
  Output y, dx, dresidual;
  double *mean, *var;
  double* count;  // (G,): values per channel of each group; null: the statistics are constants
  double *sum_dy, *sum_dy_xhat;
  Mask members;  // the values that enter the statistics
  Mask kept;     // the outputs to keep; 0 elsewhere, as are their gradients
  Affine affine;
  double eps;
  Activation activation;
  int threads;
  bool streams;  // outputs larger than the caches: written past them

  int64_t groups() const { return (shape.outer + group - 1) / group; }
};

struct Kernels {
  const char* target;
  void (*collect)(const Call&);
  void (*normalize)(const Call&);
  void (*forward)(const Call&);
  void (*reduce)(const Call&);
  void (*apply)(const Call&);
  void (*backward)(const Call&);
  // (C,) vectors of any dtype, from and to float64; rounded to nearest.
  void (*read)(const void* vector, Dtype dtype, int64_t channels, double* values);
  void (*write)(const double* values, int64_t channels, void* vector, Dtype dtype);
};

// Targets that this build has and this processor runs, best first; the table ends with a null.
const Kernels* const* supported_targets();

}  // namespace batchnorm
