// The arithmetic of one value, forward and backward, on vectors. N is what a channel's numbers are: one number where a
// vector holds values of one channel (planes), a vector where each lane has a channel of its own (rows).
#pragma once

#include "activations-inl.h"
#include "common-inl.h"
#include "kernels.h"
#include "simd-inl.h"

namespace batchnorm::BATCHNORM_TARGET {
namespace {

// The numbers that normalize a channel.
//   z     = (x - mean) * scale + shift            scale = weight / sqrt(var + eps)
//   x_hat = (x - mean) * invstd + x_hat_shift
template <class N>
struct Channel {
  N mean, scale, shift, invstd, x_hat_shift;
};

// dx = dz * scale + (x_hat * of_x_hat + constant): the two averages of dz, where the statistics depend on x.
template <class N>
struct Correction {
  N of_x_hat, constant;
};

inline double parameter(const void* vector, Dtype dtype, int64_t c, double neutral) {
  return vector == nullptr ? neutral : element(vector, dtype, c);
}

// `mean` is the float64 one rounded; what it loses is in the shifts, where it is small, so x - mean is exact for data
// close to their mean and nothing cancels.
template <class F>
inline Channel<F> channel_of(const Call& call, int64_t c) {
  const double invstd = 1.0 / __builtin_sqrt(call.var[c] + call.eps);
  const double weight = parameter(call.affine.weight, call.affine.weight_dtype, c, 1.0);
  const double bias = parameter(call.affine.bias, call.affine.bias_dtype, c, 0.0);
  const F mean = static_cast<F>(call.mean[c]);
  const double rest = call.mean[c] - static_cast<double>(mean);
  return {mean, static_cast<F>(weight * invstd), static_cast<F>(bias - rest * (weight * invstd)),
          static_cast<F>(invstd), static_cast<F>(-rest * invstd)};
}

template <class F>
inline Correction<F> correction_of(const Call& call, int64_t c, const Channel<F>& channel) {
  if (call.count == nullptr) return {};
  const double scale = static_cast<double>(channel.scale), count = *call.count;
  return {static_cast<F>(-scale * (call.sum_dy_xhat[c] / count)), static_cast<F>(-scale * (call.sum_dy[c] / count))};
}

// What is computed of each value. Without a residual, r is not looked at.
template <class F, bool has_residual, Fused fused>
struct Formula {
  using V = Vec<F>;
  Activate<F, fused> activate;

  template <class N>
  BATCHNORM_INLINE V before_activation(const Channel<N>& channel, V centred, V r) const {
    const V z = centred * channel.scale + channel.shift;
    if constexpr (has_residual) return z + r;
    return z;
  }

  template <class N>
  BATCHNORM_INLINE V forward(const Channel<N>& channel, V x, V r) const {
    return activate(before_activation(channel, x - channel.mean, r));
  }

  struct Gradient {
    V dz, x_hat;
  };

  template <class N>
  BATCHNORM_INLINE Gradient gradient(const Channel<N>& channel, V dy, V x, V r) const {
    const V centred = x - channel.mean;
    return {activate.backward(dy, before_activation(channel, centred, r)),
            centred * channel.invstd + channel.x_hat_shift};
  }

  // The part of dx that comes through the statistics.
  template <class N>
  static BATCHNORM_INLINE V through_statistics(const Gradient& gradient, const Correction<N>& correction) {
    return gradient.x_hat * correction.of_x_hat + correction.constant;
  }

  // All of it; `through` is 0 where the statistics are constants. One expression, so that it is contracted to one
  // rounding with masks and without.
  template <class N>
  static BATCHNORM_INLINE V dx(const Channel<N>& channel, V dz, V through) {
    return dz * channel.scale + through;
  }
  template <class N>
  static BATCHNORM_INLINE V dx(const Channel<N>& channel, V dz) {
    return dz * channel.scale;
  }
};

}  // namespace
}  // namespace batchnorm::BATCHNORM_TARGET
