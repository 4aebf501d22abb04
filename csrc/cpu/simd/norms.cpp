#include <cmath>

#include "cpu/simd/kernels.h"

namespace losatok::LOSATOK_ISA {

void inverse_norms(const float* x, int64_t rows, int64_t columns, int64_t stride, float eps, float* out) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = x + i * stride;
    float sum = 0.f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < columns; ++j) sum += row[j] * row[j];
    const float norm = std::sqrt(sum);
    out[i] = 1.f / (norm > eps ? norm : eps);
  }
}

}  // namespace losatok::LOSATOK_ISA
