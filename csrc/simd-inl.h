// Vectors of one target: loads and stores of the four storage types, tails, reductions.
// Compiled once per target, inside its namespace; nothing from the standard library may be instantiated here, or the
// linker could hand one target's code to another.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// For the innermost loops, which are written as functions of functions: a call in each of them would cost a third of the
// time of a short line, and the compiler's own estimate of what is worth it changes with everything around.
// A function that does nothing but prefetch must be inlined by order: GCC takes it for one without an effect, and drops
// the call.
#define BATCHNORM_INLINE __attribute__((always_inline)) inline
#define BATCHNORM_INLINE_LAMBDA __attribute__((always_inline))

namespace batchnorm::BATCHNORM_TARGET {
namespace {

// clang-format off
template <class F> struct LanesOf;
template <> struct LanesOf<float> {
  static constexpr int count = BATCHNORM_WIDTH / 4;
  using Vector = float __attribute__((vector_size(BATCHNORM_WIDTH)));
  using Mask = int32_t __attribute__((vector_size(BATCHNORM_WIDTH)));
  using Bits = uint32_t __attribute__((vector_size(BATCHNORM_WIDTH)));
  using Bytes = uint8_t __attribute__((vector_size(BATCHNORM_WIDTH / 4)));
  using Words = uint16_t __attribute__((vector_size(BATCHNORM_WIDTH / 2)));
};
template <> struct LanesOf<double> {
  static constexpr int count = BATCHNORM_WIDTH / 8;
  using Vector = double __attribute__((vector_size(BATCHNORM_WIDTH)));
  using Mask = int64_t __attribute__((vector_size(BATCHNORM_WIDTH)));
  using Bits = uint64_t __attribute__((vector_size(BATCHNORM_WIDTH)));
  using Bytes = uint8_t __attribute__((vector_size(BATCHNORM_WIDTH / 8)));
  using Words = uint16_t __attribute__((vector_size(BATCHNORM_WIDTH / 4)));
  using LongWords = uint32_t __attribute__((vector_size(BATCHNORM_WIDTH / 2)));
};
// clang-format on
template <class F>
using Vec = typename LanesOf<F>::Vector;
template <class F>
constexpr int kLanes = LanesOf<F>::count;

using Half = uint16_t __attribute__((vector_size(BATCHNORM_WIDTH / 2)));  // as many as there are floats

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The type of arithmetic on values stored as T.
template <class T>
struct ArithmeticOf {
  using type = float;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
};
template <class T>
using Arithmetic = typename ArithmeticOf<T>::type;

// How many lanes of a vector hold values: all, or the first n.
struct Whole {};

template <class F>
inline Vec<F> splat(F value) {
  return value - Vec<F>{};
}

template <class F>
inline typename LanesOf<F>::Mask first_lanes(int n) {
  typename LanesOf<F>::Mask index;
  for (int i = 0; i < kLanes<F>; ++i) index[i] = i;
  return index < n;
}

template <class F>
inline Vec<F> keep(Vec<F> v, Whole) {
  return v;
}
template <class F>
inline Vec<F> keep(Vec<F> v, int n) {
  return first_lanes<F>(n) ? v : Vec<F>{};
}

template <class V, class T>
inline V load_bits(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class T>
inline V load_bits(const T* p, int n) {
  T lanes[sizeof(V) / sizeof(T)] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load_bits<V>(lanes);
}
template <class V, class T>
inline void store_bits(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}
template <class V, class T>
inline void store_bits(T* p, V v, int n) {
  T lanes[sizeof(V) / sizeof(T)];
  store_bits(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
// The sanitizer does not see what an intrinsic touches: its build has the loops above.
#if defined(BATCHNORM_SANITIZE)
#elif defined(__AVX512BW__) && defined(__AVX512VL__) && BATCHNORM_WIDTH == 64
template <>
inline Vec<float> load_bits<Vec<float>>(const float* p, int n) {
  return reinterpret_cast<Vec<float>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p));
}
template <>
inline void store_bits(float* p, Vec<float> v, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), reinterpret_cast<__m512>(v));
}
template <>
inline Half load_bits<Half>(const uint16_t* p, int n) {
  return reinterpret_cast<Half>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1u), p));
}
template <>
inline void store_bits(uint16_t* p, Half v, int n) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1u), reinterpret_cast<__m256i>(v));
}
#elif defined(__AVX2__) && BATCHNORM_WIDTH == 32
template <>
inline Vec<float> load_bits<Vec<float>>(const float* p, int n) {
  return reinterpret_cast<Vec<float>>(_mm256_maskload_ps(p, reinterpret_cast<__m256i>(first_lanes<float>(n))));
}
template <>
inline void store_bits(float* p, Vec<float> v, int n) {
  _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(first_lanes<float>(n)), reinterpret_cast<__m256>(v));
}
#endif

inline Vec<float> widen(Half h, BFloat16) {
  using Bits = LanesOf<float>::Bits;
  return reinterpret_cast<Vec<float>>(__builtin_convertvector(h, Bits) << 16);
}

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
inline Half narrow(Vec<float> v, BFloat16) {
  using Bits = LanesOf<float>::Bits;
  const Bits u = reinterpret_cast<Bits>(v);
  const Bits rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const Bits nan = (u >> 16) | 0x40u;
  return __builtin_convertvector(v == v ? rounded : nan, Half);
}

#if defined(__F16C__) && BATCHNORM_WIDTH == 64
inline Vec<float> widen(Half h, Float16) {
  return reinterpret_cast<Vec<float>>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(h)));
}
inline Half narrow(Vec<float> v, Float16) {
  return reinterpret_cast<Half>(_mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__) && BATCHNORM_WIDTH == 32
inline Vec<float> widen(Half h, Float16) {
  return reinterpret_cast<Vec<float>>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(h)));
}
inline Half narrow(Vec<float> v, Float16) {
  return reinterpret_cast<Half>(_mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#else
// Exact: the exponent is moved by a product with a power of two, which also makes subnormals right.
inline Vec<float> widen(Half h, Float16) {
  using Bits = LanesOf<float>::Bits;
  const Bits u = __builtin_convertvector(h, Bits);
  const Vec<float> magnitude = reinterpret_cast<Vec<float>>((u & 0x7fffu) << 13) * 0x1p112f;
  const Bits special = reinterpret_cast<Bits>(magnitude) | 0x7f800000u;  // infinities and NaN
  const Bits bits = (u & 0x7c00u) == 0x7c00u ? special : reinterpret_cast<Bits>(magnitude);
  return reinterpret_cast<Vec<float>>(bits | ((u & 0x8000u) << 16));
}
// Round to nearest, ties to even, by adding a number whose last digit is that of the result.
inline Half narrow(Vec<float> v, Float16) {
  using Bits = LanesOf<float>::Bits;
  const Bits u = reinterpret_cast<Bits>(v);
  const Bits sign = (u >> 16) & 0x8000u;
  const Bits a = u & 0x7fffffffu;
  const Bits normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
  const Vec<float> shifted = reinterpret_cast<Vec<float>>(a) + 0.5f;  // 0.5 has the ulp of a half subnormal
  const Bits subnormal = reinterpret_cast<Bits>(shifted) - 0x3f000000u;
  const Bits infinite = Bits{} + 0x7c00u;
  const Bits nan = Bits{} + 0x7e00u;
  Bits r = a < 0x38800000u ? subnormal : normal;
  r = a >= 0x477ff000u ? infinite : r;
  r = a > 0x7f800000u ? nan : r;
  return __builtin_convertvector(r | sign, Half);
}
#endif

template <class Count>
inline Vec<float> load(const float* p, Count count) {
  if constexpr (__is_same(Count, Whole)) return load_bits<Vec<float>>(p);
  else return load_bits<Vec<float>>(p, count);
}
template <class Count>
inline Vec<double> load(const double* p, Count count) {
  if constexpr (__is_same(Count, Whole)) return load_bits<Vec<double>>(p);
  else return load_bits<Vec<double>>(p, count);
}
template <class T, class Count>
inline Vec<float> load(const T* p, Count count) {
  const auto* bits = reinterpret_cast<const uint16_t*>(p);
  if constexpr (__is_same(Count, Whole)) return widen(load_bits<Half>(bits), T{});
  else return widen(load_bits<Half>(bits, count), T{});
}
template <class Count>
inline void store(float* p, Vec<float> v, Count count) {
  if constexpr (__is_same(Count, Whole)) store_bits(p, v);
  else store_bits(p, v, count);
}
template <class Count>
inline void store(double* p, Vec<double> v, Count count) {
  if constexpr (__is_same(Count, Whole)) store_bits(p, v);
  else store_bits(p, v, count);
}
template <class T, class Count>
inline void store(T* p, Vec<float> v, Count count) {
  auto* bits = reinterpret_cast<uint16_t*>(p);
  if constexpr (__is_same(Count, Whole)) store_bits(bits, narrow(v, T{}));
  else store_bits(bits, narrow(v, T{}), count);
}

// Which lanes of a vector count: 1 or 0 in each.
template <class F>
using LaneMask = typename LanesOf<F>::Bits;

// From one byte, 0 or 1, for each lane. Without instructions of its own it goes step by step: GCC 12 takes a longer
// conversion apart, lane by lane.
template <class F, class Count>
inline LaneMask<F> load_mask(const uint8_t* mask, Count count) {
  using Lanes = LanesOf<F>;
  typename Lanes::Bytes bytes;
  if constexpr (__is_same(Count, Whole)) bytes = load_bits<typename Lanes::Bytes>(mask);
  else bytes = load_bits<typename Lanes::Bytes>(mask, count);
#if (defined(__AVX512F__) && BATCHNORM_WIDTH == 64) || (defined(__AVX2__) && BATCHNORM_WIDTH == 32)
  __m128i first{};
  __builtin_memcpy(&first, &bytes, sizeof bytes);
#if BATCHNORM_WIDTH == 64
  if constexpr (sizeof(F) == 4) return reinterpret_cast<LaneMask<F>>(_mm512_cvtepu8_epi32(first));
  else return reinterpret_cast<LaneMask<F>>(_mm512_cvtepu8_epi64(first));
#else
  if constexpr (sizeof(F) == 4) return reinterpret_cast<LaneMask<F>>(_mm256_cvtepu8_epi32(first));
  else return reinterpret_cast<LaneMask<F>>(_mm256_cvtepu8_epi64(first));
#endif
#else
  const auto words = __builtin_convertvector(bytes, typename Lanes::Words);
  if constexpr (sizeof(F) == 4) return __builtin_convertvector(words, LaneMask<F>);
  else return __builtin_convertvector(__builtin_convertvector(words, typename Lanes::LongWords), LaneMask<F>);
#endif
}

// The lanes that count, and 0 in the others. In bits: GCC would make one masked instruction of a choice and the sum
// before it, whose product is then rounded on its own, unlike that of loops without masks.
template <class F>
inline Vec<F> keep_lanes(LaneMask<F> mask, Vec<F> v) {
  return reinterpret_cast<Vec<F>>(reinterpret_cast<LaneMask<F>>(v) & -mask);
}

// Values that compress writes behind the end.
constexpr int kCompressSlack = 16;

// Append to `to` the values whose byte in a mask is 1, and return the end; ask for the values that are `ahead` elements
// further.
template <class T>
inline T* compress(const T* from, const uint8_t* mask, int64_t length, int64_t ahead, T* to) {
  int64_t i = 0;
#if defined(__AVX512BW__) && defined(__AVX512VL__) && BATCHNORM_WIDTH == 64 && !defined(BATCHNORM_SANITIZE)
  for (; i + 16 <= length; i += 16) {
    __builtin_prefetch(from + i + ahead);
    if constexpr (sizeof(T) == 8) __builtin_prefetch(from + i + 8 + ahead);
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(mask + i));
    const auto kept = static_cast<unsigned>(_mm_test_epi8_mask(bytes, bytes));
    if constexpr (sizeof(T) == 2) {
      const __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
      const __m512i packed = _mm512_maskz_compress_epi32(static_cast<__mmask16>(kept), v);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(packed));
    } else if constexpr (sizeof(T) == 4) {
      _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(kept), _mm512_loadu_si512(from + i)));
    } else {
      const unsigned low = kept & 0xffu, high = kept >> 8;
      T* const half = to + __builtin_popcount(low);
      _mm512_storeu_si512(to, _mm512_maskz_compress_epi64(static_cast<__mmask8>(low), _mm512_loadu_si512(from + i)));
      const __m512i second = _mm512_loadu_si512(from + i + 8);
      _mm512_storeu_si512(half, _mm512_maskz_compress_epi64(static_cast<__mmask8>(high), second));
    }
    to += __builtin_popcount(kept);
  }
#else
  for (; i + 8 <= length; i += 8) {
    __builtin_prefetch(from + i + ahead);
    uint64_t bytes;
    __builtin_memcpy(&bytes, mask + i, 8);
    if (bytes == 0x0101010101010101u) {
      __builtin_memcpy(to, from + i, 8 * sizeof(T));
      to += 8;
    } else if (bytes != 0) {
      for (int j = 0; j < 8; ++j) {
        *to = from[i + j];
        to += mask[i + j];
      }
    }
  }
#endif
  for (; i < length; ++i) {
    *to = from[i];
    to += mask[i];
  }
  return to;
}

template <class V>
inline void stream_bits(void* p, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512(static_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256(static_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(V) == 16) return _mm_stream_si128(static_cast<__m128i*>(p), reinterpret_cast<__m128i>(v));
#endif
  __builtin_memcpy(p, &v, sizeof(V));
}

// Store past the caches where `streams`, for which p is aligned as is_streamable asks; other threads see it after a
// fence.
template <class T, class V, class Count>
inline void store(T* p, V v, Count count, bool streams) {
  if constexpr (__is_same(Count, Whole)) {
    if (streams) {
      if constexpr (sizeof(T) == 2) stream_bits(p, narrow(v, T{}));
      else stream_bits(p, v);
      return;
    }
  }
  store(p, v, count);
}

// Whether lines at these distances from the first are all aligned to a vector's storage.
template <class T>
inline bool is_streamable(const void* first, int64_t stride, int64_t other_stride) {
  constexpr uint64_t size = kLanes<Arithmetic<T>> * sizeof(T);
  const auto bits = reinterpret_cast<uint64_t>(first) | static_cast<uint64_t>(stride * static_cast<int64_t>(sizeof(T))) |
                    static_cast<uint64_t>(other_stride * static_cast<int64_t>(sizeof(T)));
  return bits % size == 0;
}

inline void fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The sum of all lanes, in float64 and in a fixed order.
template <class V>
inline double sum_lanes(V v) {
  double sum = 0;
  for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) sum += static_cast<double>(v[i]);
  return sum;
}

// Call body(i, u, count) for every vector of a line of `length` values; u < U tells accumulators apart, which hides the
// latency of an addition (four cycles on the processors that this was measured on).
template <class F, int U, class Body>
BATCHNORM_INLINE void sweep(int64_t length, Body body) {
  constexpr int L = kLanes<F>;
  int64_t i = 0;
  for (; i + U * L <= length; i += U * L) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) body(i + u * L, u, Whole{});
  }
  // Short lines are nothing but rest: it takes turns too.
#pragma GCC unroll 8
  for (int u = 0; u + 1 < U; ++u) {
    if (i + L > length) break;
    body(i, u, Whole{});
    i += L;
  }
  if (i < length) body(i, U - 1, static_cast<int>(length - i));
}

}  // namespace
}  // namespace batchnorm::BATCHNORM_TARGET
