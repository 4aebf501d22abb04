// What the checks of raw ops (torch.ops.losatok.*) are made of. The op on the CPU and the binding of the CUDA kernels
// call the same check first (csrc/checks/<family>.h), so that a raw call cannot read or write past a tensor. The public
// functions of losatok_ext.ops say more and say it better; a model that was exported, or edited, calls raw ops.
//
// The checks look at dtypes, sizes, devices and plain numbers. They read no tensor: on a GPU that would wait for it.
// The ops on the CPU also refuse codes that are not there (csrc/cpu/checks.h); CUDA kernels pass over them. Kernels of
// both clamp lengths.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <limits>
#include <optional>
#include <string_view>

namespace losatok::check {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline constexpr int64_t kAny = -1;  // in place of a size

inline bool given(const OptionalTensor& tensor) { return tensor && tensor->defined(); }

// The dtype of sums and statistics.
inline at::ScalarType wide_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

inline void floating_type(const char* name, at::ScalarType type) {
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble, name,
                   " should be float32, bfloat16, float16 or float64, got ", type);
}

inline void floating(const char* name, const Tensor& tensor) { floating_type(name, tensor.scalar_type()); }

inline void dtype(const char* name, const Tensor& tensor, at::ScalarType expected) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == expected, name, " should be ", expected, ", got ", tensor.scalar_type());
}

// `device` is that of the op's first tensor.
inline void device(const char* name, const Tensor& tensor, at::Device device) {
  TORCH_CHECK_VALUE(tensor.device() == device, name, " should be on ", device, " as the op's other tensors, got ",
                    tensor.device());
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

// `tensor` has the dtype and device of another, and the expected sizes.
inline void like(const char* name, const Tensor& tensor, const Tensor& other, std::initializer_list<int64_t> expected) {
  dtype(name, tensor, other.scalar_type());
  device(name, tensor, other.device());
  sizes(name, tensor, expected);
}

inline void like(const char* name, const OptionalTensor& tensor, const Tensor& other,
                 std::initializer_list<int64_t> expected) {
  if (given(tensor)) like(name, *tensor, other, expected);
}

// `tensor` has any floating dtype, the device of another, and the expected sizes.
inline void floating_beside(const char* name, const Tensor& tensor, const Tensor& other,
                            std::initializer_list<int64_t> expected) {
  floating(name, tensor);
  device(name, tensor, other.device());
  sizes(name, tensor, expected);
}

// `tensor` has the dtype of sums of another, its device, and the expected sizes.
inline void wide_beside(const char* name, const Tensor& tensor, const Tensor& other,
                        std::initializer_list<int64_t> expected) {
  dtype(name, tensor, wide_type(other.scalar_type()));
  device(name, tensor, other.device());
  sizes(name, tensor, expected);
}

// x [B, T, C] of any floating dtype.
inline void clips(const char* name, const Tensor& x) {
  floating(name, x);
  sizes(name, x, {kAny, kAny, kAny});
}

// `tensor` [B], if given; x [B, ...].
inline void lengths(const OptionalTensor& tensor, const Tensor& x, const char* name = "lengths") {
  if (!given(tensor)) return;
  dtype(name, *tensor, at::kLong);
  device(name, *tensor, x.device());
  sizes(name, *tensor, {x.size(0)});
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
