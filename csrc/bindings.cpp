// The border between Python and the kernels: the functions that batchnorm/kernels/native.py calls. Here the values of
// kernels/interface.py become one Call, and results are allocated; what is computed is in target-inl.h. A function
// returns None (or False) where an argument does not lie as the kernels need it: native.py then copies it, and calls
// again. The interpreter lock is released while a kernel runs.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <unistd.h>

#include <algorithm>
#include <iterator>
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

using batchnorm::Activation;
using batchnorm::Call;
using batchnorm::Dtype;
using batchnorm::Form;
using batchnorm::Input;
using batchnorm::Kernels;
using batchnorm::kActivations;
using batchnorm::kDtypes;
using batchnorm::Output;
using batchnorm::View;
using batchnorm::Walk;

// What holds for the whole process.
struct Settings {
  const Kernels* kernels = *batchnorm::supported_targets();
  // Outputs from here on are written past the caches, which would read each line first and hold none of it by the time
  // that somebody wants it. A quarter: the last cache also has what else is at work.
  int64_t bytes_to_stream = [] {
    const int64_t cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return cache > 0 ? cache / 4 : std::numeric_limits<int64_t>::max();
  }();
} settings;

using Names = std::vector<std::string>;

Names targets() {
  Names names;
  for (const Kernels* const* k = batchnorm::supported_targets(); *k != nullptr; ++k) names.emplace_back((*k)->target);
  return names;
}

void set_target(const std::string& name) {
  for (const Kernels* const* k = batchnorm::supported_targets(); *k != nullptr; ++k)
    if (name == (*k)->target) {
      settings.kernels = *k;
      return;
    }
  throw std::invalid_argument("unknown target " + name);
}

nb::handle field(nb::handle named_tuple, Py_ssize_t i) { return PyTuple_GET_ITEM(named_tuple.ptr(), i); }

// The named tuples of kernels/interface.py that results come in; they stay for the process.
struct Named {
  PyTypeObject *statistics, *sums, *gradients;
} named;

// One of them; its own constructor is Python, and takes longer than a kernel on a small tensor.
template <class... Fields>
nb::object make(PyTypeObject* type, Fields... fields) {
  nb::object made = nb::steal(type->tp_alloc(type, sizeof...(fields)));
  if (!made) throw nb::python_error();
  Py_ssize_t i = 0;
  (PyTuple_SET_ITEM(made.ptr(), i++, fields.release().ptr()), ...);
  return made;
}

// A (C,) vector, or with `groups` a (G, C) tensor, as the kernels read it: contiguous. False where it must be copied
// first.
bool see_numbers(nb::handle object, int64_t groups, int64_t channels, View& seen) {
  if (!batchnorm::view(object.ptr(), seen) || seen.values() != groups * channels) return false;
  const int last = seen.dimensions - 1;
  if (last < 0 || last > 1 || seen.shape[last] != channels) return false;
  return (channels == 1 || seen.strides[last] == 1) && (last == 0 || groups == 1 || seen.strides[0] == channels);
}

// The values of one call, read into a Call. `ok` is false from the first one on that must be copied first.
class Arguments {
 public:
  Call call{};
  bool ok = false;

  Arguments(nb::handle x, nb::handle reduction, int threads) {
    ok = batchnorm::view(x.ptr(), x_) && x_.dimensions >= 2 && x_.values() > 0 &&
         batchnorm::find_walk(x_, Form::kAny, walk_);
    if (!ok) return;
    call.shape = walk_.shape;
    call.group = walk_.shape.outer;
    call.dtype = x_.dtype;
    call.x = {x_.data, walk_.outer_stride, walk_.channel_stride};
    call.threads = threads;
    call.streams = x_.bytes() >= settings.bytes_to_stream;
    see_reduction(reduction);
    if (batchnorm::is_dense(x_)) return;
    // Only torch knows how it lays the outputs out; where in another form than x, x is copied.
    output_ = nb::steal(batchnorm::empty_like(x.ptr()));
    if (!output_) throw nb::python_error();
    ok = batchnorm::view(output_.ptr(), laid_out_) && find_walk_like(laid_out_, walk_);
  }

  // A tensor of x's shape; absent where it is None.
  void see_like_x(nb::handle object, Input& input) {
    if (!ok || object.is_none()) return;
    View seen;
    Walk found;
    ok = batchnorm::view(object.ptr(), seen) && seen.dtype == x_.dtype && batchnorm::same_shape(seen, x_) &&
         find_walk_like(seen, found);
    if (ok) input = {seen.data, found.outer_stride, found.channel_stride};
  }

  void see_output(nb::handle object, Output& output) {
    Input seen{};
    see_like_x(object, seen);
    output = {const_cast<void*>(seen.data), seen.outer_stride, seen.channel_stride};
  }

  // interface.Epilogue: (weight, bias, residual, activation, mask).
  void see_epilogue(nb::handle object, double eps) {
    call.eps = eps;
    see_vector(field(object, 0), call.affine.weight, call.affine.weight_dtype);
    see_vector(field(object, 1), call.affine.bias, call.affine.bias_dtype);
    see_like_x(field(object, 2), call.residual);
    call.activation = activation(field(object, 3));
    see_mask(field(object, 4), call.kept);
  }

  // interface.Statistics: (mean, var, count).
  void see_statistics(nb::handle object) {
    see_wide(field(object, 0), call.shape.channels, call.mean);
    see_wide(field(object, 1), call.shape.channels, call.var);
    if (depends_) see_wide(field(object, 2), 1, call.count);
  }

  // interface.Sums: (sum_dy, sum_dy_xhat).
  void see_sums(nb::handle object) {
    see_wide(field(object, 0), call.shape.channels, call.sum_dy);
    see_wide(field(object, 1), call.shape.channels, call.sum_dy_xhat);
  }

  // A new tensor laid out as torch.empty_like lays it out.
  nb::object new_output(Output& output) {
    void* data = nullptr;
    const View& like = output_ ? laid_out_ : x_;
    if (output_ && !given_) {
      given_ = true;
      output = {laid_out_.data, walk_.outer_stride, walk_.channel_stride};
      return output_;
    }
    nb::object made = nb::steal(batchnorm::new_tensor(x_.dimensions, x_.shape, like.strides, x_.dtype, data));
    if (!made) throw nb::python_error();
    output = {data, walk_.outer_stride, walk_.channel_stride};
    return made;
  }

  // The gradient of the residual; None without one.
  nb::object new_dresidual() { return call.residual.data == nullptr ? nb::none() : new_output(call.dresidual); }

  // A new (G, size) tensor.
  nb::object new_numbers(int64_t size, double*& numbers) const {
    const int64_t shape[] = {call.groups(), size}, strides[] = {size, 1};
    void* data = nullptr;
    nb::object made = nb::steal(batchnorm::new_tensor(2, shape, strides, Dtype::kFloat64, data));
    if (!made) throw nb::python_error();
    numbers = static_cast<double*>(data);
    return made;
  }

  nb::object new_statistics() {
    nb::object mean = new_numbers(call.shape.channels, call.mean), var = new_numbers(call.shape.channels, call.var);
    return make(named.statistics, std::move(mean), std::move(var), new_numbers(1, call.count));
  }

  double* scratch(int64_t size) {
    scratch_.emplace_back(new double[static_cast<size_t>(size)]);
    return scratch_.back().get();
  }

  void run(void (*kernel)(const Call&)) const {
    const nb::gil_scoped_release unlocked;
    kernel(call);
  }

 private:
  // interface.Reduction: (group_size, mask). None: the statistics are constants.
  void see_reduction(nb::handle object) {
    depends_ = !object.is_none();
    if (!depends_) return;
    see_mask(field(object, 1), call.members);
    if (field(object, 0).is_none()) return;
    const auto samples = std::min(nb::cast<int64_t>(field(object, 0)), x_.shape[0]);
    call.group = samples * (call.shape.outer / x_.shape[0]);
  }

  bool find_walk_like(const View& tensor, Walk& found) const {
    return batchnorm::find_walk(tensor, call.shape.rows ? Form::kRows : Form::kPlanes, found);
  }

  // A contiguous tensor of shape (N, 1, *S).
  void see_mask(nb::handle object, batchnorm::Mask& mask) {
    if (!ok || object.is_none()) return;
    View seen;
    ok = batchnorm::view_mask(object.ptr(), seen) && seen.dimensions == x_.dimensions;
    int64_t stride = 1;
    for (int i = x_.dimensions - 1; ok && i >= 0; --i) {
      const int64_t size = i == 1 ? 1 : x_.shape[i];
      ok = seen.shape[i] == size && (size == 1 || seen.strides[i] == stride);
      stride *= size;
    }
    mask = static_cast<batchnorm::Mask>(seen.data);
  }

  void see_vector(nb::handle object, const void*& data, Dtype& dtype) {
    if (!ok || object.is_none()) return;
    View seen;
    ok = see_numbers(object, 1, call.shape.channels, seen);
    if (ok) data = seen.data, dtype = seen.dtype;
  }

  // Numbers that the kernels take as float64: in place where they are, else converted.
  void see_wide(nb::handle object, int64_t size, double*& numbers) {
    if (!ok) return;
    View seen;
    ok = see_numbers(object, call.groups(), size, seen);
    if (!ok) return;
    numbers = static_cast<double*>(seen.data);
    if (seen.dtype == Dtype::kFloat64) return;
    numbers = scratch(seen.values());
    settings.kernels->read(seen.data, seen.dtype, seen.values(), numbers);
  }

  static Activation activation(nb::handle name) {
    if (name.is_none()) return Activation::kNone;
    static PyObject* const* names = [] {
      static PyObject* interned[std::size(kActivations)];
      for (size_t i = 0; i < std::size(kActivations); ++i) interned[i] = PyUnicode_InternFromString(kActivations[i]);
      return interned;
    }();
    for (size_t i = 0; i < std::size(kActivations); ++i)
      if (name.ptr() == names[i]) return static_cast<Activation>(i + 1);
    for (size_t i = 0; i < std::size(kActivations); ++i)  // a name that was put together at run time
      if (PyUnicode_Check(name.ptr()) && PyUnicode_Compare(name.ptr(), names[i]) == 0)
        return static_cast<Activation>(i + 1);
    throw std::invalid_argument("unknown activation " + nb::cast<std::string>(nb::repr(name)));
  }

  View x_;
  Walk walk_;
  nb::object output_;  // of x that is not dense: its first output, and how it lies
  View laid_out_;
  bool given_ = false, depends_ = false;
  std::vector<std::unique_ptr<double[]>> scratch_;
};

nb::object collect(nb::handle x, nb::handle reduction, int threads) {
  Arguments arguments(x, reduction, threads);
  if (!arguments.ok) return nb::none();
  nb::object statistics = arguments.new_statistics();
  arguments.run(settings.kernels->collect);
  return statistics;
}

nb::object normalize(nb::handle x, nb::handle statistics, nb::handle reduction, nb::handle epilogue, double eps,
                     int threads) {
  Arguments arguments(x, reduction, threads);
  arguments.see_epilogue(epilogue, eps);
  arguments.see_statistics(statistics);
  if (!arguments.ok) return nb::none();
  nb::object y = arguments.new_output(arguments.call.y);
  arguments.run(settings.kernels->normalize);
  return y;
}

// The same into a tensor that is there, which may be x or the residual: a value is read before it is written. False
// where something must be copied first.
bool normalize_into(nb::handle out, nb::handle x, nb::handle statistics, nb::handle reduction, nb::handle epilogue,
                    double eps, int threads) {
  Arguments arguments(x, reduction, threads);
  arguments.see_epilogue(epilogue, eps);
  arguments.see_statistics(statistics);
  arguments.see_output(out, arguments.call.y);
  if (arguments.ok) arguments.run(settings.kernels->normalize);
  return arguments.ok;
}

nb::object forward(nb::handle x, nb::handle reduction, nb::handle epilogue, double eps, int threads) {
  Arguments arguments(x, reduction, threads);
  arguments.see_epilogue(epilogue, eps);
  if (!arguments.ok) return nb::none();
  nb::object y = arguments.new_output(arguments.call.y), statistics = arguments.new_statistics();
  arguments.run(settings.kernels->forward);
  return nb::make_tuple(y, statistics);
}

nb::object reduce(nb::handle dy, nb::handle x, nb::handle statistics, nb::handle reduction, nb::handle epilogue,
                  double eps, int threads) {
  Arguments arguments(x, reduction, threads);
  arguments.see_epilogue(epilogue, eps);
  arguments.see_statistics(statistics);
  arguments.see_like_x(dy, arguments.call.dy);
  if (!arguments.ok) return nb::none();
  nb::object sum_dy = arguments.new_numbers(arguments.call.shape.channels, arguments.call.sum_dy);
  nb::object sum_dy_xhat = arguments.new_numbers(arguments.call.shape.channels, arguments.call.sum_dy_xhat);
  arguments.run(settings.kernels->reduce);
  return make(named.sums, std::move(sum_dy), std::move(sum_dy_xhat));
}

nb::object apply(nb::handle dy, nb::handle x, nb::handle statistics, nb::handle sums, nb::handle reduction,
                 nb::handle epilogue, double eps, int threads) {
  Arguments arguments(x, reduction, threads);
  arguments.see_epilogue(epilogue, eps);
  arguments.see_statistics(statistics);
  arguments.see_sums(sums);
  arguments.see_like_x(dy, arguments.call.dy);
  if (!arguments.ok) return nb::none();
  nb::object dx = arguments.new_output(arguments.call.dx), dresidual = arguments.new_dresidual();
  arguments.run(settings.kernels->apply);
  return nb::make_tuple(dx, dresidual);
}

nb::object backward(nb::handle dy, nb::handle x, nb::handle statistics, nb::handle reduction, nb::handle epilogue,
                    double eps, int threads) {
  Arguments arguments(x, reduction, threads);
  arguments.see_epilogue(epilogue, eps);
  arguments.see_statistics(statistics);
  arguments.see_like_x(dy, arguments.call.dy);
  if (!arguments.ok) return nb::none();
  nb::object dx = arguments.new_output(arguments.call.dx), dresidual = arguments.new_dresidual();
  Call& call = arguments.call;
  const int64_t channels = call.shape.channels, groups = call.groups();
  call.sum_dy = arguments.scratch(groups * channels);
  call.sum_dy_xhat = arguments.scratch(groups * channels);
  arguments.run(settings.kernels->backward);
  const auto gradient = [&](const void* parameter, Dtype dtype, double* sums) -> nb::object {
    if (parameter == nullptr) return nb::none();
    for (int64_t i = channels; i < groups * channels; ++i) sums[i % channels] += sums[i];
    const int64_t stride = 1;
    void* data = nullptr;
    nb::object made = nb::steal(batchnorm::new_tensor(1, &channels, &stride, dtype, data));
    if (!made) throw nb::python_error();
    settings.kernels->write(sums, channels, data, dtype);
    return made;
  };
  nb::object dweight = gradient(call.affine.weight, call.affine.weight_dtype, call.sum_dy_xhat);
  nb::object dbias = gradient(call.affine.bias, call.affine.bias_dtype, call.sum_dy);
  return make(named.gradients, std::move(dx), std::move(dresidual), std::move(dweight), std::move(dbias));
}

// r <- r + f (s - r) in the form of torch.lerp, which is exact at both ends.
double moved(double r, double s, double f) {
  if (f == 1) return s;  // also where r is not finite
  return f < 0.5 ? r + f * (s - r) : s - (s - r) * (1 - f);
}

bool all_finite(const double* values, int64_t count) {
  double zero = 0;  // a NaN or an infinity times 0 is NaN, and so is the sum
  for (int64_t i = 0; i < count; ++i) zero += values[i] * 0;
  return zero == 0;
}

// Move running statistics towards those of each group in turn, rounding once per group; the variance enters unbiased,
// so a group of fewer than two values is passed over, and so is one that is not finite, if `finite_only`. Then count the
// groups that have entered, and those of two values or more that have not. False where something must be copied first.
bool update(nb::handle buffers, nb::handle statistics, const std::vector<double>& factors, bool finite_only) {
  View running[2], of_groups[2], count;
  int64_t* counters[] = {nullptr, nullptr};
  for (int i : {0, 1}) {
    const nb::handle counter = field(buffers, 2 + i);
    if (!counter.is_none() && (counters[i] = batchnorm::view_counter(counter.ptr())) == nullptr) return false;
  }
  if (!batchnorm::view(field(statistics, 2).ptr(), count) || count.dtype != Dtype::kFloat64 ||
      !batchnorm::view(field(statistics, 0).ptr(), of_groups[0]) || of_groups[0].dimensions != 2)
    return false;
  const int64_t groups = of_groups[0].shape[0], channels = of_groups[0].shape[1];
  if (!see_numbers(field(statistics, 2), groups, 1, count)) return false;
  for (int i : {0, 1})
    if (!see_numbers(field(buffers, i), 1, channels, running[i]) ||
        !see_numbers(field(statistics, i), groups, channels, of_groups[i]) || of_groups[i].dtype != Dtype::kFloat64)
      return false;
  const std::unique_ptr<double[]> values(new double[static_cast<size_t>(channels)]);
  int64_t entered = 0, passed_over = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const double values_in_group = static_cast<const double*>(count.data)[g];
    const double* found[2];
    for (int i : {0, 1}) found[i] = static_cast<const double*>(of_groups[i].data) + g * channels;
    if (!(values_in_group >= 2)) continue;
    if (finite_only && !(all_finite(found[0], channels) && all_finite(found[1], channels))) {
      ++passed_over;
      continue;
    }
    ++entered;
    const double factor = factors[factors.size() == 1 ? 0 : static_cast<size_t>(g)];
    for (int i : {0, 1}) {
      const double unbiased = i == 0 ? 1 : values_in_group / (values_in_group - 1);
      settings.kernels->read(running[i].data, running[i].dtype, channels, values.get());
      for (int64_t c = 0; c < channels; ++c) {
        double& value = values[static_cast<size_t>(c)];
        value = moved(value, unbiased * found[i][c], factor);
      }
      settings.kernels->write(values.get(), channels, running[i].data, running[i].dtype);
    }
  }
  if (counters[0] != nullptr) *counters[0] += entered;
  if (counters[1] != nullptr) *counters[1] += passed_over;
  return true;
}

// The values per channel of plain tensors that go together as functional.py asks of them; None where they do not.
nb::object fit(nb::handle x_object, nb::handle residual_object, nb::tuple vectors) {
  View x, residual, vector;
  if (!batchnorm::view(x_object.ptr(), x) || x.dimensions < 2) return nb::none();
  if (!residual_object.is_none() && (!batchnorm::view(residual_object.ptr(), residual) || residual.dtype != x.dtype ||
                                     !batchnorm::same_shape(residual, x)))
    return nb::none();
  const bool narrow = x.dtype == Dtype::kBFloat16 || x.dtype == Dtype::kFloat16;
  for (nb::handle object : vectors) {
    if (object.is_none()) continue;
    if (!batchnorm::view(object.ptr(), vector) || vector.dimensions != 1 || vector.shape[0] != x.shape[1]) return nb::none();
    if (vector.dtype != x.dtype && !(narrow && vector.dtype == Dtype::kFloat32)) return nb::none();
  }
  return nb::int_(x.shape[1] == 0 ? 0 : x.values() / x.shape[1]);
}

bool computes(nb::handle x) {
  View seen;
  return batchnorm::view(x.ptr(), seen);
}

nb::object empty_like(nb::handle x) {
  Arguments arguments(x, nb::none(), 1);
  return arguments.ok ? arguments.new_output(arguments.call.y) : nb::object(nb::none());
}

bool walkable(nb::handle x) { return Arguments(x, nb::none(), 1).ok; }

bool walkable_like(nb::handle tensor, nb::handle x) {
  Arguments arguments(x, nb::none(), 1);
  arguments.see_like_x(tensor, arguments.call.dy);
  return arguments.ok;
}

// What the stub says of arguments that several functions take.
#define X "x: torch.Tensor, "
#define STATISTICS "statistics: batchnorm.kernels.interface.Statistics, "
#define REST                                                                                              \
  "reduction: batchnorm.kernels.interface.Reduction | None, epilogue: batchnorm.kernels.interface.Epilogue, " \
  "eps: float, threads: int)"

}  // namespace

NB_MODULE(_native, m) {
  if (!batchnorm::connect_to_torch()) throw nb::python_error();
  const nb::module_ interface = nb::module_::import_("batchnorm.kernels.interface");
  const auto type = [&](const char* name) {
    return reinterpret_cast<PyTypeObject*>(nb::object(interface.attr(name)).release().ptr());
  };
  named = {type("Statistics"), type("Sums"), type("Gradients")};
  const auto none = nb::arg().none();
  m.doc() = "Batch-normalization kernels for CPUs. Used by batchnorm.kernels.native, which checks every argument.";
  m.def("dtypes", [] { return Names(std::begin(kDtypes), std::end(kDtypes)); }, "Return the dtypes of x, by name.");
  m.def("activations", [] { return Names(std::begin(kActivations), std::end(kActivations)); },
        "Return the activations, by name.");
  m.def("targets", targets, "Return the targets that this processor runs, best first.");
  m.def("target", [] { return std::string(settings.kernels->target); }, "Return the target that runs.");
  m.def("set_target", set_target, nb::arg("name"), "Make one target run.");
  m.def("stream_from", [](int64_t size) { return std::exchange(settings.bytes_to_stream, size); }, nb::arg("size"),
        "Write outputs of so many bytes past the caches, and return the former limit.");
  m.def("poison_new_tensors", batchnorm::poison_new_tensors, nb::arg("on"),
        "Fill new tensors with NaN, and return what held before.");
  m.def("blocks", batchnorm::blocks, "Return the bytes of every block of memory for outputs, and whether a tensor uses it.");
  m.def("release_kept_blocks", batchnorm::release_kept_blocks, "Give back all kept memory, and return its bytes.");
  m.def("kept_limit", batchnorm::kept_limit, "Return how many bytes are kept at most.");
  m.def("limit_kept_blocks", batchnorm::limit_kept_blocks, nb::arg("limit"),
        "Keep at most so many bytes; with 0 torch allocates.");
  m.def("computes", computes, nb::sig("def computes(x: object) -> bool"), nb::arg(),
        "Return whether this is a plain tensor that the kernels can read.");
  m.def("walkable", walkable, nb::sig("def walkable(x: torch.Tensor) -> bool"), nb::arg(),
        "Return whether the kernels walk this tensor in place.");
  m.def("walkable_like", walkable_like, nb::sig("def walkable_like(tensor: torch.Tensor, x: torch.Tensor) -> bool"),
        nb::arg(), nb::arg(), "Return whether the kernels walk a tensor of x's shape in place, as they walk x.");
  m.def("empty_like", empty_like, nb::sig("def empty_like(x: torch.Tensor) -> torch.Tensor | None"), nb::arg(),
        "Return a new tensor as a kernel makes it for its results.");
  m.def("fit", fit,
        nb::sig("def fit(x: torch.Tensor, residual: torch.Tensor | None, "
                "vectors: tuple[torch.Tensor | None, ...]) -> int | None"),
        nb::arg(), none, nb::arg(),
        "Return the values per channel of plain tensors that go together as functional.py demands.");
  // The kernels, and the arithmetic of running statistics.
  m.def("collect", collect, nb::sig("def collect(x: torch.Tensor, reduction: batchnorm.kernels.interface.Reduction, "
                                    "threads: int) -> batchnorm.kernels.interface.Statistics | None"),
        nb::arg(), nb::arg(), nb::arg());
  m.def("normalize", normalize, nb::sig("def normalize(" X STATISTICS REST " -> torch.Tensor | None"), nb::arg(),
        nb::arg(), none, nb::arg(), nb::arg(), nb::arg());
  m.def("normalize_into", normalize_into,
        nb::sig("def normalize_into(out: torch.Tensor, " X STATISTICS REST " -> bool"),
        nb::arg(), nb::arg(), nb::arg(), none, nb::arg(), nb::arg(), nb::arg());
  m.def("forward", forward,
        nb::sig("def forward(x: torch.Tensor, reduction: batchnorm.kernels.interface.Reduction, "
                "epilogue: batchnorm.kernels.interface.Epilogue, eps: float, threads: int) -> "
                "tuple[torch.Tensor, batchnorm.kernels.interface.Statistics] | None"),
        nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg());
  m.def("reduce", reduce,
        nb::sig("def reduce(dy: torch.Tensor, " X STATISTICS REST " -> batchnorm.kernels.interface.Sums | None"),
        nb::arg(), nb::arg(), nb::arg(), none, nb::arg(), nb::arg(), nb::arg());
  m.def("apply", apply,
        nb::sig("def apply(dy: torch.Tensor, " X STATISTICS "sums: batchnorm.kernels.interface.Sums, " REST
                " -> tuple[torch.Tensor, torch.Tensor | None] | None"),
        nb::arg(), nb::arg(), nb::arg(), nb::arg(), none, nb::arg(), nb::arg(), nb::arg());
  m.def("backward", backward,
        nb::sig("def backward(dy: torch.Tensor, " X STATISTICS REST
                " -> batchnorm.kernels.interface.Gradients | None"),
        nb::arg(), nb::arg(), nb::arg(), none, nb::arg(), nb::arg(), nb::arg());
  m.def("update", update,
        nb::sig("def update(running: batchnorm.kernels.interface.Running, "
                "statistics: batchnorm.kernels.interface.Statistics, factors: list[float], finite_only: bool) -> bool"),
        nb::arg(), nb::arg(), nb::arg(), nb::arg());
}
