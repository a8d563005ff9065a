// Activations and their derivatives on vectors. Accuracy is measured over 4 million floats of each range: in ulp of the
// result, or in eps = 2^-23 of max(1, |result|) where a small result is a difference of large numbers. The float64
// forms call the C library lane by lane.
#pragma once

#include <math.h>
#include <stdint.h>

#include "kernels.h"
#include "simd-inl.h"

namespace batchnorm::BATCHNORM_TARGET {
namespace {

using VF = Vec<float>;

inline VF clamp(VF v, float low, float high) {
  v = v < low ? splat(low) : v;  // a NaN passes
  return v > high ? splat(high) : v;
}

// exp(x): 2^n exp(r) with |r| <= ln(2)/2, exp(r) by its series to r^7 / 7!, whose remainder is below 0.1 ulp there.
// Below -87.3 it is 0 and above 88.3 infinite, which 1 / (1 + exp(-z)) turns into 0; a constant there would come back
// multiplied by a large z.
inline VF exp(VF all) {
  const VF x = clamp(all, -87.3f, 88.3f);
  const VF shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the nearest integer
  const VF n = shifted - 12582912.0f;
  VF r = x - n * 0.693359375f;  // ln 2 in two parts, the first of few digits so that the product is exact
  r = r + n * 2.12194440e-4f;
  VF p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  using Bits = LanesOf<float>::Bits;
  const Bits exponent = (reinterpret_cast<Bits>(shifted) + 127u) << 23;
  const VF result = p * reinterpret_cast<VF>(exponent);  // a NaN passes: p is one
  const VF upper = all > 88.3f ? splat(__builtin_inff()) : result;
  return all < -87.3f ? VF{} : upper;
}

// 2.5 ulp on [-87, 88]; its slope s (1 - s): 0.75 eps.
inline VF sigmoid(VF z) { return 1.0f / (1.0f + exp(-z)); }

// 1.3 ulp on all floats; its slope 1 - t^2: 1 eps. Near zero by its series, since 1 - 2 / (exp(2z) + 1) loses the
// digits of small results.
inline VF tanh(VF z) {
  const VF a = z < 0.0f ? -z : z;
  const VF far = 1.0f - 2.0f / (exp(a + a) + 1.0f);
  const VF s = z * z;
  VF p = splat(-5.70498872745e-3f);  // Moshier, Cephes, tanhf
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  const VF near = p * s * z + z;
  return a < 0.625f ? near : (z < 0.0f ? -far : far);
}

// The normal distribution function, 0.5 erfc(-z / sqrt 2): by erf near zero, by erfc outside. z times it, the GELU, and
// its slope: 1.2 eps on [-87, 88].
inline VF normal_cdf(VF z) {
  const VF v = z * 0.70710678118654752f;
  const VF a = v < 0.0f ? -v : v;
  const VF s = v * v;
  VF e = splat(7.853861353153693e-5f);  // Moshier, Cephes, ndtrf: erf on [0, 1]
  e = e * s - 8.010193625184903e-4f;
  e = e * s + 5.188327685732524e-3f;
  e = e * s - 2.685381193529856e-2f;
  e = e * s + 1.128358514861418e-1f;
  e = e * s - 3.761262582423300e-1f;
  e = e * s + 1.128379165726710f;
  const VF q = 1.0f / a;
  const VF t = q * q;
  VF m = splat(2.326819970068386e-2f);  // erfc on [1, 2]
  m = m * t - 1.387039388740657e-1f;
  m = m * t + 3.687424674597105e-1f;
  m = m * t - 5.824733027278666e-1f;
  m = m * t + 6.210004621745983e-1f;
  m = m * t - 4.944515323274145e-1f;
  m = m * t + 3.404879937665872e-1f;
  m = m * t - 2.741127028184656e-1f;
  m = m * t + 5.638259427386472e-1f;
  VF f = splat(-1.047766399936249e+1f);  // erfc beyond 2
  f = f * t + 1.297719955372516e+1f;
  f = f * t - 7.495518717768503e+0f;
  f = f * t + 2.921019019210786e+0f;
  f = f * t - 1.015265279202700e+0f;
  f = f * t + 4.218463358204948e-1f;
  f = f * t - 2.820767439740514e-1f;
  f = f * t + 5.641895067754075e-1f;
  const VF erfc = exp(-s) * q * (a < 2.0f ? m : f);
  const VF outside = v < 0.0f ? 0.5f * erfc : 1.0f - 0.5f * erfc;
  const VF result = a < 1.0f ? 0.5f + 0.5f * e * v : outside;
  return z == z ? result : z;
}

// The exponent's own rounding, z^2 / 4 eps, times a density that vanishes: below 1 eps.
inline VF normal_density(VF z) { return 0.39894228040143268f * exp(-0.5f * z * z); }

using VD = Vec<double>;

template <class Function>
inline VD by_lane(VD z, Function function) {
  VD r{};
  for (int i = 0; i < kLanes<double>; ++i) r[i] = function(z[i]);
  return r;
}
inline VD sigmoid(VD z) {
  return by_lane(z, [](double v) { return 1.0 / (1.0 + ::exp(-v)); });
}
inline VD tanh(VD z) {
  return by_lane(z, [](double v) { return ::tanh(v); });
}
inline VD normal_cdf(VD z) {
  return by_lane(z, [](double v) { return 0.5 * ::erfc(-v * 0.70710678118654752440); });
}
inline VD normal_density(VD z) {
  return by_lane(z, [](double v) { return 0.39894228040143267794 * ::exp(-0.5 * v * v); });
}

// Which activation a loop is compiled for; the others share one loop that asks at each vector, which costs nothing
// beside their arithmetic.
enum class Fused { kNone, kRelu, kOther };

template <class F, Fused fused>
struct Activate {
  Activation activation;

  Vec<F> operator()(Vec<F> z) const {
    using V = Vec<F>;
    if constexpr (fused == Fused::kNone) return z;
    if constexpr (fused == Fused::kRelu) return z <= F(0) ? V{} : z;  // a NaN passes
    const V three = splat(F(3)), six = splat(F(6));
    switch (activation) {
      case Activation::kRelu6: {
        const V positive = z <= F(0) ? V{} : z;  // a NaN passes
        return positive > six ? six : positive;
      }
      case Activation::kLeakyRelu:
        return z > F(0) ? z : z * F(0.01);
      case Activation::kSilu:  // 2.9 ulp on [-87, 88]
        return z * sigmoid(z);
      case Activation::kHardswish: {  // three roundings
        V gate = z + three;
        gate = gate < F(0) ? V{} : gate;
        gate = gate > six ? six : gate;
        return z * gate / six;
      }
      case Activation::kGelu:
        return z * normal_cdf(z);
      case Activation::kSigmoid:
        return sigmoid(z);
      case Activation::kTanh:
        return tanh(z);
      default:
        return z;
    }
  }

  // dz = dy * derivative at z
  Vec<F> backward(Vec<F> dy, Vec<F> z) const {
    using V = Vec<F>;
    if constexpr (fused == Fused::kNone) return dy;
    if constexpr (fused == Fused::kRelu) return z <= F(0) ? V{} : dy;
    switch (activation) {
      case Activation::kRelu6: {
        const V below = z >= F(6) ? V{} : dy;
        return z <= F(0) ? V{} : below;
      }
      case Activation::kLeakyRelu:
        return z > F(0) ? dy : dy * F(0.01);
      case Activation::kSilu: {  // 8.2 eps on [-20, 20], where z (1 - s) has the error of |z| s
        const V s = sigmoid(z);
        return dy * (s * (F(1) + z * (F(1) - s)));
      }
      case Activation::kHardswish: {
        const V inside = dy * (z / splat(F(3)) + F(0.5));
        const V left = z <= F(-3) ? V{} : inside;
        return z >= F(3) ? dy : left;
      }
      case Activation::kGelu:
        return dy * (normal_cdf(z) + z * normal_density(z));
      case Activation::kSigmoid: {
        const V s = sigmoid(z);
        return dy * (s * (F(1) - s));
      }
      case Activation::kTanh: {
        const V t = tanh(z);
        return dy * (F(1) - t * t);
      }
      default:
        return dy;
    }
  }
};

}  // namespace
}  // namespace batchnorm::BATCHNORM_TARGET
