// (N, C, *S) with contiguous planes of S values.
//
//            channel 0   channel 1   channel 2
//   sample 0 [ plane  ]  [ plane  ]  [ plane  ]      piece   at most kPiece values of one channel: some whole planes,
//   sample 1 [ plane  ]  [ plane  ]  [ plane  ]              or a section of one. Its sums are taken in one go.
//   sample 2 [ plane  ]  [ plane  ]  [ plane  ]      line    a piece's values in one plane: the innermost loop.
//   ...                                              part    consecutive pieces of a channel, where few channels would
//            <----- bundle ------>                           leave threads without work. Else a channel is one part.
//                                                    bundle  neighbouring channels of small planes, read together.
//
// `forward` and `backward` take a bundle as a task, where a channel is one part: the second pass finds it in cache.
// `collect` and `reduce` take a part, `normalize` and `apply` a run of lines in the order of memory. Pieces and parts
// are cut by shape and mask alone, and sums of parts are merged in their order: results do not depend on the number of
// threads.
//
// With a mask, sums are taken over a selection: pieces of exactly kPiece values that it lets through, compressed into a
// block of the first cache unless they are one line already. Sums are then the same to the bit whatever lies between.
//
// Accuracy: a piece is summed in the arithmetic's lanes, centred by its own mean before squaring, and merged in
// float64.
#pragma once

#include "arithmetic-inl.h"
#include "common-inl.h"
#include "kernels.h"
#include "simd-inl.h"

namespace batchnorm::BATCHNORM_TARGET {
namespace {

constexpr int64_t kPiece = 2048;         // values whose sums one lane-wise accumulator takes: 8 KB of float32
constexpr int64_t kEnoughChannels = 32;  // tasks that keep the threads of a large machine busy

// Bytes: of planes that are read in bundles; of a bundle, which stays in the second cache; of its run in one sample.
constexpr int64_t kSmallPlane = 1024, kBundle = 1 << 18, kRun = 1 << 13;

// The pieces of a channel, and the parts that they make.
struct Pieces {
  int64_t pieces, parts;

  static int64_t parts_of(int64_t pieces, int64_t channels) {
    return channels >= kEnoughChannels ? 1 : at_least(at_most(pieces, divide_up(kEnoughChannels, channels)), 1);
  }

  // Call body(piece) for those of a task of `collect` or `reduce`: a part of a channel.
  template <class Body>
  void for_each_piece(int64_t task, const Body& body) const {
    const int64_t part = task % parts;
    for (int64_t piece = pieces * part / parts; piece < pieces * (part + 1) / parts; ++piece) body(piece);
  }
};

// Pieces of all values, cut by the shape.
struct PiecesOfAll : Pieces {
  int64_t samples, inner, planes_per_piece, pieces_per_plane;

  explicit PiecesOfAll(const Shape& shape)
      : Pieces{0, 0},
        samples(shape.outer),
        inner(shape.inner),
        planes_per_piece(at_least(kPiece / inner, 1)),
        pieces_per_plane(divide_up(inner, kPiece)) {
    pieces = inner > kPiece ? samples * pieces_per_plane : divide_up(samples, planes_per_piece);
    parts = parts_of(pieces, shape.channels);
  }
  // As a position among the values of a channel.
  int64_t first(int64_t piece) const {
    if (inner > kPiece) return piece / pieces_per_plane * inner + piece % pieces_per_plane * kPiece;
    return piece * planes_per_piece * inner;
  }
  int64_t values_in(int64_t piece) const {
    if (inner > kPiece) return at_most(kPiece, inner - piece % pieces_per_plane * kPiece);
    return at_most(planes_per_piece, samples - piece * planes_per_piece) * inner;
  }
};

// Pieces of the values that a mask lets through, as positions in the mask; they are the same for each channel.
struct PiecesOfSelection : Pieces {
  struct Piece {
    int64_t first, last, count;
    bool is_line;
  };
  Mask mask;
  Scratch<Piece> piece;

  PiecesOfSelection(const Shape& shape, Mask mask)
      : Pieces{0, 0}, mask(mask), piece(shape.outer * shape.inner / kPiece + 1) {
    const int64_t positions = shape.outer * shape.inner;
    int64_t open = 0;  // values that the last piece still takes
    for (int64_t begin = 0; begin < positions; begin += 8) {
      const int64_t end = at_most(begin + 8, positions);
      uint64_t bytes = 0;
      __builtin_memcpy(&bytes, mask + begin, static_cast<size_t>(end - begin));
      const auto valid = static_cast<int64_t>((bytes * 0x0101010101010101u) >> 56);
      if (valid == 0) continue;
      if (valid <= open) {  // they are all of the piece that is open
        open -= valid;
        piece[pieces - 1].count += valid;
        piece[pieces - 1].last = begin + (63 - __builtin_clzll(bytes)) / 8;
        continue;
      }
      for (int64_t i = begin; i < end; ++i) {
        if (mask[i] == 0) continue;
        if (open == 0) {
          piece[pieces++] = {i, i, 0, false};
          open = kPiece;
        }
        --open;
        ++piece[pieces - 1].count;
        piece[pieces - 1].last = i;
      }
    }
    for (int64_t i = 0; i < pieces; ++i) {
      auto& [first, last, count, is_line] = piece[i];
      is_line = last - first + 1 == count && first / shape.inner == last / shape.inner;
    }
    parts = parts_of(pieces, shape.channels);
  }
  int64_t values_in(int64_t i) const { return piece[i].count; }
};

struct Ones {
  uint8_t bytes[kPiece];
  constexpr Ones() : bytes{} {
    for (uint8_t& byte : bytes) byte = 1;
  }
};

// The walk, and the statistics, which do not depend on what follows.
template <class T>
class PlaneWalk {
 public:
  explicit PlaneWalk(const Call& call)
      : call_(call),
        samples_(call.shape.outer),
        channels_(call.shape.channels),
        inner_(call.shape.inner),
        all_(call.shape),
        bundle_(at_most(bundle(samples_, inner_ * kSize), at_least(channels_ / (2 * call.threads), 1))) {}

  void collect() const {
    if (call_.members == nullptr) collect(all_);
    else collect(PiecesOfSelection(call_.shape, call_.members));
  }

 protected:
  static constexpr int64_t kSize = sizeof(T);
  static constexpr int U = 4;  // accumulators: an addition takes four cycles
  using F = Arithmetic<T>;
  using V = Vec<F>;

  struct Line {
    int64_t n, c, first, length;
  };

  template <class AnyPieces>
  void collect(const AnyPieces& pieces) const {
    Scratch<Moments> parts(channels_ * pieces.parts);
    for_each_task(call_, channels_ * pieces.parts, [&](int64_t task) { parts[task] = moments(pieces, task); });
    for (int64_t c = 0; c < channels_; ++c)
      keep_statistics(c, origin(pieces, c), parts.data() + c * pieces.parts, pieces.parts);
  }

  static const T* at(const Input& t, const Line& line) {
    return static_cast<const T*>(t.data) + line.n * t.outer_stride + line.c * t.channel_stride + line.first;
  }
  static T* at(const Output& t, const Line& line) {
    return static_cast<T*>(t.data) + line.n * t.outer_stride + line.c * t.channel_stride + line.first;
  }
  bool streams_to(const Output& t) const {
    return call_.streams && is_streamable<T>(t.data, t.outer_stride, t.channel_stride);
  }

  // The processor foresees a walk only as far as the page, and the next plane is further away: a first pass asks for
  // the next piece while it works on this one, that of the next channel at the end. How far that is, in elements; an
  // address beyond the tensor is harmless.
  int64_t ahead(const Input& t, int64_t piece) const {
    const int64_t here = offset(t, all_.first(piece));
    return piece + 1 < all_.pieces ? offset(t, all_.first(piece + 1)) - here : t.channel_stride - here;
  }

  // Of a position among the values of a channel, in elements.
  int64_t offset(const Input& t, int64_t position) const {
    return position / inner_ * t.outer_stride + position % inner_;
  }

  // Channels of a bundle, given the samples and the bytes of a plane. Each channel's result is the same in any bundle,
  // so the number of threads may have a say: a bundle is a task, and no thread should be without.
  static int64_t bundle(int64_t samples, int64_t plane) {
    return plane > kSmallPlane ? 1 : at_least(at_most(kBundle / (samples * plane), kRun / plane), 1);
  }

  static BATCHNORM_INLINE void prefetch(const T* p) { __builtin_prefetch(p); }

  // Call body(first channel, last channel) for every bundle.
  template <class Body>
  void for_each_bundle(const Body& body) const {
    for_each_task(call_, divide_up(channels_, bundle_),
                  [&](int64_t i) { body(i * bundle_, at_most((i + 1) * bundle_, channels_)); });
  }

  // Call body(line) for everything, in the order of memory. No line is longer than a piece; short ones share a task.
  template <class Body>
  void for_each_line(const Body& body) const {
    const int64_t run = at_least(kPiece / inner_, 1), runs = divide_up(channels_, run) * all_.pieces_per_plane;
    for_each_task(call_, samples_ * runs, [&](int64_t task) {
      const int64_t n = task / runs, piece = task % all_.pieces_per_plane;
      const int64_t c0 = task % runs / all_.pieces_per_plane * run;
      const int64_t first = piece * kPiece, length = at_most(kPiece, inner_ - first);
      for (int64_t c = c0; c < at_most(c0 + run, channels_); ++c) body(Line{n, c, first, length});
    });
  }

  // The same for a bundle whose first pass has just gone by: backwards, as its end is still in cache.
  template <class Body>
  void for_each_line_of(int64_t c0, int64_t c1, const Body& body) const {
    if (c1 - c0 == 1)
      for (int64_t piece = all_.pieces; piece-- > 0;) for_each_line_in(piece, c0, body);
    else
      for (int64_t n = samples_; n-- > 0;)
        for (int64_t c = c0; c < c1; ++c) body(Line{n, c, 0, inner_});
  }

  // Call body(line) for the lines of one piece of a channel.
  template <class Body>
  BATCHNORM_INLINE void for_each_line_in(int64_t piece, int64_t c, const Body& body) const {
    if (inner_ > kPiece) {
      const int64_t first = piece % all_.pieces_per_plane * kPiece;
      body(Line{piece / all_.pieces_per_plane, c, first, at_most(kPiece, inner_ - first)});
    } else {
      const int64_t n0 = piece * all_.planes_per_piece, n1 = at_most(n0 + all_.planes_per_piece, samples_);
      for (int64_t n = n0; n < n1; ++n) body(Line{n, c, 0, inner_});
    }
  }

  // Call body(lines, ahead) for one piece of a channel: lines(each) calls each(pointers, number of values), a pointer
  // for each of the tensors, for every line; the next piece is ahead[t] elements further in tensor t.
  template <int n, class Body>
  BATCHNORM_INLINE void with_lines(const PiecesOfAll&, int64_t piece, int64_t c, const Input* const (&tensors)[n],
                  const Body& body) const {
    int64_t next[n];
    for (int t = 0; t < n; ++t) next[t] = ahead(*tensors[t], piece);
    const auto lines = [&](const auto& each) BATCHNORM_INLINE_LAMBDA {
      for_each_line_in(piece, c, [&](const Line& line) BATCHNORM_INLINE_LAMBDA {
        const T* p[n];
        for (int t = 0; t < n; ++t) p[t] = at(*tensors[t], line);
        each(p, line.length);
      });
    };
    body(lines, next);
  }
  template <int n, class Body>
  void with_lines(const PiecesOfSelection& selection, int64_t piece, int64_t c, const Input* const (&tensors)[n],
                  const Body& body) const {
    const auto& [first, last, count, is_line] = selection.piece[piece];
    T blocks[n][kPiece + kCompressSlack];
    const T* p[n];
    int64_t next[n];
    const bool is_last = piece + 1 == selection.pieces;
    const int64_t first_of_next = selection.piece[is_last ? 0 : piece + 1].first;
    for (int t = 0; t < n; ++t) {
      const Input& tensor = *tensors[t];
      next[t] = offset(tensor, first_of_next) + (is_last ? tensor.channel_stride : 0) - offset(tensor, first);
      if (is_line) {
        p[t] = at(tensor, {first / inner_, c, first % inner_, count});
      } else {
        compress_lines(tensor, selection, piece, c, next[t], blocks[t]);
        p[t] = blocks[t];
        next[t] = 0;
      }
    }
    const int64_t length = count;
    body([&](const auto& each) { each(p, length); }, next);
  }

  void compress_lines(const Input& t, const PiecesOfSelection& selection, int64_t piece, int64_t c, int64_t ahead,
                      T* to) const {
    const auto& [first, last, count, is_line] = selection.piece[piece];
    Line line{first / inner_, c, first % inner_, 0};
    for (int64_t position = first; position <= last; position += line.length, ++line.n, line.first = 0) {
      line.length = at_most(inner_ - line.first, last + 1 - position);
      to = compress(at(t, line), selection.mask + position, line.length, ahead, to);
    }
  }

  // Means are kept relative to the channel's first value: they are then small where the data are close together, and
  // merging them loses nothing.
  double origin(const PiecesOfAll&, int64_t c) const { return value_at(at(call_.x, {0, c, 0, 1})); }
  double origin(const PiecesOfSelection& selection, int64_t c) const {
    if (selection.pieces == 0) return 0;
    const int64_t first = selection.piece[0].first;
    return value_at(at(call_.x, {first / inner_, c, first % inner_, 1}));
  }

  template <class AnyPieces>
  Moments moments(const AnyPieces& pieces, int64_t task) const {
    const int64_t c = task / pieces.parts;
    const double zero = origin(pieces, c);
    Moments all;
    pieces.for_each_piece(task, [&](int64_t piece) {
      const auto count = static_cast<double>(pieces.values_in(piece));
      with_lines(pieces, piece, c, {&call_.x}, [&](const auto& lines, const auto& next) BATCHNORM_INLINE_LAMBDA {
        V sum[U] = {};
        lines([&](const auto& p, int64_t length) BATCHNORM_INLINE_LAMBDA {
          sweep<F, U>(length, [&](int64_t i, int u, auto lanes) BATCHNORM_INLINE_LAMBDA {
            sum[u] += load(p[0] + i, lanes);
          });
        });
        const F centre = static_cast<F>(sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])) / count);
        V deviation[U] = {}, square[U] = {};
        lines([&](const auto& p, int64_t length) BATCHNORM_INLINE_LAMBDA {
          sweep<F, U>(length, [&](int64_t i, int u, auto lanes) BATCHNORM_INLINE_LAMBDA {
            prefetch(p[0] + next[0] + i);
            const V d = keep<F>(load(p[0] + i, lanes) - centre, lanes);
            deviation[u] += d;
            square[u] += d * d;
          });
        });
        const double d = sum_lanes((deviation[0] + deviation[1]) + (deviation[2] + deviation[3]));
        const double s = sum_lanes((square[0] + square[1]) + (square[2] + square[3]));
        all.merge({count, (static_cast<double>(centre) - zero) + d / count, about_the_mean(s, d, count)});
      });
    });
    return __builtin_isfinite(all.m2) ? all : moments_in_float64(pieces, task);
  }

  template <class AnyPieces>
  Moments moments_in_float64(const AnyPieces& pieces, int64_t task) const {
    const int64_t c = task / pieces.parts;
    const double zero = origin(pieces, c);
    Moments all;
    pieces.for_each_piece(task, [&](int64_t number) {
      with_lines(pieces, number, c, {&call_.x}, [&](const auto& lines, const auto&) {
        Moments piece;
        piece.count = static_cast<double>(pieces.values_in(number));
        lines([&](const auto& p, int64_t length) {
          for (int64_t i = 0; i < length; ++i) piece.mean += value_at(p[0] + i) - zero;
        });
        piece.mean /= piece.count;
        lines([&](const auto& p, int64_t length) {
          for (int64_t i = 0; i < length; ++i) {
            const double d = (value_at(p[0] + i) - zero) - piece.mean;
            piece.m2 += d * d;
          }
        });
        all.merge(piece);
      });
    });
    return all;
  }

  void keep_statistics(int64_t c, double origin, const Moments* parts, int64_t number) const {
    Moments all = parts[0];
    for (int64_t part = 1; part < number; ++part) all.merge(parts[part]);
    call_.mean[c] = all.count == 0 ? __builtin_nan("") : origin + all.mean;
    call_.var[c] = all.m2 / all.count;
    if (c == 0) *call_.count = all.count;
  }

  const Call& call_;
  int64_t samples_, channels_, inner_;
  PiecesOfAll all_;
  int64_t bundle_;
};

template <class T, bool has_residual, Fused fused, bool masked>
class Planes : public PlaneWalk<T> {
  using Walk = PlaneWalk<T>;
  using typename Walk::F;
  using typename Walk::Line;
  using typename Walk::V;
  using Walk::all_;
  using Walk::at;
  using Walk::call_;
  using Walk::channels_;
  using Walk::inner_;
  using Walk::prefetch;
  using Walk::streams_to;
  using Walk::U;

 public:
  explicit Planes(const Call& call) : Walk(call), formula_{{call.activation}} {}

  void normalize() const {
    Scratch<Channel<F>> channels(channels_);
    for (int64_t c = 0; c < channels_; ++c) channels[c] = channel_of<F>(call_, c);
    const bool streams = streams_to(call_.y);
    this->for_each_line([&](const Line& line) BATCHNORM_INLINE_LAMBDA { normalize_line(line, channels[line.c], streams); });
  }

  void forward() const {
    with_pieces(call_.members, [&](const auto& pieces) { forward(pieces); });
  }

  void reduce() const {
    with_pieces(call_.kept, [&](const auto& pieces) { reduce(pieces); });
  }

  void apply() const {
    Scratch<Numbers> numbers(channels_);
    for (int64_t c = 0; c < channels_; ++c) numbers[c] = numbers_of(c);
    const bool streams = streams_to(call_.dx) && streams_to(call_.dresidual);
    this->for_each_line([&](const Line& line) { apply_line(line, numbers[line.c], streams); });
  }

  void backward() const {
    with_pieces(call_.kept, [&](const auto& pieces) { backward(pieces); });
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

  template <class Body>
  void with_pieces(Mask mask, const Body& body) const {
    if constexpr (masked)
      if (mask != nullptr) return body(PiecesOfSelection(call_.shape, mask));
    body(all_);
  }

  template <class AnyPieces>
  void forward(const AnyPieces& pieces) const {
    if (pieces.parts > 1) {
      this->collect(pieces);
      normalize();
      return;
    }
    Scratch<Channel<F>> channels(channels_);
    const bool streams = streams_to(call_.y);
    this->for_each_bundle([&](int64_t c0, int64_t c1) {
      for (int64_t c = c0; c < c1; ++c) {
        const Moments whole = this->moments(pieces, c);
        this->keep_statistics(c, this->origin(pieces, c), &whole, 1);
        channels[c] = channel_of<F>(call_, c);
      }
      this->for_each_line_of(c0, c1, [&](const Line& line) { normalize_line(line, channels[line.c], streams); });
    });
  }

  template <class AnyPieces>
  void reduce(const AnyPieces& pieces) const {
    Scratch<Sums> parts(channels_ * pieces.parts);
    for_each_task(call_, channels_ * pieces.parts, [&](int64_t task) {
      parts[task] = sums(pieces, task, channel_of<F>(call_, task / pieces.parts));
    });
    for (int64_t c = 0; c < channels_; ++c) keep_sums(c, parts.data() + c * pieces.parts, pieces.parts);
  }

  template <class AnyPieces>
  void backward(const AnyPieces& pieces) const {
    if (pieces.parts > 1) {
      reduce(pieces);
      apply();
      return;
    }
    Scratch<Numbers> numbers(channels_);
    const bool streams = streams_to(call_.dx) && streams_to(call_.dresidual);
    this->for_each_bundle([&](int64_t c0, int64_t c1) {
      for (int64_t c = c0; c < c1; ++c) {
        const Sums whole = sums(pieces, c, channel_of<F>(call_, c));
        keep_sums(c, &whole, 1);
        numbers[c] = numbers_of(c);
      }
      this->for_each_line_of(c0, c1, [&](const Line& line) { apply_line(line, numbers[line.c], streams); });
    });
  }

  const T* at_residual(const Line& line) const { return has_residual ? at(call_.residual, line) : nullptr; }

  template <class Lanes>
  static V load_residual(const T* p, Lanes lanes) {
    if constexpr (has_residual) return load(p, lanes);
    else return V{};
  }

  // No line is longer than a piece: one of ones stands for a mask that is not there.
  Mask at_mask(Mask mask, const Line& line) const {
    static constexpr Ones ones;
    return mask == nullptr ? ones.bytes : mask + line.n * inner_ + line.first;
  }

  BATCHNORM_INLINE void normalize_line(const Line& line, const Channel<F> channel, bool streams) const {
    const T *px = at(call_.x, line), *pr = at_residual(line);
    T* py = at(call_.y, line);
    const Mask kept = at_mask(call_.kept, line);
    sweep<F, U>(line.length, [&, channel](int64_t i, int, auto lanes) BATCHNORM_INLINE_LAMBDA {
      V y = formula_.forward(channel, load(px + i, lanes), load_residual(pr + i, lanes));
      if constexpr (masked) y = keep_lanes<F>(load_mask<F>(kept + i, lanes), y);
      store(py + i, y, lanes, streams);
    });
  }

  template <class AnyPieces>
  Sums sums(const AnyPieces& pieces, int64_t task, const Channel<F>& channel) const {
    if constexpr (has_residual) return sums(pieces, task, channel, {&call_.dy, &call_.x, &call_.residual});
    else return sums(pieces, task, channel, {&call_.dy, &call_.x});
  }

  template <class AnyPieces, int n>
  Sums sums(const AnyPieces& pieces, int64_t task, const Channel<F>& channel, const Input* const (&tensors)[n]) const {
    Sums all;
    pieces.for_each_piece(task, [&](int64_t piece) {
      this->with_lines(pieces, piece, task / pieces.parts, tensors, [&](const auto& lines, const auto& next) BATCHNORM_INLINE_LAMBDA {
        V sum[U] = {}, sum_x_hat[U] = {};
        lines([&](const auto& p, int64_t length) BATCHNORM_INLINE_LAMBDA {
          const T *pd = p[0], *px = p[1], *pr = p[n - 1];
          sweep<F, U>(length, [&](int64_t i, int u, auto lanes) BATCHNORM_INLINE_LAMBDA {
            prefetch(px + next[1] + i);
            prefetch(pd + next[0] + i);
            if constexpr (has_residual) prefetch(pr + next[2] + i);
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
    });
    return all;
  }

  void keep_sums(int64_t c, const Sums* parts, int64_t number) const {
    Sums all;
    for (int64_t part = 0; part < number; ++part) {
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
    T* pdr = has_residual ? at(call_.dresidual, line) : nullptr;
    const Mask kept = at_mask(call_.kept, line), members = at_mask(call_.members, line);
    sweep<F, U>(line.length, [&, channel = channel, correction = correction](int64_t i, int, auto lanes)
                                 BATCHNORM_INLINE_LAMBDA {
      const auto gradient =
          formula_.gradient(channel, load(pd + i, lanes), load(px + i, lanes), load_residual(pr + i, lanes));
      V dz = gradient.dz, through = V{}, dx;
      LaneMask<F> touched{};
      if constexpr (masked) dz = keep_lanes<F>(touched = load_mask<F>(kept + i, lanes), dz);
      if constexpr (has_residual) store(pdr + i, dz, lanes, streams);
      if constexpr (corrects) through = formula_.through_statistics(gradient, correction);
      if constexpr (corrects && masked) {
        const LaneMask<F> member = load_mask<F>(members + i, lanes);
        through = keep_lanes<F>(member, through);
        touched |= member;
      }
      if constexpr (corrects) dx = formula_.dx(channel, dz, through);
      else dx = formula_.dx(channel, dz);
      if constexpr (masked) dx = keep_lanes<F>(touched, dx);  // a group without a value has no scale
      store(pdx + i, dx, lanes, streams);
    });
  }

  Formula<F, has_residual, fused> formula_;
};

}  // namespace
}  // namespace batchnorm::BATCHNORM_TARGET
