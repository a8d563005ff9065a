// Contiguous rows of C values: channels_last of any rank, and (N, C). Rows are cut into parts by the shape alone; the
// parts' statistics are merged in their order, so results do not depend on the number of threads. The second pass takes
// the parts in reverse, the last ones being still in cache.
//
// Accuracy: blocks of at most kBlockRows rows are summed in the arithmetic's lanes, centred by their own mean before
// squaring, and merged in float64.

namespace batchnorm::BATCHNORM_TARGET {
namespace {

constexpr int64_t kBlockValues = 8192;  // 32 KB of float32: a block's second look finds it in L1
constexpr int64_t kLeastBlockRows = 32, kMostBlockRows = 256;
constexpr int64_t kPartValues = 1 << 14, kMostParts = 64;

template <class T, bool has_residual, Fused fused>
class Rows {
  using F = Arithmetic<T>;
  using V = Vec<F>;

 public:
  explicit Rows(const Call& call)
      : call_(call),
        channels_(call.shape.channels),
        rows_(call.shape.outer),
        block_rows_(at_most(at_least(kBlockValues / channels_, kLeastBlockRows), kMostBlockRows)),
        parts_(at_least(at_most(at_most(rows_ * channels_ / kPartValues, kMostParts), rows_ / kLeastBlockRows), 1)),
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
    double count = 0;
    for (int64_t part = 0; part < parts_; ++part) {
      const double* part_mean = parts + 2 * channels_ * part;
      const auto added = static_cast<double>(last_row(part) - first_row(part));
      merge(count, mean, var, added, [&](int64_t c) { return part_mean[c]; },
            [&](int64_t c) { return part_mean[channels_ + c]; });
      count += added;
    }
    for (int64_t c = 0; c < channels_; ++c) {
      var[c] /= count;
      mean[c] += origin[c];
      if (!__builtin_isfinite(var[c])) moments_in_float64(x, c, mean + c, var + c);
    }
  }

  void normalize(Input x, Input residual, const double* mean, const double* var, Output y) const {
    const Constants k(*this, mean, var);
    for_each_task(call_, parts_, true, [&](int64_t part) {
      for (int64_t row = last_row(part) - 1; row >= first_row(part); --row) {
        const T* px = at(x, row);
        const T* pr = has_residual ? at(residual, row) : nullptr;
        T* py = at(y, row);
        sweep<F, 4>(channels_, [&](int64_t c, int, auto lanes) {
          V z = (load(px + c, lanes) - load(k.mean + c, lanes)) * load(k.scale + c, lanes) + load(k.shift + c, lanes);
          if constexpr (has_residual) z += load(pr + c, lanes);
          store(py + c, activate_(z), lanes);
        });
      }
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
      Scratch<F> sums(2 * channels_);
      F *sum = sums + 0, *sum_x_hat = sums + channels_;
      for_each_block(part, [&](int64_t begin, int64_t end) {
        for (int64_t c = 0; c < 2 * channels_; ++c) sum[c] = 0;
        for (int64_t row = begin; row < end; ++row) {
          const T* pd = at(dy, row);
          const T* px = at(x, row);
          const T* pr = has_residual ? at(residual, row) : nullptr;
          sweep<F, 2>(channels_, [&](int64_t c, int, auto lanes) {
            const V centred = load(px + c, lanes) - load(k.mean + c, lanes);
            V z = V{};
            if constexpr (fused != Fused::kNone) {
              z = centred * load(k.scale + c, lanes) + load(k.shift + c, lanes);
              if constexpr (has_residual) z += load(pr + c, lanes);
            }
            const V dz = activate_.backward(load(pd + c, lanes), z);
            const V x_hat = centred * load(k.invstd + c, lanes) + load(k.x_hat_shift + c, lanes);
            store(sum + c, load(sum + c, lanes) + dz, lanes);
            store(sum_x_hat + c, load(sum_x_hat + c, lanes) + dz * x_hat, lanes);
          });
        }
        for (int64_t c = 0; c < channels_; ++c) {
          total[c] += static_cast<double>(sum[c]);
          total_x_hat[c] += static_cast<double>(sum_x_hat[c]);
        }
      });
    });
    for (int64_t c = 0; c < channels_; ++c) sum_dy[c] = sum_dy_xhat[c] = 0;
    for (int64_t part = 0; part < parts_; ++part) {
      const double* total = parts + 2 * channels_ * part;
      for (int64_t c = 0; c < channels_; ++c) {
        sum_dy[c] += total[c];
        sum_dy_xhat[c] += total[channels_ + c];
      }
    }
  }

  template <bool batch_statistics>
  void apply(Input dy, Input x, Input residual, const double* mean, const double* var, const double* sum_dy,
             const double* sum_dy_xhat, double count, Output dx, Output dz) const {
    const Constants k(*this, mean, var);
    Scratch<F> corrections(2 * channels_);
    F *of_x_hat = corrections + 0, *constant = corrections + channels_;
    for (int64_t c = 0; c < channels_; ++c) {
      const Correction<F> correction(Channel<F>(call_, c, mean[c], var[c]), sum_dy[c], sum_dy_xhat[c], count);
      of_x_hat[c] = correction.of_x_hat;
      constant[c] = correction.constant;
    }
    for_each_task(call_, parts_, true, [&](int64_t part) {
      for (int64_t row = last_row(part) - 1; row >= first_row(part); --row) {
        const T* pd = at(dy, row);
        const T* px = at(x, row);
        const T* pr = has_residual ? at(residual, row) : nullptr;
        T* pdx = at(dx, row);
        T* pdz = dz.data == nullptr ? nullptr : at(dz, row);
        sweep<F, 2>(channels_, [&](int64_t c, int, auto lanes) {
          const V centred = load(px + c, lanes) - load(k.mean + c, lanes);
          const V scale = load(k.scale + c, lanes);
          V z = V{};
          if constexpr (fused != Fused::kNone) {
            z = centred * scale + load(k.shift + c, lanes);
            if constexpr (has_residual) z += load(pr + c, lanes);
          }
          const V d = activate_.backward(load(pd + c, lanes), z);
          if (pdz != nullptr) store(pdz + c, d, lanes);
          V r = d * scale;
          if constexpr (batch_statistics) {
            const V x_hat = centred * load(k.invstd + c, lanes) + load(k.x_hat_shift + c, lanes);
            r += x_hat * load(of_x_hat + c, lanes) + load(constant + c, lanes);
          }
          store(pdx + c, r, lanes);
        });
      }
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

  int64_t first_row(int64_t part) const { return rows_ * part / parts_; }
  int64_t last_row(int64_t part) const { return rows_ * (part + 1) / parts_; }

  template <class Body>
  void for_each_block(int64_t part, Body body) const {
    for (int64_t row = first_row(part); row < last_row(part); row += block_rows_)
      body(row, at_most(row + block_rows_, last_row(part)));
  }

  // Moments::merge for all channels at once: the counts are the same, so the divisions are made once.
  template <class MeanOf, class M2Of>
  void merge(double count, double* mean, double* m2, double added, MeanOf mean_of, M2Of m2_of) const {
    if (count == 0) {
      for (int64_t c = 0; c < channels_; ++c) {
        mean[c] = mean_of(c);
        m2[c] = m2_of(c);
      }
      return;
    }
    const double share = added / (count + added), between = count * share;
    for (int64_t c = 0; c < channels_; ++c) {
      const double delta = mean_of(c) - mean[c];
      mean[c] += delta * share;
      m2[c] += m2_of(c) + delta * delta * between;
    }
  }

  void moments(Input x, int64_t part, const double* origin, double* mean, double* m2) const {
    Scratch<F> sums(3 * channels_);
    F *centre = sums + 0, *deviation = sums + channels_, *square = sums + 2 * channels_;
    double count = 0;
    for_each_block(part, [&](int64_t begin, int64_t end) {
      const auto n = static_cast<double>(end - begin);
      const F share = static_cast<F>(1.0 / n);
      for (int64_t c = 0; c < 3 * channels_; ++c) centre[c] = 0;
      for (int64_t row = begin; row < end; ++row) {
        const T* p = at(x, row);
        sweep<F, 4>(channels_, [&](int64_t c, int, auto lanes) {
          store(centre + c, load(centre + c, lanes) + load(p + c, lanes), lanes);
        });
      }
      for (int64_t c = 0; c < channels_; ++c) centre[c] *= share;
      for (int64_t row = begin; row < end; ++row) {
        const T* p = at(x, row);
        sweep<F, 4>(channels_, [&](int64_t c, int, auto lanes) {
          const V d = load(p + c, lanes) - load(centre + c, lanes);
          store(deviation + c, load(deviation + c, lanes) + d, lanes);
          store(square + c, load(square + c, lanes) + d * d, lanes);
        });
      }
      merge(
          count, mean, m2, n,
          [&](int64_t c) { return (static_cast<double>(centre[c]) - origin[c]) + static_cast<double>(deviation[c]) / n; },
          [&](int64_t c) {
            return about_the_mean(static_cast<double>(square[c]), static_cast<double>(deviation[c]), n);
          });
      count += n;
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
  int64_t channels_, rows_, block_rows_, parts_;
  Activate<F, fused> activate_;
};

}  // namespace
}  // namespace batchnorm::BATCHNORM_TARGET
