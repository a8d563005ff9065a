// (N, C, *S) with contiguous planes of S values.
//
//            channel 0   channel 1   channel 2
//   sample 0 [ plane  ]  [ plane  ]  [ plane  ]      piece   at most kPiece values of one channel: some whole planes, or
//   sample 1 [ plane  ]  [ plane  ]  [ plane  ]              a section of one. Its sums are taken in one go.
//   sample 2 [ plane  ]  [ plane  ]  [ plane  ]      line    a piece's values in one plane: the innermost loop.
//   ...                                              part    consecutive pieces of a channel, where few channels would
//            <----- bundle ------>                           leave threads without work. Else a channel is one part.
//                                                    bundle  neighbouring channels of small planes, read together.
//
// `forward` and `backward` take a bundle as a task, where a channel is one part: the second pass finds it in cache.
// `collect` and `reduce` take a part, `normalize` and `apply` a run of lines in the order of memory. Pieces and parts are
// cut by the shape alone, and sums of parts are merged in their order: results do not depend on the number of threads.
//
// Accuracy: a piece is summed in the arithmetic's lanes, centred by its own mean before squaring, and merged in float64.
#pragma once

#include "arithmetic-inl.h"
#include "common-inl.h"
#include "kernels.h"
#include "simd-inl.h"

namespace batchnorm::BATCHNORM_TARGET {
namespace {

constexpr int64_t kPiece = 2048;         // values whose sums one lane-wise accumulator takes: 8 KB of float32, half of L1
constexpr int64_t kEnoughChannels = 32;  // tasks that keep the threads of a large machine busy

// Bytes: of planes that are read in bundles; of a bundle, which stays in the second cache; of its run in one sample.
constexpr int64_t kSmallPlane = 1024, kBundle = 1 << 18, kRun = 1 << 13;

// The walk, and the statistics, which do not depend on what follows.
template <class T>
class PlaneWalk {
 public:
  explicit PlaneWalk(const Call& call)
      : call_(call),
        samples_(call.shape.outer),
        channels_(call.shape.channels),
        inner_(call.shape.inner),
        planes_per_piece_(at_least(kPiece / at_least(inner_, 1), 1)),
        pieces_per_plane_(inner_ > kPiece ? divide_up(inner_, kPiece) : 1),
        pieces_(inner_ > kPiece ? samples_ * pieces_per_plane_ : divide_up(samples_, planes_per_piece_)),
        parts_(channels_ >= kEnoughChannels ? 1 : at_most(pieces_, divide_up(kEnoughChannels, channels_))),
        bundle_(at_most(bundle(samples_, inner_ * kSize), at_least(channels_ / (2 * call.threads), 1))) {}

  void collect() const {
    Scratch<Moments> parts(channels_ * parts_);
    for_each_task(call_, channels_ * parts_, [&](int64_t task) { parts[task] = moments(task); });
    for (int64_t c = 0; c < channels_; ++c) keep_statistics(c, parts.data() + c * parts_);
  }

 protected:
  static constexpr int64_t kSize = sizeof(T);
  static constexpr int U = 4;  // accumulators: an addition takes four cycles
  using F = Arithmetic<T>;
  using V = Vec<F>;

  struct Line {
    int64_t n, c, first, length;
  };

  static const T* at(const Input& t, const Line& line) {
    return static_cast<const T*>(t.data) + line.n * t.outer_stride + line.c * t.channel_stride + line.first;
  }
  static T* at(const Output& t, const Line& line) {
    return static_cast<T*>(t.data) + line.n * t.outer_stride + line.c * t.channel_stride + line.first;
  }
  bool streams_to(const Output& t) const {
    return call_.streams && is_streamable<T>(t.data, t.outer_stride, t.channel_stride);
  }

  // The processor foresees a walk only as far as the page, and the next plane is further away: a first pass asks for the
  // next piece while it works on this one, that of the next channel at the end. How far that is, in elements; an address
  // beyond the tensor is harmless.
  int64_t ahead(Input t, int64_t piece) const {
    const int64_t here = offset(t, piece);
    return piece + 1 < pieces_ ? offset(t, piece + 1) - here : offset(t, 0) + t.channel_stride - here;
  }

  int64_t offset(Input t, int64_t piece) const {
    if (inner_ <= kPiece) return piece * planes_per_piece_ * t.outer_stride;
    return piece / pieces_per_plane_ * t.outer_stride + piece % pieces_per_plane_ * kPiece;
  }

  // Channels of a bundle, given the samples and the bytes of a plane. Each channel's result is the same in any bundle, so
  // the number of threads may have a say: a bundle is a task, and no thread should be without.
  static int64_t bundle(int64_t samples, int64_t plane) {
    return plane > kSmallPlane ? 1 : at_least(at_most(kBundle / (samples * plane), kRun / plane), 1);
  }

  static void prefetch(const T* p) { __builtin_prefetch(p); }

  // Small planes are too short for the processor to foresee anything: those of a bundle, which are contiguous in a sample,
  // are asked for together, sample by sample.
  template <bool write, class Tensor>
  void warm(const Tensor& t, int64_t c0, int64_t c1) const {
    if (bundle_ == 1 || t.channel_stride != inner_) return;
    const int64_t length = (c1 - c0) * inner_;
    for (int64_t n = 0; n < samples_; ++n) {
      const T* p = at(t, {n, c0, 0, length});
      for (int64_t i = 0; i < length; i += 64 / kSize) __builtin_prefetch(p + i, write, 2);
    }
  }

  // Call body(first channel, last channel) for every bundle.
  template <class Body>
  void for_each_bundle(const Body& body) const {
    for_each_task(call_, divide_up(channels_, bundle_),
                  [&](int64_t i) { body(i * bundle_, at_most((i + 1) * bundle_, channels_)); });
  }

  // Call body(line) for everything, in the order of memory. No line is longer than a piece; short ones share a task.
  template <class Body>
  void for_each_line(const Body& body) const {
    const int64_t run = at_least(kPiece / inner_, 1), runs = divide_up(channels_, run) * pieces_per_plane_;
    for_each_task(call_, samples_ * runs, [&](int64_t task) {
      const int64_t n = task / runs, piece = task % pieces_per_plane_, c0 = task % runs / pieces_per_plane_ * run;
      const int64_t first = piece * kPiece, length = at_most(kPiece, inner_ - first);
      for (int64_t c = c0; c < at_most(c0 + run, channels_); ++c) body(Line{n, c, first, length});
    });
  }

  // The same for a bundle whose first pass has just gone by: backwards, as its end is still in cache.
  template <class Body>
  void for_each_line_of(int64_t c0, int64_t c1, const Body& body) const {
    if (c1 - c0 == 1)
      for (int64_t piece = pieces_; piece-- > 0;) for_each_line_in(piece, c0, body);
    else
      for (int64_t n = samples_; n-- > 0;)
        for (int64_t c = c0; c < c1; ++c) body(Line{n, c, 0, inner_});
  }

  // Call body(line) for the lines of one piece of a channel.
  template <class Body>
  void for_each_line_in(int64_t piece, int64_t c, const Body& body) const {
    if (inner_ > kPiece) {
      const int64_t first = piece % pieces_per_plane_ * kPiece;
      body(Line{piece / pieces_per_plane_, c, first, at_most(kPiece, inner_ - first)});
    } else {
      const int64_t n0 = piece * planes_per_piece_, n1 = at_most(n0 + planes_per_piece_, samples_);
      for (int64_t n = n0; n < n1; ++n) body(Line{n, c, 0, inner_});
    }
  }

  int64_t values_in(int64_t piece) const {
    if (inner_ > kPiece) return at_most(kPiece, inner_ - piece % pieces_per_plane_ * kPiece);
    return at_most(planes_per_piece_, samples_ - piece * planes_per_piece_) * inner_;
  }

  // Call body(piece) for the pieces of a task of `collect` or `reduce`.
  template <class Body>
  void for_each_piece(int64_t task, const Body& body) const {
    const int64_t part = task % parts_;
    for (int64_t piece = pieces_ * part / parts_; piece < pieces_ * (part + 1) / parts_; ++piece) body(piece);
  }

  // Means are kept relative to the channel's first value: they are then small where the data are close together, and
  // merging them loses nothing.
  double origin(int64_t c) const { return value_at(at(call_.x, {0, c, 0, 1})); }

  Moments moments(int64_t task) const {
    const int64_t c = task / parts_;
    const double zero = origin(c);
    Moments all;
    for_each_piece(task, [&](int64_t piece) {
      const int64_t next = ahead(call_.x, piece);
      const auto count = static_cast<double>(values_in(piece));
      V sum[U] = {};
      for_each_line_in(piece, c, [&](const Line& line) {
        const T* p = at(call_.x, line);
        sweep<F, U>(line.length, [&](int64_t i, int u, auto lanes) {
          sum[u] += load(p + i, lanes);
        });
      });
      const F centre = static_cast<F>(sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])) / count);
      V deviation[U] = {}, square[U] = {};
      for_each_line_in(piece, c, [&](const Line& line) {
        const T* p = at(call_.x, line);
        sweep<F, U>(line.length, [&](int64_t i, int u, auto lanes) {
          prefetch(p + next + i);
          const V d = keep<F>(load(p + i, lanes) - centre, lanes);
          deviation[u] += d;
          square[u] += d * d;
        });
      });
      const double d = sum_lanes((deviation[0] + deviation[1]) + (deviation[2] + deviation[3]));
      const double s = sum_lanes((square[0] + square[1]) + (square[2] + square[3]));
      all.merge({count, (static_cast<double>(centre) - zero) + d / count, about_the_mean(s, d, count)});
    });
    return __builtin_isfinite(all.m2) ? all : moments_in_float64(task);
  }

  Moments moments_in_float64(int64_t task) const {
    const int64_t c = task / parts_;
    const double zero = origin(c);
    Moments all;
    for_each_piece(task, [&](int64_t number) {
      Moments piece;
      piece.count = static_cast<double>(values_in(number));
      for_each_line_in(number, c, [&](const Line& line) {
        for (int64_t i = 0; i < line.length; ++i) piece.mean += value_at(at(call_.x, line) + i) - zero;
      });
      piece.mean /= piece.count;
      for_each_line_in(number, c, [&](const Line& line) {
        for (int64_t i = 0; i < line.length; ++i) {
          const double d = (value_at(at(call_.x, line) + i) - zero) - piece.mean;
          piece.m2 += d * d;
        }
      });
      all.merge(piece);
    });
    return all;
  }

  void keep_statistics(int64_t c, const Moments* parts) const {
    Moments all = parts[0];
    for (int64_t part = 1; part < parts_; ++part) all.merge(parts[part]);
    call_.mean[c] = origin(c) + all.mean;
    call_.var[c] = all.m2 / all.count;
    if (c == 0) *call_.count = all.count;
  }

  const Call& call_;
  int64_t samples_, channels_, inner_, planes_per_piece_, pieces_per_plane_, pieces_, parts_, bundle_;
};

template <class T, bool has_residual, Fused fused>
class Planes : public PlaneWalk<T> {
  using Walk = PlaneWalk<T>;
  using typename Walk::F;
  using typename Walk::Line;
  using typename Walk::V;
  using Walk::ahead;
  using Walk::at;
  using Walk::call_;
  using Walk::channels_;
  using Walk::parts_;
  using Walk::prefetch;
  using Walk::streams_to;
  using Walk::U;

 public:
  explicit Planes(const Call& call) : Walk(call), formula_{{call.activation}} {}

  void normalize() const {
    Scratch<Channel<F>> channels(channels_);
    for (int64_t c = 0; c < channels_; ++c) channels[c] = channel_of<F>(call_, c);
    const bool streams = streams_to(call_.y);
    this->for_each_line([&](const Line& line) { normalize_line(line, channels[line.c], streams); });
  }

  void forward() const {
    if (parts_ > 1) {
      this->collect();
      normalize();
      return;
    }
    Scratch<Channel<F>> channels(channels_);
    const bool streams = streams_to(call_.y);
    this->for_each_bundle([&](int64_t c0, int64_t c1) {
      this->template warm<false>(call_.x, c0, c1);
      for (int64_t c = c0; c < c1; ++c) {
        const Moments whole = this->moments(c);
        this->keep_statistics(c, &whole);
        channels[c] = channel_of<F>(call_, c);
      }
      if constexpr (has_residual) this->template warm<false>(call_.residual, c0, c1);
      if (!streams) this->template warm<true>(call_.y, c0, c1);
      this->for_each_line_of(c0, c1, [&](const Line& line) { normalize_line(line, channels[line.c], streams); });
    });
  }

  void reduce() const {
    Scratch<Sums> parts(channels_ * parts_);
    for_each_task(call_, channels_ * parts_, [&](int64_t task) {
      parts[task] = sums(task, channel_of<F>(call_, task / parts_));
    });
    for (int64_t c = 0; c < channels_; ++c) keep_sums(c, parts.data() + c * parts_);
  }

  void apply() const {
    Scratch<Numbers> numbers(channels_);
    for (int64_t c = 0; c < channels_; ++c) numbers[c] = numbers_of(c);
    const bool streams = streams_to(call_.dx) && streams_to(call_.dresidual);
    this->for_each_line([&](const Line& line) { apply_line(line, numbers[line.c], streams); });
  }

  void backward() const {
    if (parts_ > 1) {
      reduce();
      apply();
      return;
    }
    Scratch<Numbers> numbers(channels_);
    const bool streams = streams_to(call_.dx) && streams_to(call_.dresidual);
    this->for_each_bundle([&](int64_t c0, int64_t c1) {
      this->template warm<false>(call_.x, c0, c1);
      this->template warm<false>(call_.dy, c0, c1);
      if constexpr (has_residual) this->template warm<false>(call_.residual, c0, c1);
      for (int64_t c = c0; c < c1; ++c) {
        const Sums whole = sums(c, channel_of<F>(call_, c));
        keep_sums(c, &whole);
        numbers[c] = numbers_of(c);
      }
      if (!streams) this->template warm<true>(call_.dx, c0, c1);
      this->for_each_line_of(c0, c1, [&](const Line& line) { apply_line(line, numbers[line.c], streams); });
    });
  }

 private:
  struct Sums {
    double dy = 0, dy_x_hat = 0;
  };

  struct Numbers {
    Channel<F> channel;
    Correction<F> correction;
  };

  Numbers numbers_of(int64_t c) const {
    const Channel<F> channel = channel_of<F>(call_, c);
    return {channel, correction_of(call_, c, channel)};
  }

  const T* at_residual(const Line& line) const { return has_residual ? at(call_.residual, line) : nullptr; }

  template <class Lanes>
  static V load_residual(const T* p, Lanes lanes) {
    if constexpr (has_residual) return load(p, lanes);
    else return V{};
  }

  void normalize_line(const Line& line, const Channel<F>& channel, bool streams) const {
    const T *px = at(call_.x, line), *pr = at_residual(line);
    T* py = at(call_.y, line);
    sweep<F, U>(line.length, [&](int64_t i, int, auto lanes) {
      store(py + i, formula_.forward(channel, load(px + i, lanes), load_residual(pr + i, lanes)), lanes, streams);
    });
  }

  Sums sums(int64_t task, const Channel<F>& channel) const {
    Sums all;
    this->for_each_piece(task, [&](int64_t piece) {
      const int64_t next_x = ahead(call_.x, piece), next_dy = ahead(call_.dy, piece);
      const int64_t next_residual = has_residual ? ahead(call_.residual, piece) : 0;
      V sum[U] = {}, sum_x_hat[U] = {};
      this->for_each_line_in(piece, task / parts_, [&](const Line& line) {
        const T *pd = at(call_.dy, line), *px = at(call_.x, line), *pr = at_residual(line);
        sweep<F, U>(line.length, [&](int64_t i, int u, auto lanes) {
          prefetch(px + next_x + i);
          prefetch(pd + next_dy + i);
          if constexpr (has_residual) prefetch(pr + next_residual + i);
          const auto [dz, x_hat] =
              formula_.gradient(channel, load(pd + i, lanes), load(px + i, lanes), load_residual(pr + i, lanes));
          const V kept = keep<F>(dz, lanes);
          sum[u] += kept;
          sum_x_hat[u] += kept * x_hat;
        });
      });
      all.dy += sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
      all.dy_x_hat += sum_lanes((sum_x_hat[0] + sum_x_hat[1]) + (sum_x_hat[2] + sum_x_hat[3]));
    });
    return all;
  }

  void keep_sums(int64_t c, const Sums* parts) const {
    Sums all;
    for (int64_t part = 0; part < parts_; ++part) {
      all.dy += parts[part].dy;
      all.dy_x_hat += parts[part].dy_x_hat;
    }
    call_.sum_dy[c] = all.dy;
    call_.sum_dy_xhat[c] = all.dy_x_hat;
  }

  void apply_line(const Line& line, const Numbers& numbers, bool streams) const {
    if (call_.count == nullptr) apply_line<false>(line, numbers, streams);
    else apply_line<true>(line, numbers, streams);
  }

  template <bool corrects>
  void apply_line(const Line& line, const Numbers& numbers, bool streams) const {
    const auto [channel, correction] = numbers;
    const T *pd = at(call_.dy, line), *px = at(call_.x, line), *pr = at_residual(line);
    T* pdx = at(call_.dx, line);
    T* pdr = call_.dresidual.data == nullptr ? nullptr : at(call_.dresidual, line);
    sweep<F, U>(line.length, [&, channel = channel, correction = correction](int64_t i, int, auto lanes) {
      const auto gradient =
          formula_.gradient(channel, load(pd + i, lanes), load(px + i, lanes), load_residual(pr + i, lanes));
      if (pdr != nullptr) store(pdr + i, gradient.dz, lanes, streams);
      if constexpr (corrects) store(pdx + i, formula_.dx(channel, gradient, correction), lanes, streams);
      else store(pdx + i, formula_.dx(channel, gradient), lanes, streams);
    });
  }

  Formula<F, has_residual, fused> formula_;
};

}  // namespace
}  // namespace batchnorm::BATCHNORM_TARGET
