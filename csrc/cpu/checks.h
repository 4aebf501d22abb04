// Checks of the arguments of raw ops. The public functions of losatok_ext.ops say more and say it better; these keep a
// raw call (torch.ops.losatok.*) from reading or writing past a tensor. They look at sizes and dtypes, and read a
// tensor only where it holds codes: one pass, and the op reads them several times. A kernel of the CPU is only ever
// called with dense tensors on the CPU: others go to another kernel, or are refused by torch.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/aminmax.h>

#include <initializer_list>
#include <limits>
#include <optional>

namespace losatok::check {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline constexpr int64_t kAny = -1;  // in place of a size

inline void floating(const char* name, const Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble, name,
                   " should be float32, bfloat16, float16 or float64, got ", type);
}

inline void dtype(const char* name, const Tensor& tensor, at::ScalarType expected) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == expected, name, " should be ", expected, ", got ", tensor.scalar_type());
}

inline void sizes(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected) {
  bool fits = tensor.dim() == static_cast<int64_t>(expected.size());
  int64_t dimension = 0;
  for (const int64_t size : expected) {
    if (!fits) break;
    fits = size == kAny || tensor.size(dimension) == size;
    ++dimension;
  }
  TORCH_CHECK_VALUE(fits, name, " should have shape ", at::IntArrayRef(expected), " (-1: any size), got ",
                    tensor.sizes());
}

inline void lengths(const OptionalTensor& tensor, int64_t batch, const char* name = "lengths") {
  if (!tensor || !tensor->defined()) return;
  dtype(name, *tensor, at::kLong);
  sizes(name, *tensor, {batch});
}

// Numbers of codes: -1 is none.
inline void codes(const char* name, const Tensor& tensor, int64_t count) {
  dtype(name, tensor, at::kLong);
  if (tensor.numel() == 0) return;
  const auto [low, high] = at::aminmax(tensor);
  const int64_t least = low.item<int64_t>(), most = high.item<int64_t>();
  TORCH_CHECK_VALUE(least >= -1 && most < count, name, " should lie within -1..", count - 1, " (of ", count,
                    " codes; -1 is none), got ", least, "..", most);
}

// Returns the number of codes that quantization to these levels has.
inline int64_t levels(at::IntArrayRef counts) {
  int64_t size = 1;
  for (const int64_t count : counts) {
    TORCH_CHECK_VALUE(count >= 2 && count <= 65536, "levels should each lie within 2..65536, got ", count);
    TORCH_CHECK_VALUE(size <= std::numeric_limits<int64_t>::max() / count,
                      "levels should make fewer than 2^63 codes (an index is int64)");
    size *= count;
  }
  return size;
}

}  // namespace losatok::check
