// The table of one target: cuts a call into groups, and picks the class for its layout, types and activation. Included
// once per target, by target_<name>.cpp, which defines BATCHNORM_TARGET (the namespace) and BATCHNORM_WIDTH (bytes of a
// vector).
#pragma once

#include <omp.h>

#include "activations-inl.h"
#include "common-inl.h"
#include "kernels.h"
#include "planes-inl.h"
#include "rows-inl.h"

namespace batchnorm::BATCHNORM_TARGET {
namespace {

template <class Function>
void with_type(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::kFloat32:
      return function(float{});
    case Dtype::kFloat64:
      return function(double{});
    case Dtype::kBFloat16:
      return function(BFloat16{});
    case Dtype::kFloat16:
      return function(Float16{});
  }
}

template <class T, bool has_residual, Fused fused, bool masked, class Function>
void with_layout(const Call& call, const Function& function) {
  if (call.shape.rows) function(Rows<T, has_residual, fused, masked>(call));
  else function(Planes<T, has_residual, fused, masked>(call));
}

template <class T, bool has_residual, Fused fused, class Function>
void with_masks(const Call& call, const Function& function) {
  if (call.members != nullptr || call.kept != nullptr) with_layout<T, has_residual, fused, true>(call, function);
  else with_layout<T, has_residual, fused, false>(call, function);
}

template <class T, bool has_residual, class Function>
void with_activation(const Call& call, const Function& function) {
  switch (call.activation) {
    case Activation::kNone:
      return with_masks<T, has_residual, Fused::kNone>(call, function);
    case Activation::kRelu:
      return with_masks<T, has_residual, Fused::kRelu>(call, function);
    default:
      return with_masks<T, has_residual, Fused::kOther>(call, function);
  }
}

// Call function(layout) with the class that is compiled for this call.
template <class Function>
void with_formula(const Call& call, const Function& function) {
  with_type(call.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (call.residual.data != nullptr) with_activation<T, true>(call, function);
    else with_activation<T, false>(call, function);
  });
}

template <class Pointer>
void shift(Pointer& p, int64_t by) {
  if (p != nullptr) p += by;
}

template <class Tensor>
void shift_tensor(Tensor& t, int64_t outer, Dtype dtype) {
  const int64_t width = dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
  auto* bytes = static_cast<const char*>(t.data);
  shift(bytes, outer * t.outer_stride * width);
  t.data = const_cast<char*>(bytes);
}

// The call of one group alone: a slice of the outer dimension, and its statistics and sums.
Call group_of(const Call& call, int64_t g) {
  const int64_t first = g * call.group, row = g * call.shape.channels;
  Call one = call;
  one.shape.outer = one.group = at_most(call.group, call.shape.outer - first);
  shift_tensor(one.x, first, call.dtype);
  shift_tensor(one.dy, first, call.dtype);
  shift_tensor(one.residual, first, call.dtype);
  shift_tensor(one.y, first, call.dtype);
  shift_tensor(one.dx, first, call.dtype);
  shift_tensor(one.dresidual, first, call.dtype);
  shift(one.mean, row);
  shift(one.var, row);
  shift(one.sum_dy, row);
  shift(one.sum_dy_xhat, row);
  shift(one.count, g);
  shift(one.members, first * call.shape.inner);
  shift(one.kept, first * call.shape.inner);
  return one;
}

// Call body(call of a group) for every group. Several small ones, or as many as share out evenly, are taken each by one
// thread, which finds in its second pass what the first has left in its cache; few large ones by all threads together.
template <class Body>
void for_each_group(const Call& call, const Body& body) {
  const int64_t groups = call.groups(), threads = threads_for(call, groups);
  if (groups == 1) return body(call);
  const int64_t values = call.group * call.shape.channels * call.shape.inner;
  if (threads > 1 && (groups % threads == 0 || groups >= 4 * threads || values < 4 * kSerial)) {
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads))
    for (int64_t g = 0; g < groups; ++g) {
      Call one = group_of(call, g);
      one.threads = 1;
      body(one);
    }
  } else {
    for (int64_t g = 0; g < groups; ++g) body(group_of(call, g));
  }
}

void collect(const Call& call) {
  for_each_group(call, [](const Call& group) {
    with_type(group.dtype, [&](auto zero) {
      if (group.shape.rows) RowWalk<decltype(zero)>(group).collect();
      else PlaneWalk<decltype(zero)>(group).collect();
    });
  });
}

template <class Function>
void run(const Call& call, const Function& function) {
  for_each_group(call, [&](const Call& group) { with_formula(group, function); });
}

void normalize(const Call& call) {
  run(call, [](const auto& layout) { layout.normalize(); });
}
void forward(const Call& call) {
  run(call, [](const auto& layout) { layout.forward(); });
}
void reduce(const Call& call) {
  run(call, [](const auto& layout) { layout.reduce(); });
}
void apply(const Call& call) {
  run(call, [](const auto& layout) { layout.apply(); });
}
void backward(const Call& call) {
  run(call, [](const auto& layout) { layout.backward(); });
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
