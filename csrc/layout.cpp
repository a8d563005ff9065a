#include "layout.h"

#include <algorithm>

namespace batchnorm {
namespace {

// The distance between the values of some dimensions that can be walked as one, outermost first; -1 where they cannot.
class Joined {
 public:
  void add_inside_out(int64_t size, int64_t stride) {
    if (size == 1) return;
    if (first_ < 0) first_ = stride;
    else if (stride != expected_) broken_ = true;
    expected_ = stride * size;
  }
  int64_t distance() const { return broken_ ? -1 : first_ < 0 ? 1 : first_; }

 private:
  int64_t first_ = -1, expected_ = 0;
  bool broken_ = false;
};

}  // namespace

bool find_walk(const View& tensor, Form form, Walk& walk) {
  const int64_t *shape = tensor.shape, *strides = tensor.strides;
  const int64_t samples = shape[0], channels = shape[1];
  Joined space;
  int64_t inner = 1;
  for (int i = tensor.dimensions - 1; i >= 2; --i) {
    space.add_inside_out(shape[i], strides[i]);
    inner *= shape[i];
  }
  if (form != Form::kRows && inner > 1 && space.distance() == 1) {
    walk = {{false, samples, channels, inner}, strides[0], strides[1]};
    return true;
  }
  if (form == Form::kPlanes || (channels != 1 && strides[1] != 1)) return false;
  space.add_inside_out(samples, strides[0]);
  const int64_t row = space.distance();
  if (row < 0 || (row < channels && samples * inner != 1)) return false;
  walk = {{true, samples * inner, channels, 1}, row, 1};
  return true;
}

bool is_dense(const View& tensor) {
  int order[kMostDimensions], n = 0;
  for (int i = 0; i < tensor.dimensions; ++i)
    if (tensor.shape[i] != 1) order[n++] = i;
  std::sort(order, order + n, [&](int a, int b) { return tensor.strides[a] < tensor.strides[b]; });
  int64_t expected = 1;
  for (int i = 0; i < n; ++i) {
    if (tensor.strides[order[i]] != expected) return false;
    expected *= tensor.shape[order[i]];
  }
  return true;
}

}  // namespace batchnorm
