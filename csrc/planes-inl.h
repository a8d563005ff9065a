// (N, C, *S) with contiguous planes of S values. A channel is a task; its second pass finds it in cache. With few
// channels, each is cut into parts by the shape alone, and the parts' statistics are merged in their order: results do
// not depend on the number of threads.
//
// Accuracy: pieces of at most kPiece values are summed in the arithmetic's lanes, centred by their own mean before
// squaring, and merged in float64.

namespace batchnorm::BATCHNORM_TARGET {
namespace {

constexpr int64_t kPiece = 2048;         // values whose sums one lane-wise accumulator takes: 8 KB of float32, half of L1
constexpr int64_t kEnoughChannels = 32;  // tasks that keep the threads of a large machine busy

// Bytes: of planes that are warmed in groups; of a group, which stays in the second cache; of its run in one sample.
constexpr int64_t kSmallPlane = 1024, kGroup = 1 << 18, kRun = 1 << 13;

template <class T, bool has_residual, Fused fused>
class Planes {
  static constexpr int64_t kSize = sizeof(T);
  using F = Arithmetic<T>;
  using V = Vec<F>;

 public:
  explicit Planes(const Call& call)
      : call_(call),
        channels_(call.shape.channels),
        inner_(call.shape.inner),
        planes_per_piece_(at_least(kPiece / at_least(inner_, 1), 1)),
        pieces_per_plane_(inner_ > kPiece ? divide_up(inner_, kPiece) : 1),
        pieces_(inner_ > kPiece ? call.shape.outer * pieces_per_plane_ : divide_up(call.shape.outer, planes_per_piece_)),
        group_(at_most(group(call.shape.outer, inner_ * kSize), at_least(channels_ / (2 * call.threads), 1))),
        parts_(channels_ >= kEnoughChannels ? 1 : at_most(pieces_, divide_up(kEnoughChannels, channels_))),
        activate_{call.activation} {}

  void collect(Input x, double* mean, double* var) const {
    Scratch<Moments> parts(channels_ * parts_);
    for_each_task(call_, channels_ * parts_, false, [&](int64_t task) { *(parts + task) = moments(x, task); });
    for (int64_t c = 0; c < channels_; ++c) merge_parts(x, c, parts + c * parts_, mean + c, var + c);
  }

  void normalize(Input x, Input residual, const double* mean, const double* var, Output y) const {
    Scratch<Channel<F>> numbers(channels_);
    for (int64_t c = 0; c < channels_; ++c) numbers[c] = Channel<F>(call_, c, mean[c], var[c]);
    const bool streams = streams_to(y);
    for_each_line([&](int64_t n, int64_t c, int64_t first, int64_t length) {
      normalize_line(x, residual, numbers[c], n, c, first, length, y, streams);
    });
  }

  void forward(Input x, Input residual, double* mean, double* var, Output y) const {
    if (parts_ > 1) {
      collect(x, mean, var);
      normalize(x, residual, mean, var, y);
      return;
    }
    Scratch<Channel<F>> numbers(channels_);
    const bool streams = streams_to(y);
    for_each_group([&](int64_t c0, int64_t c1) {
      warm<false>(x, c0, c1);
      for (int64_t c = c0; c < c1; ++c) {
        const Moments whole = moments(x, c);
        merge_parts(x, c, &whole, mean + c, var + c);
        numbers[c] = Channel<F>(call_, c, mean[c], var[c]);
      }
      if constexpr (has_residual) warm<false>(residual, c0, c1);
      if (!streams) warm<true>(y, c0, c1);
      for_each_line_of(c0, c1, [&](int64_t n, int64_t c, int64_t first, int64_t length) {
        normalize_line(x, residual, numbers[c], n, c, first, length, y, streams);
      });
    });
  }

  void reduce(Input dy, Input x, Input residual, const double* mean, const double* var, double* sum_dy,
              double* sum_dy_xhat) const {
    Scratch<double> parts(2 * channels_ * parts_);
    for_each_task(call_, channels_ * parts_, false, [&](int64_t task) {
      const int64_t c = task / parts_;
      reduce_part(dy, x, residual, Channel<F>(call_, c, mean[c], var[c]), task, parts + 2 * task);
    });
    for (int64_t c = 0; c < channels_; ++c) {
      sum_dy[c] = sum_dy_xhat[c] = 0;
      for (int64_t part = 0; part < parts_; ++part) {
        const double* sums = parts + 2 * (c * parts_ + part);
        sum_dy[c] += sums[0];
        sum_dy_xhat[c] += sums[1];
      }
    }
  }

  template <bool batch_statistics>
  void apply(Input dy, Input x, Input residual, const double* mean, const double* var, const double* sum_dy,
             const double* sum_dy_xhat, double count, Output dx, Output dz) const {
    Scratch<Numbers> numbers(channels_);
    for (int64_t c = 0; c < channels_; ++c) {
      const Channel<F> channel(call_, c, mean[c], var[c]);
      numbers[c] = {channel, Correction<F>(channel, sum_dy[c], sum_dy_xhat[c], count)};
    }
    const bool streams = streams_to(dx) && streams_to(dz);
    for_each_line([&](int64_t n, int64_t c, int64_t first, int64_t length) {
      apply_line<batch_statistics>(dy, x, residual, numbers[c], n, c, first, length, dx, dz, streams);
    });
  }

  template <bool batch_statistics>
  void backward(Input dy, Input x, Input residual, const double* mean, const double* var, double* sum_dy,
                double* sum_dy_xhat, Output dx, Output dz) const {
    const auto count = static_cast<double>(call_.shape.outer * inner_);
    if (parts_ > 1) {
      reduce(dy, x, residual, mean, var, sum_dy, sum_dy_xhat);
      apply<batch_statistics>(dy, x, residual, mean, var, sum_dy, sum_dy_xhat, count, dx, dz);
      return;
    }
    Scratch<Numbers> numbers(channels_);
    const bool streams = streams_to(dx) && streams_to(dz);
    for_each_group([&](int64_t c0, int64_t c1) {
      warm<false>(x, c0, c1);
      warm<false>(dy, c0, c1);
      if constexpr (has_residual) warm<false>(residual, c0, c1);
      for (int64_t c = c0; c < c1; ++c) {
        const Channel<F> channel(call_, c, mean[c], var[c]);
        double sums[2];
        reduce_part(dy, x, residual, channel, c, sums);
        sum_dy[c] = sums[0];
        sum_dy_xhat[c] = sums[1];
        numbers[c] = {channel, Correction<F>(channel, sums[0], sums[1], count)};
      }
      if (!streams) warm<true>(dx, c0, c1);
      for_each_line_of(c0, c1, [&](int64_t n, int64_t c, int64_t first, int64_t length) {
        apply_line<batch_statistics>(dy, x, residual, numbers[c], n, c, first, length, dx, dz, streams);
      });
    });
  }

 private:
  static constexpr int U = 4;  // accumulators: an addition takes four cycles

  struct Numbers {
    Channel<F> channel;
    Correction<F> correction;
  };

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

  // Channels that are warmed together, given the samples and the bytes of a plane. Each channel's result is the same in any
  // group, so the number of threads may have a say: a group is a task, and none should be without.
  static int64_t group(int64_t outer, int64_t plane) {
    return plane > kSmallPlane ? 1 : at_least(at_most(kGroup / (outer * plane), kRun / plane), 1);
  }

  static void prefetch(const T* p) { __builtin_prefetch(p); }

  // Small planes are too short for the processor to foresee anything: neighbouring channels, which lie behind each other,
  // are asked for together, sample by sample.
  template <bool write, class Tensor>
  void warm(const Tensor& t, int64_t c0, int64_t c1) const {
    if (group_ == 1 || t.channel_stride != inner_) return;
    const int64_t length = (c1 - c0) * inner_;
    for (int64_t n = 0; n < call_.shape.outer; ++n) {
      const T* p = at(t, n, c0);
      for (int64_t i = 0; i < length; i += 64 / kSize) __builtin_prefetch(p + i, write, 2);
    }
  }

  static const T* at(Input t, int64_t n, int64_t c) {
    return static_cast<const T*>(t.data) + n * t.outer_stride + c * t.channel_stride;
  }
  static T* at(Output t, int64_t n, int64_t c) {
    return static_cast<T*>(t.data) + n * t.outer_stride + c * t.channel_stride;
  }

  bool streams_to(Output t) const { return call_.streams && is_streamable<T>(t.data, t.outer_stride, t.channel_stride); }

  // Call body(first channel, last channel) for every group.
  template <class Body>
  void for_each_group(Body body) const {
    for_each_task(call_, divide_up(channels_, group_), false,
                  [&](int64_t i) { body(i * group_, at_most((i + 1) * group_, channels_)); });
  }

  // Call body(sample, channel, first value, number of values) for everything, in the order of memory. No line is longer
  // than a piece, and short ones share a task.
  template <class Body>
  void for_each_line(Body body) const {
    const int64_t run = at_least(kPiece / inner_, 1), runs = divide_up(channels_, run) * pieces_per_plane_;
    for_each_task(call_, call_.shape.outer * runs, false, [&](int64_t task) {
      const int64_t n = task / runs, piece = task % pieces_per_plane_, c0 = task % runs / pieces_per_plane_ * run;
      const int64_t first = piece * kPiece, length = at_most(kPiece, inner_ - first);
      for (int64_t c = c0; c < at_most(c0 + run, channels_); ++c) body(n, c, first, length);
    });
  }

  // The same for a group whose first pass has just gone by: backwards, as its end is still in cache.
  template <class Body>
  void for_each_line_of(int64_t c0, int64_t c1, Body body) const {
    if (c1 - c0 == 1)
      for_each_piece(c0, true, [&](int64_t, int64_t n0, int64_t n1, int64_t first, int64_t length) {
        for (int64_t n = n0; n < n1; ++n) body(n, c0, first, length);
      });
    else
      for (int64_t n = call_.shape.outer - 1; n >= 0; --n)
        for (int64_t c = c0; c < c1; ++c) body(n, c, 0, inner_);
  }

  // Call body(piece, first plane, last plane, first value, number of values) for the pieces of a task.
  template <class Body>
  void for_each_piece(int64_t task, bool backwards, Body body) const {
    const int64_t part = task % parts_;
    const int64_t begin = pieces_ * part / parts_, end = pieces_ * (part + 1) / parts_;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t piece = backwards ? begin + end - 1 - i : i;
      if (inner_ > kPiece) {
        const int64_t n = piece / pieces_per_plane_, first = piece % pieces_per_plane_ * kPiece;
        body(piece, n, n + 1, first, at_most(kPiece, inner_ - first));
      } else {
        const int64_t n = piece * planes_per_piece_;
        body(piece, n, at_most(n + planes_per_piece_, call_.shape.outer), 0, inner_);
      }
    }
  }

  // Means are kept relative to the channel's first value: they are then small where the data are close together, and
  // merging them loses nothing.
  static double origin(Input x, int64_t c) { return value_at(at(x, 0, c)); }

  Moments moments(Input x, int64_t task) const {
    const int64_t c = task / parts_;
    const double zero = origin(x, c);
    Moments all;
    for_each_piece(task, false, [&](int64_t piece, int64_t n0, int64_t n1, int64_t first, int64_t length) {
      const int64_t next = ahead(x, piece);
      const auto count = static_cast<double>((n1 - n0) * length);
      V sum[U] = {};
      for (int64_t n = n0; n < n1; ++n) {
        const T* p = at(x, n, c) + first;
        sweep<F, U>(length, [&](int64_t i, int u, auto lanes) {
          sum[u] += load(p + i, lanes);
        });
      }
      const F centre = static_cast<F>(sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])) / count);
      V deviation[U] = {}, square[U] = {};
      for (int64_t n = n0; n < n1; ++n) {
        const T* p = at(x, n, c) + first;
        sweep<F, U>(length, [&](int64_t i, int u, auto lanes) {
          prefetch(p + next + i);
          const V d = keep<F>(load(p + i, lanes) - centre, lanes);
          deviation[u] += d;
          square[u] += d * d;
        });
      }
      const double d = sum_lanes((deviation[0] + deviation[1]) + (deviation[2] + deviation[3]));
      const double s = sum_lanes((square[0] + square[1]) + (square[2] + square[3]));
      all.merge({count, (static_cast<double>(centre) - zero) + d / count, about_the_mean(s, d, count)});
    });
    return __builtin_isfinite(all.m2) ? all : moments_in_float64(x, task);
  }

  Moments moments_in_float64(Input x, int64_t task) const {
    const int64_t c = task / parts_;
    const double zero = origin(x, c);
    Moments all;
    for_each_piece(task, false, [&](int64_t, int64_t n0, int64_t n1, int64_t first, int64_t length) {
      Moments piece;
      piece.count = static_cast<double>((n1 - n0) * length);
      for (int64_t n = n0; n < n1; ++n)
        for (int64_t i = 0; i < length; ++i) piece.mean += value_at(at(x, n, c) + first + i) - zero;
      piece.mean /= piece.count;
      for (int64_t n = n0; n < n1; ++n)
        for (int64_t i = 0; i < length; ++i) {
          const double d = (value_at(at(x, n, c) + first + i) - zero) - piece.mean;
          piece.m2 += d * d;
        }
      all.merge(piece);
    });
    return all;
  }

  void merge_parts(Input x, int64_t c, const Moments* parts, double* mean, double* var) const {
    Moments all = parts[0];
    for (int64_t part = 1; part < parts_; ++part) all.merge(parts[part]);
    *mean = origin(x, c) + all.mean;
    *var = all.m2 / all.count;
  }

  void normalize_line(Input x, Input residual, const Channel<F>& channel, int64_t n, int64_t c, int64_t first,
                      int64_t length, Output y, bool streams) const {
    const T* px = at(x, n, c) + first;
    const T* pr = has_residual ? at(residual, n, c) + first : nullptr;
    T* py = at(y, n, c) + first;
    sweep<F, U>(length, [&](int64_t i, int, auto lanes) {
      V z = (load(px + i, lanes) - channel.mean) * channel.scale + channel.shift;
      if constexpr (has_residual) z += load(pr + i, lanes);
      store(py + i, activate_(z), lanes, streams);
    });
  }

  void reduce_part(Input dy, Input x, Input residual, const Channel<F>& channel, int64_t task, double* sums) const {
    const int64_t c = task / parts_;
    sums[0] = sums[1] = 0;
    for_each_piece(task, false, [&](int64_t piece, int64_t n0, int64_t n1, int64_t first, int64_t length) {
      const int64_t next_x = ahead(x, piece), next_dy = ahead(dy, piece);
      const int64_t next_residual = has_residual ? ahead(residual, piece) : 0;
      V sum[U] = {}, sum_x_hat[U] = {};
      for (int64_t n = n0; n < n1; ++n) {
        const T* pd = at(dy, n, c) + first;
        const T* px = at(x, n, c) + first;
        const T* pr = has_residual ? at(residual, n, c) + first : nullptr;
        sweep<F, U>(length, [&](int64_t i, int u, auto lanes) {
          prefetch(px + next_x + i);
          prefetch(pd + next_dy + i);
          if constexpr (has_residual) prefetch(pr + next_residual + i);
          const V centred = load(px + i, lanes) - channel.mean;
          V z = centred * channel.scale + channel.shift;
          if constexpr (has_residual) z += load(pr + i, lanes);
          const V dz = keep<F>(activate_.backward(load(pd + i, lanes), z), lanes);
          sum[u] += dz;
          sum_x_hat[u] += dz * (centred * channel.invstd + channel.x_hat_shift);
        });
      }
      sums[0] += sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
      sums[1] += sum_lanes((sum_x_hat[0] + sum_x_hat[1]) + (sum_x_hat[2] + sum_x_hat[3]));
    });
  }

  template <bool batch_statistics>
  void apply_line(Input dy, Input x, Input residual, const Numbers& numbers, int64_t n, int64_t c, int64_t first,
                  int64_t length, Output dx, Output dz, bool streams) const {
    const auto [channel, correction] = numbers;
    const T* pd = at(dy, n, c) + first;
    const T* px = at(x, n, c) + first;
    const T* pr = has_residual ? at(residual, n, c) + first : nullptr;
    T* pdx = at(dx, n, c) + first;
    T* pdz = dz.data == nullptr ? nullptr : at(dz, n, c) + first;
    sweep<F, U>(length, [&, channel = channel, correction = correction](int64_t i, int, auto lanes) {
      const V centred = load(px + i, lanes) - channel.mean;
      V z = centred * channel.scale + channel.shift;
      if constexpr (has_residual) z += load(pr + i, lanes);
      const V d = activate_.backward(load(pd + i, lanes), z);
      if (pdz != nullptr) store(pdz + i, d, lanes, streams);
      V r = d * channel.scale;
      if constexpr (batch_statistics) {
        const V x_hat = centred * channel.invstd + channel.x_hat_shift;
        r += x_hat * correction.of_x_hat + correction.constant;
      }
      store(pdx + i, r, lanes, streams);
    });
  }

  const Call& call_;
  int64_t channels_, inner_, planes_per_piece_, pieces_per_plane_, pieces_, group_, parts_;
  Activate<F, fused> activate_;
};

}  // namespace
}  // namespace batchnorm::BATCHNORM_TARGET
