// Products of small packed blocks, each on the thread that asks for it, and what a processor multiplies.
#pragma once

#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "cpu/isa.h"
#include "cpu/simd/products.h"

#if !defined(CPUBLAS_BRGEMM_F32F32F32) || !defined(CPUBLAS_BRGEMM_BF16BF16F32)
#error "this torch has no block matrix products for float32 and bfloat16; build with torch 2.10 or newer"
#endif

namespace losatok {

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Whether torch's block products are code that oneDNN generates for one thread. Where they are not, torch hands them to
// a library that may share a product among threads, so that its bits depend on their number: our own take their place.
inline bool generates_products() {
  static const bool supported = isa() != Isa::kDefault && onednn_reaches(OneDnn::kAvx2);
  return supported && at::globalContext().userEnabledMkldnn();
}

// Whether block products of bfloat16 are faster than those of float32.
inline bool multiplies_bfloat16() {
#if defined(__x86_64__)
  static const bool supported =
      isa() == Isa::kAvx512 && __builtin_cpu_supports("avx512bf16") && onednn_reaches(OneDnn::kAvx512Bf16);
  return supported && at::globalContext().userEnabledMkldnn();
#else
  return false;
#endif
}

// Memory of one thread, not initialised.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(::operator new(std::max<int64_t>(count, 1) * sizeof(T), std::align_val_t(64)))) {}
  operator T*() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t(64)); }
  };
  std::unique_ptr<T, Free> data_;
};

// c [m, n] = a [m, k] b [k, n], or c += with add; b and c packed, rows of a `stride` apart, n a multiple of 16. For
// Bf16, which only processors with multiplies_bfloat16() take, b holds pairs of rows side by side.
inline void multiply_blocks(int64_t m, int64_t n, int64_t k, const double* a, int64_t stride, const double* b,
                            double* c, bool add) {
  LOSATOK_SIMD(multiply<double>)(m, n, k, a, stride, b, c, add);
}
inline void multiply_blocks(int64_t m, int64_t n, int64_t k, const float* a, int64_t stride, const float* b, float* c,
                            bool add) {
  if (generates_products())
    at::native::cpublas::brgemm(m, n, k, stride, n, n, add, a, b, c, false);
  else
    LOSATOK_SIMD(multiply<float>)(m, n, k, a, stride, b, c, add);
}
inline void multiply_blocks(int64_t m, int64_t n, int64_t k, const Bf16* a, int64_t stride, const Bf16* b, float* c,
                            bool add) {
  at::native::cpublas::brgemm(m, n, k, stride, n, n, add, reinterpret_cast<const at::BFloat16*>(a),
                              reinterpret_cast<const at::BFloat16*>(b), c, true);
}

}  // namespace losatok
