// Contiguous rows of C values: channels_last of any rank, and (N, C).
//
//              channels -->
//        row 0 [ tile  | tile  | tile  | tail ]      tile   a few vectors of channels of all rows of a block: sums and
//        row 1 [       |       |       |      ]             the channels' numbers stay in registers while the rows go
//   block ...  [       |       |       |      ]             by; the last, narrower ones are the tail
//      row 127 [       |       |       |      ]      lane   a channel of a tile: one value of a vector
//        ------------------------------------        block  kBlockRows rows, tile after tile; the sums of a tile over
//      row 128 [ ...                                        a block are taken in one go
//                                                    part   consecutive blocks: a task
//
// A second pass takes parts and blocks in reverse, the last ones being still in cache. Parts are cut by shape and mask
// alone, and their sums are merged in their order: results do not depend on the number of threads.
//
// With a mask, sums are taken over the list of rows that it lets through, cut in the same way: they are the same to the
// bit whatever lies between.
//
// Accuracy: a block's values are summed in the arithmetic's lanes, centred by their own mean before squaring, and
// merged in float64.
#pragma once

#include "arithmetic-inl.h"
#include "common-inl.h"
#include "kernels.h"
#include "simd-inl.h"

namespace batchnorm::BATCHNORM_TARGET {
namespace {

// The processor does not foresee the walk through a tile: lines are asked for some rows ahead.
constexpr int64_t kBlockRows = 128, kRowsAhead = 16;
constexpr int64_t kPartValues = 1 << 14, kMostParts = 64, kLeastPartRows = 64;

// U vectors of channels from `first` on; of a tail, one vector's first lanes.
template <class F, int U, class Lanes>
struct Tile {
  static constexpr int vectors = U;
  int64_t first;
  Lanes lanes;

  int64_t at(int u) const { return first + u * kLanes<F>; }
  Channel<Vec<F>> load_channel(const Channel<F*>& numbers, int u) const {
    const int64_t c = at(u);
    return {load(numbers.mean + c, lanes), load(numbers.scale + c, lanes), load(numbers.shift + c, lanes),
            load(numbers.invstd + c, lanes), load(numbers.x_hat_shift + c, lanes)};
  }
  Correction<Vec<F>> load_correction(const Correction<F*>& numbers, int u) const {
    return {load(numbers.of_x_hat + at(u), lanes), load(numbers.constant + at(u), lanes)};
  }
  void store_all(F* numbers, const Vec<F>* from) const {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) store(numbers + at(u), from[u], lanes);
  }
  template <class T>
  BATCHNORM_INLINE void prefetch(const T* row) const {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) __builtin_prefetch(row + at(u));
  }
};

// Rows to sum, by their place among them, and the parts that they make.
struct RowRange {
  int64_t size, parts;

  RowRange(int64_t size, int64_t channels)
      : size(size),
        parts(at_least(at_most(at_most(size * channels / kPartValues, kMostParts), size / kLeastPartRows), 1)) {}
  int64_t first(int64_t part) const { return size * part / parts; }
  int64_t last(int64_t part) const { return size * (part + 1) / parts; }
};

struct AllRows : RowRange {
  explicit AllRows(const Shape& shape) : RowRange(shape.outer, shape.channels) {}
  int64_t operator[](int64_t i) const { return i; }
};

// The rows that a mask lets through.
struct SelectedRows : RowRange {
  Scratch<int64_t> row;

  SelectedRows(const Shape& shape, Mask mask) : RowRange(0, shape.channels), row(shape.outer + kRowsAhead) {
    int64_t found = 0;
    for (int64_t i = 0; i < shape.outer; ++i) {
      row[found] = i;
      found += mask[i];
    }
    for (int64_t i = 0; i < kRowsAhead; ++i) row[found + i] = 0;  // asked for ahead, never read
    static_cast<RowRange&>(*this) = RowRange(found, shape.channels);
  }
  int64_t operator[](int64_t i) const { return row[i]; }
};

// The walk, and the statistics, which do not depend on what follows.
template <class T>
class RowWalk {
 public:
  explicit RowWalk(const Call& call) : call_(call), channels_(call.shape.channels), all_(call.shape) {}

  void collect() const {
    if (call_.members == nullptr) collect(all_);
    else collect(SelectedRows(call_.shape, call_.members));
  }

 protected:
  using F = Arithmetic<T>;
  using V = Vec<F>;

  static const T* at(const Input& t, int64_t row) { return static_cast<const T*>(t.data) + row * t.outer_stride; }
  static T* at(const Output& t, int64_t row) { return static_cast<T*>(t.data) + row * t.outer_stride; }
  bool streams_to(const Output& t) const { return call_.streams && is_streamable<T>(t.data, t.outer_stride, 0); }

  template <class AnyRows>
  void collect(const AnyRows& rows) const {
    Scratch<double> parts((2 * rows.parts + 1) * channels_);
    double *mean = call_.mean, *var = call_.var, *origin = parts.data() + 2 * rows.parts * channels_;
    *call_.count = static_cast<double>(rows.size);
    if (rows.size == 0) {
      for (int64_t c = 0; c < channels_; ++c) mean[c] = var[c] = __builtin_nan("");
      return;
    }
    // Means are kept relative to each channel's first value: they are then small where the data are close together, and
    // merging them loses nothing.
    for (int64_t c = 0; c < channels_; ++c) origin[c] = value_at(at(call_.x, rows[0]) + c);
    for_each_task(call_, rows.parts, [&](int64_t part) {
      double* part_mean = parts.data() + 2 * channels_ * part;
      moments(rows, part, origin, part_mean, part_mean + channels_);
    });
    for_each_channels([&](int64_t c0, int64_t c1) {
      double count = 0;
      for (int64_t part = 0; part < rows.parts; ++part) {
        const double* part_mean = parts.data() + 2 * channels_ * part;
        const auto added = static_cast<double>(rows.last(part) - rows.first(part));
        merge(c0, c1, count, mean, var, added, [&](int64_t c) { return part_mean[c]; },
              [&](int64_t c) { return part_mean[channels_ + c]; });
        count += added;
      }
      for (int64_t c = c0; c < c1; ++c) {
        var[c] /= count;
        mean[c] += origin[c];
        if (!__builtin_isfinite(var[c])) moments_in_float64(rows, c);
      }
    });
  }

  // Call body(tile, first row, last row) for every tile of a block.
  template <int U, class Body>
  void for_each_tile_of(int64_t begin, int64_t end, const Body& body) const {
    constexpr int L = kLanes<F>;
    int64_t c = 0;
    for (; c + U * L <= channels_; c += U * L) body(Tile<F, U, Whole>{c, {}}, begin, end);
    if constexpr (U > 2)
      for (; c + 2 * L <= channels_; c += 2 * L) body(Tile<F, 2, Whole>{c, {}}, begin, end);
    for (; c + L <= channels_; c += L) body(Tile<F, 1, Whole>{c, {}}, begin, end);
    if (c < channels_) body(Tile<F, 1, int>{c, static_cast<int>(channels_ - c)}, begin, end);
  }

  // The same for every block of a part.
  template <int U, class Body>
  void for_each_tile(const RowRange& rows, int64_t part, const Body& body) const {
    const int64_t last = rows.last(part);
    for (int64_t begin = rows.first(part); begin < last; begin += kBlockRows)
      for_each_tile_of<U>(begin, at_most(begin + kBlockRows, last), body);
  }

  // For every block of all rows, those that were summed last first.
  template <int U, class Body>
  void for_each_tile_backwards(const Body& body) const {
    for_each_task_backwards(call_, all_.parts, [&](int64_t part) {
      const int64_t first = all_.first(part), last = all_.last(part);
      for (int64_t block = divide_up(last - first, kBlockRows); block-- > 0;)
        for_each_tile_of<U>(first + block * kBlockRows, at_most(first + (block + 1) * kBlockRows, last), body);
    });
  }

  // Call body(channel, vector, lane) for the channels of a tile.
  template <class AnyTile, class Body>
  void for_each_lane(const AnyTile& tile, const Body& body) const {
    for (int u = 0; u < AnyTile::vectors; ++u)
      for (int lane = 0; lane < kLanes<F> && tile.at(u) + lane < channels_; ++lane) body(tile.at(u) + lane, u, lane);
  }

  // Call body(first channel, last channel) for ranges that the threads share.
  template <class Body>
  void for_each_channels(const Body& body) const {
    constexpr int64_t kRange = 256;
    for_each_task(call_, divide_up(channels_, kRange),
                  [&](int64_t i) { body(i * kRange, at_most((i + 1) * kRange, channels_)); });
  }

  // Moments::merge for channels from c0 to c1: their counts are the same, so the divisions are made once.
  template <class MeanOf, class M2Of>
  void merge(int64_t c0, int64_t c1, double count, double* mean, double* m2, double added, const MeanOf& mean_of,
             const M2Of& m2_of) const {
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

  template <class AnyRows>
  void moments(const AnyRows& rows, int64_t part, const double* origin, double* mean, double* m2) const {
    Scratch<F> sums(3 * channels_);
    F *of_centre = sums.data(), *of_deviation = of_centre + channels_, *of_square = of_deviation + channels_;
    for_each_tile<4>(rows, part, [&](auto tile, int64_t begin, int64_t end) {
      constexpr int U = decltype(tile)::vectors;
      const auto n = static_cast<double>(end - begin);
      const F share = static_cast<F>(1.0 / n);
      V centre[U] = {}, deviation[U] = {}, square[U] = {};
      for (int64_t i = begin; i < end; ++i) {
        const T* p = at(call_.x, rows[i]);
        tile.prefetch(at(call_.x, rows[i + kRowsAhead]));
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) centre[u] += load(p + tile.at(u), tile.lanes);
      }
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) centre[u] *= share;
      for (int64_t i = begin; i < end; ++i) {
        const T* p = at(call_.x, rows[i]);
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) {
          const V d = load(p + tile.at(u), tile.lanes) - centre[u];
          deviation[u] += d;
          square[u] += d * d;
        }
      }
      tile.store_all(of_centre, centre);
      tile.store_all(of_deviation, deviation);
      tile.store_all(of_square, square);
      merge(
          tile.first, at_most(tile.at(U), channels_), static_cast<double>(begin - rows.first(part)), mean, m2, n,
          [&](int64_t c) {
            return (static_cast<double>(of_centre[c]) - origin[c]) + static_cast<double>(of_deviation[c]) / n;
          },
          [&](int64_t c) {
            return about_the_mean(static_cast<double>(of_square[c]), static_cast<double>(of_deviation[c]), n);
          });
    });
  }

  template <class AnyRows>
  void moments_in_float64(const AnyRows& rows, int64_t c) const {
    const auto count = static_cast<double>(rows.size);
    double sum = 0, square = 0;
    for (int64_t i = 0; i < rows.size; ++i) sum += value_at(at(call_.x, rows[i]) + c);
    const double mean = sum / count;
    for (int64_t i = 0; i < rows.size; ++i) {
      const double d = value_at(at(call_.x, rows[i]) + c) - mean;
      square += d * d;
    }
    call_.mean[c] = mean;
    call_.var[c] = square / count;
  }

  const Call& call_;
  int64_t channels_;
  AllRows all_;
};

template <class T, bool has_residual, Fused fused, bool masked>
class Rows : public RowWalk<T> {
  using Walk = RowWalk<T>;
  using typename Walk::F;
  using typename Walk::V;
  using Walk::all_;
  using Walk::at;
  using Walk::call_;
  using Walk::channels_;
  using Walk::streams_to;

 public:
  explicit Rows(const Call& call) : Walk(call), formula_{{call.activation}} {}

  void normalize() const {
    const Numbers numbers(call_, channels_);
    const bool streams = streams_to(call_.y);
    this->template for_each_tile_backwards<4>([&](auto tile, int64_t begin, int64_t end) {
      constexpr int U = decltype(tile)::vectors;
      Channel<V> channel[U];
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) channel[u] = tile.load_channel(numbers.channel, u);
      for (int64_t row = begin; row < end; ++row) {
        const T *px = at(call_.x, row), *pr = at_residual(row);
        T* py = at(call_.y, row);
        const LaneMask<F> kept = lets_through(call_.kept, row);
        tile.prefetch(px + kRowsAhead * call_.x.outer_stride);
        if constexpr (has_residual) tile.prefetch(pr + kRowsAhead * call_.residual.outer_stride);
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) {
          const int64_t c = tile.at(u);
          V y = formula_.forward(channel[u], load(px + c, tile.lanes), load_residual(pr + c, tile.lanes));
          if constexpr (masked) y = keep_lanes<F>(kept, y);
          store(py + c, y, tile.lanes, streams);
        }
      }
    });
  }

  void forward() const {
    this->collect();
    normalize();
  }

  void reduce() const {
    if constexpr (masked)
      if (call_.kept != nullptr) return reduce(SelectedRows(call_.shape, call_.kept));
    reduce(all_);
  }

  void apply() const {
    if (call_.count == nullptr) apply<false>();
    else apply<true>();
  }

  void backward() const {
    reduce();
    apply();
  }

 private:
  // The channels' numbers, side by side.
  struct Numbers {
    Scratch<F> data;
    Channel<F*> channel;

    Numbers(const Call& call, int64_t channels)
        : data(5 * channels),
          channel{data.data(), data.data() + channels, data.data() + 2 * channels, data.data() + 3 * channels,
                  data.data() + 4 * channels} {
      for (int64_t c = 0; c < channels; ++c) {
        const Channel<F> one = channel_of<F>(call, c);
        channel.mean[c] = one.mean;
        channel.scale[c] = one.scale;
        channel.shift[c] = one.shift;
        channel.invstd[c] = one.invstd;
        channel.x_hat_shift[c] = one.x_hat_shift;
      }
    }
  };

  const T* at_residual(int64_t row) const { return has_residual ? at(call_.residual, row) : nullptr; }

  template <class Lanes>
  static V load_residual(const T* p, Lanes lanes) {
    if constexpr (has_residual) return load(p, lanes);
    else return V{};
  }

  static LaneMask<F> lets_through(Mask mask, int64_t row) {
    using Lane = decltype(LaneMask<F>{}[0] + 0);
    return LaneMask<F>{} + static_cast<Lane>(!masked || mask == nullptr ? 1 : mask[row]);
  }

  template <class AnyTile>
  BATCHNORM_INLINE void prefetch_inputs(const AnyTile& tile, int64_t row) const {
    tile.prefetch(at(call_.dy, row));
    tile.prefetch(at(call_.x, row));
    if constexpr (has_residual) tile.prefetch(at(call_.residual, row));
  }

  template <class AnyTile>
  BATCHNORM_INLINE auto gradient(const AnyTile& tile, int u, const Channel<V>& channel, const T* dy, const T* x,
                                 const T* residual) const {
    const int64_t c = tile.at(u);
    return formula_.gradient(channel, load(dy + c, tile.lanes), load(x + c, tile.lanes),
                             load_residual(residual + c, tile.lanes));
  }

  template <class AnyRows>
  void reduce(const AnyRows& rows) const {
    const Numbers numbers(call_, channels_);
    Scratch<double> parts(2 * channels_ * rows.parts);
    for_each_task(call_, rows.parts, [&](int64_t part) {
      double* total = parts.data() + 2 * channels_ * part;
      double* total_x_hat = total + channels_;
      for (int64_t c = 0; c < 2 * channels_; ++c) total[c] = 0;
      this->template for_each_tile<2>(rows, part, [&](auto tile, int64_t begin, int64_t end) {
        constexpr int U = decltype(tile)::vectors;
        V sum[U] = {}, sum_x_hat[U] = {};
        Channel<V> channel[U];
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) channel[u] = tile.load_channel(numbers.channel, u);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = rows[i];
          const T *pd = at(call_.dy, row), *px = at(call_.x, row), *pr = at_residual(row);
          prefetch_inputs(tile, rows[i + kRowsAhead]);
#pragma GCC unroll 8
          for (int u = 0; u < U; ++u) {
            const auto [dz, x_hat] = gradient(tile, u, channel[u], pd, px, pr);
            sum[u] += dz;
            sum_x_hat[u] += dz * x_hat;
          }
        }
        this->for_each_lane(tile, [&](int64_t c, int u, int lane) {
          total[c] += static_cast<double>(sum[u][lane]);
          total_x_hat[c] += static_cast<double>(sum_x_hat[u][lane]);
        });
      });
    });
    this->for_each_channels([&](int64_t c0, int64_t c1) {
      for (int64_t c = c0; c < c1; ++c) call_.sum_dy[c] = call_.sum_dy_xhat[c] = 0;
      for (int64_t part = 0; part < rows.parts; ++part) {
        const double* total = parts.data() + 2 * channels_ * part;
        for (int64_t c = c0; c < c1; ++c) {
          call_.sum_dy[c] += total[c];
          call_.sum_dy_xhat[c] += total[channels_ + c];
        }
      }
    });
  }

  template <bool corrects>
  void apply() const {
    const Numbers numbers(call_, channels_);
    Scratch<F> corrections(2 * channels_);
    const Correction<F*> correction_numbers{corrections.data(), corrections.data() + channels_};
    for (int64_t c = 0; c < channels_; ++c) {
      const auto [of_x_hat, constant] = correction_of(call_, c, channel_of<F>(call_, c));
      correction_numbers.of_x_hat[c] = of_x_hat;
      correction_numbers.constant[c] = constant;
    }
    const bool streams = streams_to(call_.dx) && streams_to(call_.dresidual);
    this->template for_each_tile_backwards<2>([&](auto tile, int64_t begin, int64_t end) {
      constexpr int U = decltype(tile)::vectors;
      Channel<V> channel[U];
      Correction<V> correction[U];
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) {
        channel[u] = tile.load_channel(numbers.channel, u);
        correction[u] = tile.load_correction(correction_numbers, u);
      }
      for (int64_t row = begin; row < end; ++row) {
        const T *pd = at(call_.dy, row), *px = at(call_.x, row), *pr = at_residual(row);
        T* pdx = at(call_.dx, row);
        T* pdr = has_residual ? at(call_.dresidual, row) : nullptr;
        const LaneMask<F> kept = lets_through(call_.kept, row);
        const LaneMask<F> member = corrects ? lets_through(call_.members, row) : kept;
        prefetch_inputs(tile, row + kRowsAhead);
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) {
          const int64_t c = tile.at(u);
          const auto found = gradient(tile, u, channel[u], pd, px, pr);
          V dz = found.dz, through = V{}, dx;
          if constexpr (masked) dz = keep_lanes<F>(kept, dz);
          if constexpr (has_residual) store(pdr + c, dz, tile.lanes, streams);
          if constexpr (corrects) through = formula_.through_statistics(found, correction[u]);
          if constexpr (corrects && masked) through = keep_lanes<F>(member, through);
          if constexpr (corrects) dx = formula_.dx(channel[u], dz, through);
          else dx = formula_.dx(channel[u], dz);
          if constexpr (masked) dx = keep_lanes<F>(kept | member, dx);  // a group without a value has no scale
          store(pdx + c, dx, tile.lanes, streams);
        }
      }
    });
  }

  Formula<F, has_residual, fused> formula_;
};

}  // namespace
}  // namespace batchnorm::BATCHNORM_TARGET
