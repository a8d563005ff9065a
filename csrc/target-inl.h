// The table of one target: picks the class for the layout, types and activation of a call. Included once per target, by
// target_<name>.cpp, which defines BATCHNORM_TARGET (the namespace) and BATCHNORM_WIDTH (bytes of a vector).
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"
//
#include "simd-inl.h"
//
#include "activations-inl.h"
#include "common-inl.h"
//
#include "planes-inl.h"
#include "rows-inl.h"

namespace batchnorm::BATCHNORM_TARGET {
namespace {

template <class T, bool has_residual, Fused fused, class Function>
void with_layout(const Call& call, const Function& function) {
  if (call.shape.rows) function(Rows<T, has_residual, fused>(call));
  else function(Planes<T, has_residual, fused>(call));
}

template <class T, bool has_residual, class Function>
void with_activation(const Call& call, const Function& function) {
  switch (call.activation) {
    case Activation::kNone:
      return with_layout<T, has_residual, Fused::kNone>(call, function);
    case Activation::kRelu:
      return with_layout<T, has_residual, Fused::kRelu>(call, function);
    default:
      return with_layout<T, has_residual, Fused::kOther>(call, function);
  }
}

template <class T, class Function>
void with_residual(const Call& call, Input residual, const Function& function) {
  if (residual.data != nullptr) with_activation<T, true>(call, function);
  else with_activation<T, false>(call, function);
}

template <class Function>
void with_types(const Call& call, Input residual, const Function& function) {
  switch (call.dtype) {
    case Dtype::kFloat32:
      return with_residual<float>(call, residual, function);
    case Dtype::kFloat64:
      return with_residual<double>(call, residual, function);
    case Dtype::kBFloat16:
      return with_residual<BFloat16>(call, residual, function);
    case Dtype::kFloat16:
      return with_residual<Float16>(call, residual, function);
  }
}

void collect(const Call& call, Input x, double* mean, double* var) {
  with_types(call, Input{nullptr, 0, 0}, [&](const auto& layout) { layout.collect(x, mean, var); });
}

void normalize(const Call& call, Input x, Input residual, const double* mean, const double* var, Output y) {
  with_types(call, residual, [&](const auto& layout) { layout.normalize(x, residual, mean, var, y); });
}

void forward(const Call& call, Input x, Input residual, double* mean, double* var, Output y) {
  with_types(call, residual, [&](const auto& layout) { layout.forward(x, residual, mean, var, y); });
}

void reduce(const Call& call, Input dy, Input x, Input residual, const double* mean, const double* var, double* sum_dy,
            double* sum_dy_xhat) {
  with_types(call, residual, [&](const auto& layout) {
    layout.reduce(dy, x, residual, mean, var, sum_dy, sum_dy_xhat);
  });
}

void apply(const Call& call, Input dy, Input x, Input residual, const double* mean, const double* var,
           const double* sum_dy, const double* sum_dy_xhat, double count, Output dx, Output dz) {
  with_types(call, residual, [&](const auto& layout) {
    layout.template apply<true>(dy, x, residual, mean, var, sum_dy, sum_dy_xhat, count, dx, dz);
  });
}

void backward(const Call& call, Input dy, Input x, Input residual, const double* mean, const double* var,
              bool batch_statistics, double* sum_dy, double* sum_dy_xhat, Output dx, Output dz) {
  with_types(call, residual, [&](const auto& layout) {
    if (batch_statistics)
      layout.template backward<true>(dy, x, residual, mean, var, sum_dy, sum_dy_xhat, dx, dz);
    else
      layout.template backward<false>(dy, x, residual, mean, var, sum_dy, sum_dy_xhat, dx, dz);
  });
}

void read(const void* vector, Dtype dtype, int64_t channels, double* values) {
  for (int64_t c = 0; c < channels; ++c) values[c] = element(vector, dtype, c);
}

void write(const double* values, int64_t channels, void* vector, Dtype dtype) {
  for (int64_t c = 0; c < channels; ++c) put_element(vector, dtype, c, values[c]);
}

}  // namespace

#define BATCHNORM_STRING_(x) #x
#define BATCHNORM_STRING(x) BATCHNORM_STRING_(x)
extern const Kernels kernels;
const Kernels kernels = {BATCHNORM_STRING(BATCHNORM_TARGET), collect, normalize, forward,
                         reduce, apply, backward, read, write};

}  // namespace batchnorm::BATCHNORM_TARGET
