// The border between Python and the kernels: the only file that sees Python. Tensors arrive as addresses and strides,
// checked by batchnorm/kernels/native.py; nothing is converted, copied or allocated here. The interpreter lock is
// released while a kernel runs.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"

namespace nb = nanobind;

namespace {

using batchnorm::Call;
using batchnorm::Input;
using batchnorm::Kernels;
using batchnorm::Output;
using Address = std::uintptr_t;

const Kernels* current = *batchnorm::supported_targets();

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

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

// One tensor of the shape of x: its address and its distances in elements; address 0 where it is absent.
struct Tensor {
  Address address;
  std::int64_t outer_stride, channel_stride;

  operator Input() const { return {pointer<const void>(address), outer_stride, channel_stride}; }
  operator Output() const { return {pointer<void>(address), outer_stride, channel_stride}; }
};

// The memory of a large output, as DLPack describes it (its structs are a fixed binary interface).
struct DLTensor {
  void* data;
  struct { std::int32_t type, id; } device;
  std::int32_t ndim;
  struct { std::uint8_t code, bits; std::uint16_t lanes; } dtype;
  std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};
struct Holder {
  DLManagedTensor managed;
  std::vector<std::int64_t> shape, strides;
};

void drop(DLManagedTensor* managed) {
  batchnorm::release_block(managed->tensor.data);
  delete static_cast<Holder*>(managed->context);
}

// A DLPack capsule over recycled memory; none where there is no memory.
nb::object recycled(std::size_t bytes, int dtype, std::vector<std::int64_t> shape, std::vector<std::int64_t> strides) {
  void* block = batchnorm::acquire_block(bytes);
  if (block == nullptr) return nb::none();
  constexpr std::uint8_t kFloat = 2, kBFloat = 4;
  const auto type = static_cast<batchnorm::Dtype>(dtype);
  const bool wide = type == batchnorm::Dtype::kFloat64, single = type == batchnorm::Dtype::kFloat32;
  auto* holder = new Holder{{}, std::move(shape), std::move(strides)};
  holder->managed = {{block,
                      {1, 0},
                      static_cast<std::int32_t>(holder->shape.size()),
                      {type == batchnorm::Dtype::kBFloat16 ? kBFloat : kFloat,
                       static_cast<std::uint8_t>(wide ? 64 : single ? 32 : 16), 1},
                      holder->shape.data(),
                      holder->strides.data(),
                      0},
                     holder,
                     drop};
  return nb::steal(PyCapsule_New(&holder->managed, "dltensor", [](PyObject* capsule) {
    // Renamed to "used_dltensor" by who took it over; else it is still ours.
    if (auto* managed = PyCapsule_GetPointer(capsule, "dltensor")) drop(static_cast<DLManagedTensor*>(managed));
    else PyErr_Clear();
  }));
}

Call make_call(bool rows, std::int64_t outer, std::int64_t channels, std::int64_t inner, int dtype, Address weight,
               Address bias, int parameter_dtype, double eps, int activation, int threads) {
  return {{rows, outer, channels, inner},
          static_cast<batchnorm::Dtype>(dtype),
          {pointer<const void>(weight), pointer<const void>(bias), static_cast<batchnorm::Dtype>(parameter_dtype)},
          eps,
          static_cast<batchnorm::Activation>(activation),
          threads};
}

}  // namespace

NB_MODULE(_native, m) {
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  m.doc() = "Batch-normalization kernels for CPUs. Used by batchnorm.kernels.native, which checks every argument.";
  m.def("targets", targets, "Targets that this processor runs, best first.");
  m.def("target", [] { return std::string(current->target); }, "The target that runs.");
  m.def("set_target", set_target, nb::arg("name"));
  m.def("recycled", recycled, "A DLPack capsule over memory that an earlier output has left.");

#define CALL_PARAMETERS                                                                                            \
  bool rows, std::int64_t outer, std::int64_t channels, std::int64_t inner, int dtype, Address weight, Address bias, \
      int parameter_dtype, double eps, int activation, int threads
#define CALL make_call(rows, outer, channels, inner, dtype, weight, bias, parameter_dtype, eps, activation, threads)
#define TENSOR(name) Address name, std::int64_t name##_outer, std::int64_t name##_channel
#define OF(name) (Tensor{name, name##_outer, name##_channel})

  m.def(
      "collect",
      [](CALL_PARAMETERS, TENSOR(x), Address mean, Address var) {
        current->collect(CALL, OF(x), pointer<double>(mean), pointer<double>(var));
      },
      unlocked);
  m.def(
      "normalize",
      [](CALL_PARAMETERS, TENSOR(x), TENSOR(residual), Address mean, Address var, TENSOR(y)) {
        current->normalize(CALL, OF(x), OF(residual), pointer<const double>(mean), pointer<const double>(var), OF(y));
      },
      unlocked);
  m.def(
      "forward",
      [](CALL_PARAMETERS, TENSOR(x), TENSOR(residual), Address mean, Address var, TENSOR(y)) {
        current->forward(CALL, OF(x), OF(residual), pointer<double>(mean), pointer<double>(var), OF(y));
      },
      unlocked);
  m.def(
      "reduce",
      [](CALL_PARAMETERS, TENSOR(dy), TENSOR(x), TENSOR(residual), Address mean, Address var, Address sum_dy,
         Address sum_dy_xhat) {
        current->reduce(CALL, OF(dy), OF(x), OF(residual), pointer<const double>(mean), pointer<const double>(var),
                        pointer<double>(sum_dy), pointer<double>(sum_dy_xhat));
      },
      unlocked);
  m.def(
      "apply",
      [](CALL_PARAMETERS, TENSOR(dy), TENSOR(x), TENSOR(residual), Address mean, Address var, Address sum_dy,
         Address sum_dy_xhat, double count, TENSOR(dx), TENSOR(dz)) {
        current->apply(CALL, OF(dy), OF(x), OF(residual), pointer<const double>(mean), pointer<const double>(var),
                       pointer<const double>(sum_dy), pointer<const double>(sum_dy_xhat), count, OF(dx), OF(dz));
      },
      unlocked);
  m.def(
      "backward",
      [](CALL_PARAMETERS, TENSOR(dy), TENSOR(x), TENSOR(residual), Address mean, Address var, bool batch_statistics,
         Address sum_dy, Address sum_dy_xhat, TENSOR(dx), TENSOR(dz)) {
        current->backward(CALL, OF(dy), OF(x), OF(residual), pointer<const double>(mean), pointer<const double>(var),
                          batch_statistics, pointer<double>(sum_dy), pointer<double>(sum_dy_xhat), OF(dx), OF(dz));
      },
      unlocked);
}
