// What the launches of all kernels share: buffers that are exactly as large as they should be, and checks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

#include "cuda/reduce.h"
#include "fibers.h"

namespace launches {

using namespace losatok::cuda;

inline int count = 0;
inline uint64_t state = 1;

inline float next_value() {  // within -1 .. 1
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return static_cast<float>(static_cast<int32_t>(state >> 32)) / 2147483648.f;
}

// Device memory of `count` elements, `offset` elements off the start of an allocation that ends where it does.
class Buffer {
 public:
  Buffer(DType dtype, int64_t count, int64_t offset = 0) : dtype_(dtype), count_(count) {
    const size_t bytes = static_cast<size_t>(count + offset) * size();
    void* memory = nullptr;
    if (posix_memalign(&memory, 32, bytes ? bytes : 1)) std::abort();
    memory_.reset(memory);
    data_ = static_cast<char*>(memory) + offset * size();
  }
  Buffer& random() {
    for (int64_t i = 0; i < count_; ++i) set(i, next_value());
    return *this;
  }
  Buffer& nan() {
    for (int64_t i = 0; i < count_; ++i) set(i, std::numeric_limits<float>::quiet_NaN());
    return *this;
  }
  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }
  void expect_finite(const char* name) const {
    for (int64_t i = 0; i < count_; ++i) {
      if (std::isfinite(get(i))) continue;
      std::printf("%s[%ld] of type %d is not finite\n", name, static_cast<long>(i), static_cast<int>(dtype_));
      std::exit(1);
    }
  }

 private:
  size_t size() const { return dtype_ == DType::kFloat ? 4 : 2; }
  void set(int64_t i, float x) {
    if (dtype_ == DType::kFloat) static_cast<float*>(data_)[i] = x;
    if (dtype_ == DType::kBFloat16) static_cast<__nv_bfloat16*>(data_)[i] = __float2bfloat16(x);
    if (dtype_ == DType::kHalf) static_cast<__half*>(data_)[i] = __float2half(x);
  }
  float get(int64_t i) const {
    if (dtype_ == DType::kFloat) return static_cast<const float*>(data_)[i];
    if (dtype_ == DType::kBFloat16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data_)[i]);
    return __half2float(static_cast<const __half*>(data_)[i]);
  }
  DType dtype_;
  int64_t count_;
  std::unique_ptr<void, decltype(&std::free)> memory_{nullptr, &std::free};
  void* data_;
};

inline void check(cudaError_t error, const char* name) {
  ++count;
  if (error == cudaSuccess) return;
  std::printf("%s: error %d, %s\n", name, static_cast<int>(error), host_shim::last_error());
  std::exit(1);
}

// Each family runs its launchers once with elements of `dtype`; `other` is a second dtype, where inputs may differ.
void bottleneck(DType dtype, DType other);
void time_relation(DType dtype, DType other);
void quantize(DType dtype, DType other);
void dit(DType dtype, DType other);
void vocoder(DType dtype, DType other);

}  // namespace launches
