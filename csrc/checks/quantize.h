// Checks of vq_nearest, rvq_encode and rvq_decode.
#pragma once

#include "checks/arguments.h"

namespace losatok::check {

// x [B, T, d] is searched in codes [..., K, d], the op's argument `name`: both are float64 or neither.
inline void searched(const Tensor& x, const char* name, const Tensor& codes,
                     std::initializer_list<int64_t> code_sizes) {
  floating("x", x);
  floating_beside(name, codes, x, code_sizes);
  sizes("x", x, {kAny, kAny, codes.size(-1)});
  TORCH_CHECK_VALUE(codes.size(-1) > 0 && codes.size(-2) > 0, name,
                    " should hold at least one code of at least one feature, got ", codes.sizes());
  TORCH_CHECK_TYPE((x.scalar_type() == at::kDouble) == (codes.scalar_type() == at::kDouble), "x and ", name,
                   " should both be float64 or neither, got ", x.scalar_type(), " and ", codes.scalar_type());
}

inline void search_precision(std::string_view precision) {
  TORCH_CHECK_VALUE(precision == "exact" || precision == "fast", "precision should be exact or fast, got ", precision);
}

inline void vq_nearest_forward(const Tensor& x, const Tensor& codebook, const OptionalTensor& lengths,
                               std::string_view precision) {
  searched(x, "codebook", codebook, {kAny, kAny});
  check::lengths(lengths, x);
  search_precision(precision);
}

inline void vq_nearest_backward(const Tensor& grad, const Tensor& x, const Tensor& codebook, const Tensor& indices) {
  searched(x, "codebook", codebook, {kAny, kAny});
  floating_beside("grad", grad, x, {x.size(0), x.size(1)});
  dtype("indices", indices, at::kLong);
  device("indices", indices, x.device());
  sizes("indices", indices, {x.size(0), x.size(1)});
}

inline void rvq_encode_forward(const Tensor& x, const Tensor& codebooks, const OptionalTensor& lengths,
                               std::string_view precision) {
  searched(x, "codebooks", codebooks, {kAny, kAny, kAny});
  check::lengths(lengths, x);
  search_precision(precision);
}

inline void rvq_decode_forward(const Tensor& codes, const Tensor& codebooks) {
  floating("codebooks", codebooks);
  sizes("codebooks", codebooks, {kAny, kAny, kAny});
  dtype("codes", codes, at::kLong);
  device("codes", codes, codebooks.device());
  sizes("codes", codes, {kAny, kAny});
  TORCH_CHECK_VALUE(codes.size(1) <= codebooks.size(0), "codes should be of at most ", codebooks.size(0),
                    " stages, got ", codes.size(1));
}

inline void rvq_decode_backward(const Tensor& grad, const Tensor& codes, const Tensor& codebooks) {
  rvq_decode_forward(codes, codebooks);
  floating_beside("grad", grad, codebooks, {codes.size(0), codebooks.size(2)});
}

}  // namespace losatok::check
