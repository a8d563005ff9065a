// How a tensor of shape (N, C, *S) lies in memory, as far as the kernels care.
#pragma once

#include "kernels.h"
#include "tensors.h"

namespace batchnorm {

struct Walk {
  Shape shape;
  int64_t outer_stride, channel_stride;  // see Input
};

enum class Form { kAny, kPlanes, kRows };

// Find how to walk a tensor in place, in this form; false where it is made neither of contiguous planes nor of rows.
bool find_walk(const View& tensor, Form form, Walk& walk);

// Whether the values fill their memory without gaps or repetition: torch.empty_like then keeps the strides.
bool is_dense(const View& tensor);

inline bool same_shape(const View& a, const View& b) {
  if (a.dimensions != b.dimensions) return false;
  for (int i = 0; i < a.dimensions; ++i)
    if (a.shape[i] != b.shape[i]) return false;
  return true;
}

}  // namespace batchnorm
