// Tensors of torch, without torch's headers: read and made through the table of functions that torch.Tensor offers
// other libraries (__dlpack_c_exchange_api__, a fixed binary interface of DLPack).
#pragma once

#include <Python.h>

#include <cstdint>

#include "kernels.h"

namespace batchnorm {

constexpr int kMostDimensions = 16;

// A tensor whose memory somebody else keeps alive.
struct View {
  void* data;
  int dimensions;
  const int64_t* shape;
  const int64_t* strides;  // in elements
  Dtype dtype;

  int64_t values() const;
  int64_t bytes() const;
};

// Find the table; to be called once, before anything else. False, with a Python error set, where torch has none.
bool connect_to_torch();

// See a plain tensor in a CPU's memory, of a dtype that the kernels have. False for anything else: a subclass, another
// device or dtype, a lazily negated view, None.
bool view(PyObject* object, View& seen);

// The same for a tensor of bools; its dtype is not set.
bool view_mask(PyObject* object, View& seen);

// The one value of a tensor of 64-bit integers in a CPU's memory; null for anything else.
int64_t* view_counter(PyObject* object);

// A new tensor with any content. Large ones take memory that earlier ones have left (memory.h); where none may be kept,
// torch allocates all. Null, with a Python error set, where there is no memory.
PyObject* new_tensor(int dimensions, const int64_t* shape, const int64_t* strides, Dtype dtype, void*& data);

// Whether new_tensor fills memory with NaN first, so that a value which no kernel writes cannot pass by luck. Returns
// what it was. The tests switch it on.
bool poison_new_tensors(bool on);

// torch.empty_like, for what is not dense: torch decides how it lies.
PyObject* empty_like(PyObject* tensor);

}  // namespace batchnorm
