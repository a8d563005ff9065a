#include "tensors.h"

#include <cstdlib>
#include <cstring>

#include "memory.h"

namespace batchnorm {
namespace {

// The structs of DLPack 1 (dmlc/dlpack, include/dlpack/dlpack.h).
struct Version {
  uint32_t major, minor;
};
struct DlTensor {
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t dimensions;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct Managed {
  Version version;
  void* context;
  void (*deleter)(Managed*);
  uint64_t flags;
  DlTensor tensor;
};
struct Table {
  Version version;
  Table* previous;
  void* allocate;
  void* managed_from_object;
  int (*to_object)(Managed* tensor, void** object);  // takes the tensor over
  int (*from_object)(void* object, DlTensor* borrowed);
  void* current_stream;
};
constexpr int32_t kCpu = 1;
constexpr uint8_t kInt = 0, kFloat = 2, kBfloat = 4, kBool = 6;

const Table* table;
PyTypeObject *tensor_type, *parameter_type;
PyObject *is_neg, *torch_empty_like, *torch_empty_strided;
PyObject* torch_dtypes[4];  // by Dtype
bool poisoned = false;

PyObject* attribute(const char* module, const char* name) {
  PyObject* found = PyImport_ImportModule(module);
  return found == nullptr ? nullptr : PyObject_GetAttrString(found, name);  // both stay for the process
}

bool known(uint8_t code, uint8_t bits, Dtype& dtype) {
  if (code == kFloat && bits == 32) dtype = Dtype::kFloat32;
  else if (code == kFloat && bits == 64) dtype = Dtype::kFloat64;
  else if (code == kFloat && bits == 16) dtype = Dtype::kFloat16;
  else if (code == kBfloat && bits == 16) dtype = Dtype::kBFloat16;
  else return false;
  return true;
}

int64_t width(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

PyObject* tuple(int length, const int64_t* values) {
  PyObject* const made = PyTuple_New(length);
  for (int i = 0; made != nullptr && i < length; ++i) PyTuple_SET_ITEM(made, i, PyLong_FromLongLong(values[i]));
  return made;
}

// A tensor whose memory torch allocates, and can resize.
PyObject* new_tensor_of_torch(int dimensions, const int64_t* shape, const int64_t* strides, Dtype dtype, void*& data) {
  PyObject* const arguments = Py_BuildValue("(NN)", tuple(dimensions, shape), tuple(dimensions, strides));
  PyObject* const keywords = Py_BuildValue("{sO}", "dtype", torch_dtypes[static_cast<int>(dtype)]);
  const bool built = arguments != nullptr && keywords != nullptr;
  PyObject* const made = built ? PyObject_Call(torch_empty_strided, arguments, keywords) : nullptr;
  Py_XDECREF(arguments);
  Py_XDECREF(keywords);
  View seen;
  if (made != nullptr && view(made, seen)) data = seen.data;
  return made;
}

// From about this many bytes the system's allocator gives pages back when they are freed, and takes fresh ones at the
// next call; faulting them in costs more than writing them.
constexpr int64_t kLarge = 1 << 16;
constexpr std::size_t kCacheLine = 64;

// A tensor of ours; small ones have their values behind it, from the next cache line on.
struct Held {
  Managed managed;
  int64_t shape[kMostDimensions], strides[kMostDimensions];
};

void drop_small(Managed* managed) { std::free(managed->context); }

void drop_large(Managed* managed) {
  release_block(managed->tensor.data);
  std::free(managed->context);
}

}  // namespace

int64_t View::values() const {
  int64_t values = 1;
  for (int i = 0; i < dimensions; ++i) values *= shape[i];
  return values;
}

int64_t View::bytes() const { return values() * width(dtype); }

bool connect_to_torch() {
  PyObject* tensor = attribute("torch", "Tensor");
  PyObject* parameter = attribute("torch.nn", "Parameter");
  torch_empty_like = attribute("torch", "empty_like");
  torch_empty_strided = attribute("torch", "empty_strided");
  if (tensor == nullptr || parameter == nullptr || torch_empty_like == nullptr || torch_empty_strided == nullptr)
    return false;
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBFloat16, Dtype::kFloat16}) {
    constexpr const char* names[] = {"float32", "float64", "bfloat16", "float16"};
    const auto i = static_cast<int>(dtype);
    if ((torch_dtypes[i] = attribute("torch", names[i])) == nullptr) return false;
  }
  tensor_type = reinterpret_cast<PyTypeObject*>(tensor);
  parameter_type = reinterpret_cast<PyTypeObject*>(parameter);
  is_neg = PyObject_GetAttrString(tensor, "is_neg");
  PyObject* capsule = PyObject_GetAttrString(tensor, "__dlpack_c_exchange_api__");
  if (is_neg == nullptr || capsule == nullptr) return false;
  table = static_cast<const Table*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  while (table != nullptr && table->version.major > 1) table = table->previous;
  if (table == nullptr && !PyErr_Occurred()) PyErr_SetString(PyExc_ImportError, "torch has no DLPack 1 exchange table");
  return table != nullptr;
}

namespace {

bool borrow(PyObject* object, DlTensor& borrowed, View& seen) {
  if (Py_TYPE(object) != tensor_type && Py_TYPE(object) != parameter_type) return false;
  if (table->from_object(object, &borrowed) != 0) {
    PyErr_Clear();  // a device or dtype that DLPack does not know, or no memory at all
    return false;
  }
  seen.data = static_cast<char*>(borrowed.data) + borrowed.byte_offset;
  seen.dimensions = borrowed.dimensions;
  seen.shape = borrowed.shape;
  seen.strides = borrowed.strides;
  return borrowed.device.type == kCpu && borrowed.dimensions <= kMostDimensions && borrowed.dtype.lanes == 1;
}

}  // namespace

bool view(PyObject* object, View& seen) {
  DlTensor borrowed;
  if (!borrow(object, borrowed, seen) || !known(borrowed.dtype.code, borrowed.dtype.bits, seen.dtype)) return false;
  PyObject* negated = PyObject_CallOneArg(is_neg, object);  // the imaginary part of a conjugate
  Py_XDECREF(negated);
  if (negated != Py_False) PyErr_Clear();
  return negated == Py_False;
}

bool view_mask(PyObject* object, View& seen) {
  DlTensor borrowed;
  return borrow(object, borrowed, seen) && borrowed.dtype.code == kBool;
}

int64_t* view_counter(PyObject* object) {
  DlTensor borrowed;
  View seen;
  const bool counter = borrow(object, borrowed, seen) && borrowed.dtype.code == kInt && borrowed.dtype.bits == 64;
  return counter && seen.values() == 1 ? static_cast<int64_t*>(seen.data) : nullptr;
}

PyObject* new_tensor(int dimensions, const int64_t* shape, const int64_t* strides, Dtype dtype, void*& data) {
  View wanted{nullptr, dimensions, shape, strides, dtype};
  const auto bytes = static_cast<std::size_t>(wanted.bytes());
  if (kept_limit() == 0) {
    PyObject* const made = new_tensor_of_torch(dimensions, shape, strides, dtype, data);
    if (made != nullptr && poisoned) std::memset(data, 0xff, bytes);
    return made;
  }
  const bool large = wanted.bytes() >= kLarge;
  void* raw = std::malloc(sizeof(Held) + (large ? 0 : bytes + kCacheLine));
  if (raw != nullptr && large) {
    data = acquire_block(bytes);
    if (data == nullptr) {
      std::free(raw);
      raw = nullptr;
    }
  } else if (raw != nullptr) {
    const auto behind = reinterpret_cast<std::uintptr_t>(raw) + sizeof(Held);
    data = reinterpret_cast<void*>((behind + kCacheLine - 1) / kCacheLine * kCacheLine);
    forbid(reinterpret_cast<void*>(behind), bytes + kCacheLine);
    permit(data, bytes);
  }
  if (raw == nullptr)
    return PyErr_Format(PyExc_MemoryError,
                        "cannot allocate %zu bytes for an output: the system has no memory left. Try a smaller batch.", bytes);
  if (poisoned) std::memset(data, 0xff, bytes);  // a NaN in each of the dtypes
  auto* held = static_cast<Held*>(raw);
  const auto size = static_cast<std::size_t>(dimensions) * sizeof(int64_t);
  std::memcpy(held->shape, shape, size);
  std::memcpy(held->strides, strides, size);
  held->managed = {{1, 0},
                   held,
                   large ? drop_large : drop_small,
                   0,
                   {data,
                    {kCpu, 0},
                    dimensions,
                    {dtype == Dtype::kBFloat16 ? kBfloat : kFloat, static_cast<uint8_t>(8 * width(dtype)), 1},
                    held->shape,
                    held->strides,
                    0}};
  void* object = nullptr;
  if (table->to_object(&held->managed, &object) != 0) return nullptr;  // it has taken the memory over all the same
  return static_cast<PyObject*>(object);
}

bool poison_new_tensors(bool on) {
  const bool former = poisoned;
  poisoned = on;
  return former;
}

PyObject* empty_like(PyObject* tensor) { return PyObject_CallOneArg(torch_empty_like, tensor); }

}  // namespace batchnorm
