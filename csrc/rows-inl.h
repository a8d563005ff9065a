// Contiguous rows of C values: channels_last of any rank, and (N, C). Rows are cut into parts by the shape alone; the
// parts' statistics are merged in their order, so results do not depend on the number of threads. The second pass takes
// the parts in reverse, the last ones being still in cache.
//
// Inside a part, a block of rows is walked in tiles: a few vectors wide, so that sums and the channels' numbers stay in
// registers while the rows go by. The processor does not foresee that walk: lines are asked for some rows ahead.
//
// Accuracy: a block's values are summed in the arithmetic's lanes, one lane per channel, centred by their own mean before
// squaring, and merged in float64.

namespace batchnorm::BATCHNORM_TARGET {
namespace {

constexpr int64_t kBlockRows = 128, kRowsAhead = 16;
constexpr int64_t kPartValues = 1 << 14, kMostParts = 64, kLeastPartRows = 64;

// U vectors of channels from `first` on; of a tail, one vector's first lanes.
template <class F, int U, class Lanes>
struct Tile {
  static constexpr int vectors = U;
  int64_t first;
  Lanes lanes;

  int64_t at(int u) const { return first + u * kLanes<F>; }
  void load_all(const F* numbers, Vec<F>* into) const {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) into[u] = load(numbers + at(u), lanes);
  }
  void store_all(F* numbers, const Vec<F>* from) const {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) store(numbers + at(u), from[u], lanes);
  }
  template <class T>
  void prefetch(const T* row) const {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) __builtin_prefetch(row + at(u));
  }
};

template <class T, bool has_residual, Fused fused>
class Rows {
  using F = Arithmetic<T>;
  using V = Vec<F>;

 public:
  explicit Rows(const Call& call)
      : call_(call),
        channels_(call.shape.channels),
        rows_(call.shape.outer),
        parts_(at_least(at_most(at_most(rows_ * channels_ / kPartValues, kMostParts), rows_ / kLeastPartRows), 1)),
        activate_{call.activation} {}

  void collect(Input x, double* mean, double* var) const {
    Scratch<double> parts((2 * parts_ + 1) * channels_);
    // Means are kept relative to each channel's first value: they are then small where the data are close together, and
    // merging them loses nothing.
    double* origin = parts + 2 * parts_ * channels_;
    for (int64_t c = 0; c < channels_; ++c) origin[c] = value_at(at(x, 0) + c);
    for_each_task(call_, parts_, false, [&](int64_t part) {
      double* part_mean = parts + 2 * channels_ * part;
      moments(x, part, origin, part_mean, part_mean + channels_);
    });
    for_each_channels([&](int64_t c0, int64_t c1) {
      double count = 0;
      for (int64_t part = 0; part < parts_; ++part) {
        const double* part_mean = parts + 2 * channels_ * part;
        const auto added = static_cast<double>(last_row(part) - first_row(part));
        merge(c0, c1, count, mean, var, added, [&](int64_t c) { return part_mean[c]; },
              [&](int64_t c) { return part_mean[channels_ + c]; });
        count += added;
      }
      for (int64_t c = c0; c < c1; ++c) {
        var[c] /= count;
        mean[c] += origin[c];
        if (!__builtin_isfinite(var[c])) moments_in_float64(x, c, mean + c, var + c);
      }
    });
  }

  void normalize(Input x, Input residual, const double* mean, const double* var, Output y) const {
    const Constants k(*this, mean, var);
    const bool streams = streams_to(y);
    for_each_task(call_, parts_, true, [&](int64_t part) {
      for_each_tile<4>(part, true, [&](auto tile, int64_t begin, int64_t end) {
        constexpr int U = decltype(tile)::vectors;
        V k_mean[U], scale[U], shift[U];
        tile.load_all(k.mean, k_mean);
        tile.load_all(k.scale, scale);
        tile.load_all(k.shift, shift);
        for (int64_t row = begin; row < end; ++row) {
          const T* px = at(x, row);
          const T* pr = has_residual ? at(residual, row) : nullptr;
          T* py = at(y, row);
          tile.prefetch(px + kRowsAhead * x.outer_stride);
          if constexpr (has_residual) tile.prefetch(pr + kRowsAhead * residual.outer_stride);
#pragma GCC unroll 8
          for (int u = 0; u < U; ++u) {
            const int64_t c = tile.at(u);
            V z = (load(px + c, tile.lanes) - k_mean[u]) * scale[u] + shift[u];
            if constexpr (has_residual) z += load(pr + c, tile.lanes);
            store(py + c, activate_(z), tile.lanes, streams);
          }
        }
      });
    });
  }

  void forward(Input x, Input residual, double* mean, double* var, Output y) const {
    collect(x, mean, var);
    normalize(x, residual, mean, var, y);
  }

  void reduce(Input dy, Input x, Input residual, const double* mean, const double* var, double* sum_dy,
              double* sum_dy_xhat) const {
    const Constants k(*this, mean, var);
    Scratch<double> parts(2 * channels_ * parts_);
    for_each_task(call_, parts_, false, [&](int64_t part) {
      double* total = parts + 2 * channels_ * part;
      double* total_x_hat = total + channels_;
      for (int64_t c = 0; c < 2 * channels_; ++c) total[c] = 0;
      for_each_tile<2>(part, false, [&](auto tile, int64_t begin, int64_t end) {
        constexpr int U = decltype(tile)::vectors;
        V k_mean[U], scale[U], shift[U], invstd[U], x_hat_shift[U], sum[U] = {}, sum_x_hat[U] = {};
        tile.load_all(k.mean, k_mean);
        tile.load_all(k.scale, scale);
        tile.load_all(k.shift, shift);
        tile.load_all(k.invstd, invstd);
        tile.load_all(k.x_hat_shift, x_hat_shift);
        for (int64_t row = begin; row < end; ++row) {
          const T* pd = at(dy, row);
          const T* px = at(x, row);
          const T* pr = has_residual ? at(residual, row) : nullptr;
          tile.prefetch(pd + kRowsAhead * dy.outer_stride);
          tile.prefetch(px + kRowsAhead * x.outer_stride);
          if constexpr (has_residual) tile.prefetch(pr + kRowsAhead * residual.outer_stride);
#pragma GCC unroll 8
          for (int u = 0; u < U; ++u) {
            const int64_t c = tile.at(u);
            const V centred = load(px + c, tile.lanes) - k_mean[u];
            V z = V{};
            if constexpr (fused != Fused::kNone) {
              z = centred * scale[u] + shift[u];
              if constexpr (has_residual) z += load(pr + c, tile.lanes);
            }
            const V dz = activate_.backward(load(pd + c, tile.lanes), z);
            sum[u] += dz;
            sum_x_hat[u] += dz * (centred * invstd[u] + x_hat_shift[u]);
          }
        }
        for_each_lane(tile, [&](int64_t c, int u, int lane) {
          total[c] += static_cast<double>(sum[u][lane]);
          total_x_hat[c] += static_cast<double>(sum_x_hat[u][lane]);
        });
      });
    });
    for_each_channels([&](int64_t c0, int64_t c1) {
      for (int64_t c = c0; c < c1; ++c) sum_dy[c] = sum_dy_xhat[c] = 0;
      for (int64_t part = 0; part < parts_; ++part) {
        const double* total = parts + 2 * channels_ * part;
        for (int64_t c = c0; c < c1; ++c) {
          sum_dy[c] += total[c];
          sum_dy_xhat[c] += total[channels_ + c];
        }
      }
    });
  }

  template <bool batch_statistics>
  void apply(Input dy, Input x, Input residual, const double* mean, const double* var, const double* sum_dy,
             const double* sum_dy_xhat, double count, Output dx, Output dz) const {
    const Constants k(*this, mean, var);
    Scratch<F> corrections(2 * channels_);
    F *k_of_x_hat = corrections + 0, *k_constant = corrections + channels_;
    for (int64_t c = 0; c < channels_; ++c) {
      const Correction<F> correction(Channel<F>(call_, c, mean[c], var[c]), sum_dy[c], sum_dy_xhat[c], count);
      k_of_x_hat[c] = correction.of_x_hat;
      k_constant[c] = correction.constant;
    }
    const bool streams = streams_to(dx) && streams_to(dz);
    for_each_task(call_, parts_, true, [&](int64_t part) {
      for_each_tile<2>(part, true, [&](auto tile, int64_t begin, int64_t end) {
        constexpr int U = decltype(tile)::vectors;
        V k_mean[U], scale[U], shift[U], invstd[U], x_hat_shift[U], of_x_hat[U], constant[U];
        tile.load_all(k.mean, k_mean);
        tile.load_all(k.scale, scale);
        tile.load_all(k.shift, shift);
        tile.load_all(k.invstd, invstd);
        tile.load_all(k.x_hat_shift, x_hat_shift);
        tile.load_all(k_of_x_hat, of_x_hat);
        tile.load_all(k_constant, constant);
        for (int64_t row = begin; row < end; ++row) {
          const T* pd = at(dy, row);
          const T* px = at(x, row);
          const T* pr = has_residual ? at(residual, row) : nullptr;
          T* pdx = at(dx, row);
          T* pdz = dz.data == nullptr ? nullptr : at(dz, row);
          tile.prefetch(pd + kRowsAhead * dy.outer_stride);
          tile.prefetch(px + kRowsAhead * x.outer_stride);
          if constexpr (has_residual) tile.prefetch(pr + kRowsAhead * residual.outer_stride);
#pragma GCC unroll 8
          for (int u = 0; u < U; ++u) {
            const int64_t c = tile.at(u);
            const V centred = load(px + c, tile.lanes) - k_mean[u];
            V z = V{};
            if constexpr (fused != Fused::kNone) {
              z = centred * scale[u] + shift[u];
              if constexpr (has_residual) z += load(pr + c, tile.lanes);
            }
            const V d = activate_.backward(load(pd + c, tile.lanes), z);
            if (pdz != nullptr) store(pdz + c, d, tile.lanes, streams);
            V r = d * scale[u];
            if constexpr (batch_statistics) r += (centred * invstd[u] + x_hat_shift[u]) * of_x_hat[u] + constant[u];
            store(pdx + c, r, tile.lanes, streams);
          }
        }
      });
    });
  }

  template <bool batch_statistics>
  void backward(Input dy, Input x, Input residual, const double* mean, const double* var, double* sum_dy,
                double* sum_dy_xhat, Output dx, Output dz) const {
    reduce(dy, x, residual, mean, var, sum_dy, sum_dy_xhat);
    apply<batch_statistics>(dy, x, residual, mean, var, sum_dy, sum_dy_xhat, static_cast<double>(rows_), dx, dz);
  }

 private:
  // The channels' numbers (see Channel), side by side.
  struct Constants {
    Scratch<F> data;
    F *mean, *scale, *shift, *invstd, *x_hat_shift;

    Constants(const Rows& rows, const double* exact_mean, const double* var)
        : data(5 * rows.channels_),
          mean(data + 0),
          scale(data + rows.channels_),
          shift(data + 2 * rows.channels_),
          invstd(data + 3 * rows.channels_),
          x_hat_shift(data + 4 * rows.channels_) {
      for (int64_t c = 0; c < rows.channels_; ++c) {
        const Channel<F> channel(rows.call_, c, exact_mean[c], var[c]);
        mean[c] = channel.mean;
        scale[c] = channel.scale;
        shift[c] = channel.shift;
        invstd[c] = channel.invstd;
        x_hat_shift[c] = channel.x_hat_shift;
      }
    }
  };

  static const T* at(Input t, int64_t row) { return static_cast<const T*>(t.data) + row * t.outer_stride; }
  static T* at(Output t, int64_t row) { return static_cast<T*>(t.data) + row * t.outer_stride; }

  bool streams_to(Output t) const { return call_.streams && is_streamable<T>(t.data, t.outer_stride, 0); }

  int64_t first_row(int64_t part) const { return rows_ * part / parts_; }
  int64_t last_row(int64_t part) const { return rows_ * (part + 1) / parts_; }

  // Call body(tile, first row, last row) for every tile of every block of a part; blocks in reverse where `backwards`.
  template <int U, class Body>
  void for_each_tile(int64_t part, bool backwards, Body body) const {
    const int64_t first = first_row(part), last = last_row(part), blocks = divide_up(last - first, kBlockRows);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t begin = first + (backwards ? blocks - 1 - i : i) * kBlockRows;
      const int64_t end = at_most(begin + kBlockRows, last);
      constexpr int L = kLanes<F>;
      int64_t c = 0;
      for (; c + U * L <= channels_; c += U * L) body(Tile<F, U, Whole>{c, {}}, begin, end);
      if constexpr (U > 2)
        for (; c + 2 * L <= channels_; c += 2 * L) body(Tile<F, 2, Whole>{c, {}}, begin, end);
      for (; c + L <= channels_; c += L) body(Tile<F, 1, Whole>{c, {}}, begin, end);
      if (c < channels_) body(Tile<F, 1, int>{c, static_cast<int>(channels_ - c)}, begin, end);
    }
  }

  // Call body(channel, vector, lane) for the channels of a tile.
  template <class AnyTile, class Body>
  void for_each_lane(const AnyTile& tile, Body body) const {
    for (int u = 0; u < AnyTile::vectors; ++u)
      for (int lane = 0; lane < kLanes<F> && tile.at(u) + lane < channels_; ++lane) body(tile.at(u) + lane, u, lane);
  }

  // Call body(first channel, last channel) for ranges that the threads share.
  template <class Body>
  void for_each_channels(Body body) const {
    constexpr int64_t kRange = 256;
    for_each_task(call_, divide_up(channels_, kRange), false,
                  [&](int64_t i) { body(i * kRange, at_most((i + 1) * kRange, channels_)); });
  }

  // Moments::merge for channels from c0 to c1: their counts are the same, so the divisions are made once.
  template <class MeanOf, class M2Of>
  void merge(int64_t c0, int64_t c1, double count, double* mean, double* m2, double added, MeanOf mean_of,
             M2Of m2_of) const {
    if (count == 0) {
      for (int64_t c = c0; c < c1; ++c) {
        mean[c] = mean_of(c);
        m2[c] = m2_of(c);
      }
      return;
    }
    const double share = added / (count + added), between = count * share;
    for (int64_t c = c0; c < c1; ++c) {
      const double delta = mean_of(c) - mean[c];
      mean[c] += delta * share;
      m2[c] += m2_of(c) + delta * delta * between;
    }
  }

  void moments(Input x, int64_t part, const double* origin, double* mean, double* m2) const {
    Scratch<F> sums(3 * channels_);
    F *k_centre = sums + 0, *k_deviation = sums + channels_, *k_square = sums + 2 * channels_;
    for_each_tile<4>(part, false, [&](auto tile, int64_t begin, int64_t end) {
      constexpr int U = decltype(tile)::vectors;
      const auto n = static_cast<double>(end - begin);
      const F share = static_cast<F>(1.0 / n);
      V centre[U] = {}, deviation[U] = {}, square[U] = {};
      for (int64_t row = begin; row < end; ++row) {
        const T* p = at(x, row);
        tile.prefetch(p + kRowsAhead * x.outer_stride);
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) centre[u] += load(p + tile.at(u), tile.lanes);
      }
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) centre[u] *= share;
      for (int64_t row = begin; row < end; ++row) {
        const T* p = at(x, row);
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) {
          const V d = load(p + tile.at(u), tile.lanes) - centre[u];
          deviation[u] += d;
          square[u] += d * d;
        }
      }
      tile.store_all(k_centre, centre);
      tile.store_all(k_deviation, deviation);
      tile.store_all(k_square, square);
      merge(
          tile.first, at_most(tile.at(U), channels_), static_cast<double>(begin - first_row(part)), mean, m2, n,
          [&](int64_t c) {
            return (static_cast<double>(k_centre[c]) - origin[c]) + static_cast<double>(k_deviation[c]) / n;
          },
          [&](int64_t c) {
            return about_the_mean(static_cast<double>(k_square[c]), static_cast<double>(k_deviation[c]), n);
          });
    });
  }

  void moments_in_float64(Input x, int64_t c, double* mean, double* var) const {
    const auto count = static_cast<double>(rows_);
    double sum = 0, square = 0;
    for (int64_t row = 0; row < rows_; ++row) sum += value_at(at(x, row) + c);
    *mean = sum / count;
    for (int64_t row = 0; row < rows_; ++row) {
      const double d = value_at(at(x, row) + c) - *mean;
      square += d * d;
    }
    *var = square / count;
  }

  const Call& call_;
  int64_t channels_, rows_, parts_;
  Activate<F, fused> activate_;
};

}  // namespace
}  // namespace batchnorm::BATCHNORM_TARGET
