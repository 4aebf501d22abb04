// Checks of finite scalar quantization and of affine integers.
#pragma once

#include "checks/arguments.h"

namespace losatok::check {

inline void fsq_quantize_forward(const Tensor& x, at::IntArrayRef counts, const OptionalTensor& lengths) {
  floating("x", x);
  sizes("x", x, {kAny, kAny, static_cast<int64_t>(counts.size())});
  levels(counts);
  check::lengths(lengths, x);
}

inline void fsq_quantize_backward(const Tensor& grad, const Tensor& x, at::IntArrayRef counts,
                                  const OptionalTensor& lengths) {
  fsq_quantize_forward(x, counts, lengths);
  floating_beside("grad", grad, x, {x.size(0), x.size(1), x.size(2)});
}

// Returns the number of codes.
inline int64_t fsq_dequantize_forward(const Tensor& indices, at::IntArrayRef counts, at::ScalarType type) {
  dtype("indices", indices, at::kLong);
  sizes("indices", indices, {kAny});
  floating_type("dtype", type);
  return levels(counts);
}

inline void bits_of_integer(int64_t bits) {
  TORCH_CHECK_VALUE(bits == 4 || bits == 8, "bits should be 4 or 8, got ", bits);
}

inline void affine_quantize_forward(const Tensor& x, int64_t bits) {
  floating("x", x);
  sizes("x", x, {kAny, kAny});
  bits_of_integer(bits);
}

inline void affine_dequantize_forward(const Tensor& packed, const Tensor& scale, const Tensor& offset, int64_t bits,
                                      int64_t size, at::ScalarType type) {
  bits_of_integer(bits);
  dtype("packed", packed, at::kByte);
  sizes("packed", packed, {kAny, kAny});
  floating_beside("scale", scale, packed, {packed.size(0)});
  floating_beside("offset", offset, packed, {packed.size(0)});
  const int64_t most = bits == 8 ? packed.size(1) : 2 * packed.size(1);
  TORCH_CHECK_VALUE(size == most || (bits == 4 && size == most - 1 && size >= 0),
                    "size should be the number of values that a row of packed holds, ", most, ", got ", size);
  floating_type("dtype", type);
}

}  // namespace losatok::check
