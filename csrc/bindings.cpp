// The border between Python and the kernels: the functions that batchnorm/kernels/native.py calls. Here tensors become
// addresses and distances, and results are allocated; what is computed is in target-inl.h. A function returns None where
// an argument does not lie as the kernels need it: native.py then copies it, and calls again. The interpreter lock is
// released while a kernel runs.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <unistd.h>

#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "layout.h"
#include "memory.h"
#include "tensors.h"

namespace nb = nanobind;

namespace {

using batchnorm::Affine;
using batchnorm::Dtype;
using batchnorm::Form;
using batchnorm::Input;
using batchnorm::Kernels;
using batchnorm::Output;
using batchnorm::View;
using batchnorm::Walk;

const Kernels* current = *batchnorm::supported_targets();

// Outputs from here on are written past the caches, which would read each line first and hold none of it by the time that
// somebody wants it. A quarter: the last cache also has what else is at work.
int64_t bytes_to_stream = [] {
  const int64_t cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return cache > 0 ? cache / 4 : std::numeric_limits<int64_t>::max();
}();

std::vector<std::string> targets() {
  std::vector<std::string> names;
  for (const Kernels* const* k = batchnorm::supported_targets(); *k != nullptr; ++k) names.emplace_back((*k)->target);
  return names;
}

void set_target(const std::string& name) {
  for (const Kernels* const* k = batchnorm::supported_targets(); *k != nullptr; ++k)
    if (name == (*k)->target) {
      current = *k;
      return;
    }
  throw std::invalid_argument("unknown target " + name);
}

bool is_form(const Walk& walk, const View& tensor, Walk& found) {
  return batchnorm::find_walk(tensor, walk.shape.rows ? Form::kRows : Form::kPlanes, found);
}

// x, and what is laid out like it.
class Walker {
 public:
  explicit Walker(nb::handle x) : object_(x) {
    ok_ = batchnorm::view(x.ptr(), x_) && x_.dimensions >= 2 && x_.values() > 0 &&
          batchnorm::find_walk(x_, Form::kAny, walk_);
    dense_ = ok_ && batchnorm::is_dense(x_);
    // Where torch would lay the outputs out in another form than x, x is copied.
    if (ok_ && !dense_) ok_ = static_cast<bool>(output().first);
  }

  bool ok() const { return ok_; }
  const View& x() const { return x_; }
  const Walk& walk() const { return walk_; }
  Input input() const { return {x_.data, walk_.outer_stride, walk_.channel_stride}; }

  // A tensor of x's shape; absent where it is None. False where it must be copied first.
  bool like(nb::handle object, Input& input) const {
    input = {nullptr, 0, 0};
    if (object.is_none()) return true;
    View seen;
    Walk found;
    if (!batchnorm::view(object.ptr(), seen) || seen.dtype != x_.dtype || !batchnorm::same_shape(seen, x_) ||
        !is_form(walk_, seen, found))
      return false;
    input = {seen.data, found.outer_stride, found.channel_stride};
    return true;
  }

  // A new tensor laid out as torch.empty_like lays it out; none, with no Python error, where that is another form.
  std::pair<nb::object, Output> output() const {
    if (dense_) {
      void* data = nullptr;
      nb::object made = nb::steal(batchnorm::new_tensor(x_.dimensions, x_.shape, x_.strides, x_.dtype, data));
      if (!made) throw nb::python_error();
      return {std::move(made), {data, walk_.outer_stride, walk_.channel_stride}};
    }
    nb::object made = nb::steal(batchnorm::empty_like(object_.ptr()));
    View seen;
    Walk found;
    if (!made) throw nb::python_error();
    if (!batchnorm::view(made.ptr(), seen) || !is_form(walk_, seen, found)) return {nb::object(), {}};
    return {std::move(made), {seen.data, found.outer_stride, found.channel_stride}};
  }

  // A new (C,) tensor.
  std::pair<nb::object, void*> vector(Dtype dtype) const {
    const int64_t stride = 1;
    void* data = nullptr;
    nb::object made = nb::steal(batchnorm::new_tensor(1, &walk_.shape.channels, &stride, dtype, data));
    if (!made) throw nb::python_error();
    return {std::move(made), data};
  }

 private:
  nb::handle object_;
  View x_;
  Walk walk_;
  bool ok_ = false, dense_ = false;
};

// A contiguous (C,) vector; data is null where it is None. False where it must be copied first.
bool see_vector(nb::handle object, int64_t channels, View& seen) {
  seen = {};
  if (object.is_none()) return true;
  return batchnorm::view(object.ptr(), seen) && seen.dimensions == 1 && seen.shape[0] == channels &&
         (channels == 1 || seen.strides[0] == 1);
}

// Numbers of each channel that the kernels take as float64: in place where they are, else converted.
class Wide {
 public:
  bool see(nb::handle object, int64_t channels) {
    View seen;
    if (!see_vector(object, channels, seen) || seen.data == nullptr) return false;
    if (seen.dtype == Dtype::kFloat64) {
      values_ = static_cast<const double*>(seen.data);
    } else {
      converted_.reset(new double[static_cast<size_t>(channels)]);
      current->read(seen.data, seen.dtype, channels, converted_.get());
      values_ = converted_.get();
    }
    return true;
  }
  operator const double*() const { return values_; }

 private:
  std::unique_ptr<double[]> converted_;
  const double* values_ = nullptr;
};

// What every kernel is told, beside the tensors.
struct Settings {
  View weight, bias;
  Affine affine;

  bool see(nb::handle weight_object, nb::handle bias_object, int64_t channels) {
    if (!see_vector(weight_object, channels, weight) || !see_vector(bias_object, channels, bias)) return false;
    affine = {weight.data, bias.data, weight.dtype, bias.dtype};
    return true;
  }

  batchnorm::Call call(const Walker& x, double eps, int activation, int threads) const {
    const bool streams = x.x().bytes() >= bytes_to_stream;
    return {x.walk().shape, x.x().dtype, affine, eps, static_cast<batchnorm::Activation>(activation), threads, streams};
  }
};

template <class Kernel>
void run(const Kernel& kernel) {
  const nb::gil_scoped_release unlocked;
  kernel();
}

nb::object collect(nb::handle x_object, int threads) {
  const Walker x(x_object);
  if (!x.ok()) return nb::none();
  auto [mean, mean_data] = x.vector(Dtype::kFloat64);
  auto [var, var_data] = x.vector(Dtype::kFloat64);
  const auto call = Settings{}.call(x, 0, 0, threads);
  run([&, m = static_cast<double*>(mean_data), v = static_cast<double*>(var_data)] {
    current->collect(call, x.input(), m, v);
  });
  return nb::make_tuple(mean, var);
}

nb::object normalize(nb::handle x_object, nb::handle residual_object, nb::handle mean_object, nb::handle var_object,
                     nb::handle weight, nb::handle bias, double eps, int activation, int threads) {
  const Walker x(x_object);
  Input residual;
  Settings settings;
  Wide mean, var;
  if (!x.ok() || !x.like(residual_object, residual) || !settings.see(weight, bias, x.walk().shape.channels) ||
      !mean.see(mean_object, x.walk().shape.channels) || !var.see(var_object, x.walk().shape.channels))
    return nb::none();
  auto [y, y_output] = x.output();
  const auto call = settings.call(x, eps, activation, threads);
  run([&, out = y_output] { current->normalize(call, x.input(), residual, mean, var, out); });
  return y;
}

// The same into a tensor that is there, which may be x or the residual: a value is read before it is written. False
// where something must be copied first.
bool normalize_into(nb::handle out_object, nb::handle x_object, nb::handle residual_object, nb::handle mean_object,
                    nb::handle var_object, nb::handle weight, nb::handle bias, double eps, int activation, int threads) {
  const Walker x(x_object);
  Input residual, out;
  Settings settings;
  Wide mean, var;
  if (!x.ok() || !x.like(out_object, out) || !x.like(residual_object, residual) ||
      !settings.see(weight, bias, x.walk().shape.channels) || !mean.see(mean_object, x.walk().shape.channels) ||
      !var.see(var_object, x.walk().shape.channels))
    return false;
  const Output y{const_cast<void*>(out.data), out.outer_stride, out.channel_stride};
  const auto call = settings.call(x, eps, activation, threads);
  run([&] { current->normalize(call, x.input(), residual, mean, var, y); });
  return true;
}

nb::object forward(nb::handle x_object, nb::handle residual_object, nb::handle weight, nb::handle bias, double eps,
                   int activation, int threads) {
  const Walker x(x_object);
  Input residual;
  Settings settings;
  if (!x.ok() || !x.like(residual_object, residual) || !settings.see(weight, bias, x.walk().shape.channels))
    return nb::none();
  auto [y, y_output] = x.output();
  auto [mean, mean_data] = x.vector(Dtype::kFloat64);
  auto [var, var_data] = x.vector(Dtype::kFloat64);
  const auto call = settings.call(x, eps, activation, threads);
  run([&, out = y_output, m = static_cast<double*>(mean_data), v = static_cast<double*>(var_data)] {
    current->forward(call, x.input(), residual, m, v, out);
  });
  return nb::make_tuple(y, mean, var);
}

nb::object reduce(nb::handle dy_object, nb::handle x_object, nb::handle residual_object, nb::handle mean_object,
                  nb::handle var_object, nb::handle weight, nb::handle bias, double eps, int activation, int threads) {
  const Walker x(x_object);
  Input dy, residual;
  Settings settings;
  Wide mean, var;
  if (!x.ok() || !x.like(dy_object, dy) || !x.like(residual_object, residual) ||
      !settings.see(weight, bias, x.walk().shape.channels) || !mean.see(mean_object, x.walk().shape.channels) ||
      !var.see(var_object, x.walk().shape.channels))
    return nb::none();
  auto [sum_dy, sum_dy_data] = x.vector(Dtype::kFloat64);
  auto [sum_dy_xhat, sum_dy_xhat_data] = x.vector(Dtype::kFloat64);
  const auto call = settings.call(x, eps, activation, threads);
  run([&, s = static_cast<double*>(sum_dy_data), s_xhat = static_cast<double*>(sum_dy_xhat_data)] {
    current->reduce(call, dy, x.input(), residual, mean, var, s, s_xhat);
  });
  return nb::make_tuple(sum_dy, sum_dy_xhat);
}

nb::object apply(nb::handle dy_object, nb::handle x_object, nb::handle residual_object, nb::handle mean_object,
                 nb::handle var_object, nb::handle weight, nb::handle bias, double eps, int activation,
                 nb::handle sum_dy_object, nb::handle sum_dy_xhat_object, double count, int threads) {
  const Walker x(x_object);
  Input dy, residual;
  Settings settings;
  Wide mean, var, sum_dy, sum_dy_xhat;
  const int64_t channels = x.ok() ? x.walk().shape.channels : 0;
  if (!x.ok() || !x.like(dy_object, dy) || !x.like(residual_object, residual) ||
      !settings.see(weight, bias, channels) || !mean.see(mean_object, channels) || !var.see(var_object, channels) ||
      !sum_dy.see(sum_dy_object, channels) || !sum_dy_xhat.see(sum_dy_xhat_object, channels))
    return nb::none();
  auto [dx, dx_output] = x.output();
  std::pair<nb::object, Output> dz{nb::none(), {}};
  if (residual.data != nullptr) dz = x.output();
  const auto call = settings.call(x, eps, activation, threads);
  run([&, out = dx_output] {
    current->apply(call, dy, x.input(), residual, mean, var, sum_dy, sum_dy_xhat, count, out, dz.second);
  });
  return nb::make_tuple(dx, dz.first);
}

nb::object backward(nb::handle dy_object, nb::handle x_object, nb::handle residual_object, nb::handle mean_object,
                    nb::handle var_object, nb::handle weight, nb::handle bias, double eps, int activation,
                    bool batch_statistics, int threads) {
  const Walker x(x_object);
  Input dy, residual;
  Settings settings;
  Wide mean, var;
  const int64_t channels = x.ok() ? x.walk().shape.channels : 0;
  if (!x.ok() || !x.like(dy_object, dy) || !x.like(residual_object, residual) ||
      !settings.see(weight, bias, channels) || !mean.see(mean_object, channels) || !var.see(var_object, channels))
    return nb::none();
  auto [dx, dx_output] = x.output();
  std::pair<nb::object, Output> dz{nb::none(), {}};
  if (residual.data != nullptr) dz = x.output();
  const std::unique_ptr<double[]> sums(new double[static_cast<size_t>(2 * channels)]);
  double *sum_dy = sums.get(), *sum_dy_xhat = sums.get() + channels;
  const auto call = settings.call(x, eps, activation, threads);
  run([&, out = dx_output] {
    current->backward(call, dy, x.input(), residual, mean, var, batch_statistics, sum_dy, sum_dy_xhat, out, dz.second);
  });
  const auto gradient = [&](const View& parameter, const double* sum) -> nb::object {
    if (parameter.data == nullptr) return nb::none();
    auto [made, data] = x.vector(parameter.dtype);
    current->write(sum, channels, data, parameter.dtype);
    return made;
  };
  return nb::make_tuple(dx, dz.first, gradient(settings.weight, sum_dy_xhat), gradient(settings.bias, sum_dy));
}

// running <- (1 - factor) * running + factor * scale * value, rounded once. False where something must be copied first.
bool average(nb::handle running_object, nb::handle value_object, double factor, double scale) {
  View running, value;
  if (!batchnorm::view(running_object.ptr(), running) || running.dimensions != 1) return false;
  const int64_t channels = running.shape[0];
  if (!see_vector(running_object, channels, running) || !see_vector(value_object, channels, value) ||
      value.dtype != Dtype::kFloat64)
    return false;
  const std::unique_ptr<double[]> wide(new double[static_cast<size_t>(channels)]);
  current->read(running.data, running.dtype, channels, wide.get());
  const auto* values = static_cast<const double*>(value.data);
  for (int64_t c = 0; c < channels; ++c) wide[static_cast<size_t>(c)] += factor * (scale * values[c] - wide[static_cast<size_t>(c)]);
  current->write(wide.get(), channels, running.data, running.dtype);
  return true;
}

// Whether plain tensors go together as functional.py asks of them.
bool fit(nb::handle x_object, nb::handle residual_object, nb::tuple vectors) {
  View x, residual, vector;
  if (!batchnorm::view(x_object.ptr(), x) || x.dimensions < 2) return false;
  if (!residual_object.is_none() && (!batchnorm::view(residual_object.ptr(), residual) || residual.dtype != x.dtype ||
                                     !batchnorm::same_shape(residual, x)))
    return false;
  const bool narrow = x.dtype == Dtype::kBFloat16 || x.dtype == Dtype::kFloat16;
  for (nb::handle object : vectors) {
    if (object.is_none()) continue;
    if (!batchnorm::view(object.ptr(), vector) || vector.dimensions != 1 || vector.shape[0] != x.shape[1]) return false;
    if (vector.dtype != x.dtype && !(narrow && vector.dtype == Dtype::kFloat32)) return false;
  }
  return true;
}

bool computes(nb::handle x) {
  View seen;
  return batchnorm::view(x.ptr(), seen);
}

nb::object empty_like(nb::handle x) {
  const Walker walker(x);
  return walker.ok() ? walker.output().first : nb::object(nb::none());
}

bool walkable(nb::handle x) { return Walker(x).ok(); }

bool walkable_like(nb::handle tensor, nb::handle x) {
  const Walker walker(x);
  Input found;
  return walker.ok() && walker.like(tensor, found);
}

}  // namespace

NB_MODULE(_native, m) {
  if (!batchnorm::connect_to_torch()) throw nb::python_error();
  const auto maybe = nb::arg().none();
  m.doc() = "Batch-normalization kernels for CPUs. Used by batchnorm.kernels.native, which checks every argument.";
  m.def("targets", targets, "Targets that this processor runs, best first.");
  m.def("target", [] { return std::string(current->target); }, "The target that runs.");
  m.def("set_target", set_target, nb::arg("name"));
  m.def("stream_from", [](int64_t bytes) { return std::exchange(bytes_to_stream, bytes); }, nb::arg("size"),
        "Write outputs of so many bytes past the caches, and return how many it were.");
  m.def("computes", computes, "Whether this is a plain tensor that the kernels can read.");
  m.def("walkable", walkable, "Whether the kernels walk this tensor in place.");
  m.def("walkable_like", walkable_like, "Whether the kernels walk a tensor of x's shape in place, as they walk x.");
  m.def("empty_like", empty_like, "A new tensor as a kernel makes it for its results; None where x is not walkable.");
  m.def("poison_new_tensors", batchnorm::poison_new_tensors, "Whether new tensors are full of NaN; returns what was.");
  m.def("blocks", batchnorm::blocks, "Bytes of every block of memory for outputs, and whether a tensor uses it.");
  m.def("release_kept_blocks", batchnorm::release_kept_blocks, "Give back all kept memory; returns the bytes.");
  m.def("kept_limit", batchnorm::kept_limit, "How many bytes are kept at most.");
  m.def("limit_kept_blocks", batchnorm::limit_kept_blocks, "Keep at most so many bytes; 0: let torch allocate.");
  m.def("fit", fit, nb::arg(), maybe, nb::arg());
  m.def("average", average);
  m.def("collect", collect);
  m.def("normalize", normalize, nb::arg(), maybe, nb::arg(), nb::arg(), maybe, maybe, nb::arg(), nb::arg(), nb::arg());
  m.def("normalize_into", normalize_into, nb::arg(), nb::arg(), maybe, nb::arg(), nb::arg(), maybe, maybe, nb::arg(),
        nb::arg(), nb::arg());
  m.def("forward", forward, nb::arg(), maybe, maybe, maybe, nb::arg(), nb::arg(), nb::arg());
  m.def("reduce", reduce, nb::arg(), nb::arg(), maybe, nb::arg(), nb::arg(), maybe, maybe, nb::arg(), nb::arg(), nb::arg());
  m.def("apply", apply, nb::arg(), nb::arg(), maybe, nb::arg(), nb::arg(), maybe, maybe, nb::arg(), nb::arg(), nb::arg(),
        nb::arg(), nb::arg(), nb::arg());
  m.def("backward", backward, nb::arg(), nb::arg(), maybe, nb::arg(), nb::arg(), maybe, maybe, nb::arg(), nb::arg(),
        nb::arg(), nb::arg());
}
