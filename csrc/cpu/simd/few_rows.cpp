// Products with few rows: x [rows, features] times weight [columns, features] transposed, by dot products of tiles of
// both. A library packs the weight first; for few rows that costs as much as the product.
#include <cstring>

#include "cpu/simd/bottleneck.h"
#include "cpu/simd/vectors.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace losatok::LOSATOK_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 6;  // 6 x 4 sums, 4 + 1 operands: 29 of 32 registers
#else
constexpr int kRows = 3;  // 12 + 4 of 16
#endif
constexpr int kColumns = 4;

inline float sum(Vector<float> v) {
  constexpr int lanes = kLanes<float>;
  float parts[lanes];
  std::memcpy(parts, &v, sizeof parts);
  for (int width = lanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
  return parts[0];
}

// sums[i][j] = x[i] . weight[j] over the features that fill vectors; returns the number of those features.
template <int R, int C>
inline int64_t dot(const float* x, int64_t x_stride, const float* weight, int64_t features, float (&sums)[R][C]) {
  constexpr int lanes = kLanes<float>;
  Vector<float> parts[R][C] = {};
  int64_t k = 0;
  for (; k + lanes <= features; k += lanes) {
    Vector<float> w[C];
    for (int j = 0; j < C; ++j) w[j] = load_vector(weight + j * features + k);
    for (int i = 0; i < R; ++i) {
      const Vector<float> value = load_vector(x + i * x_stride + k);
      for (int j = 0; j < C; ++j) parts[i][j] += value * w[j];
    }
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < C; ++j) sums[i][j] = sum(parts[i][j]);
  return k;
}

#if defined(__AVX512F__)
#define LOSATOK_BF16 __attribute__((target("avx512bf16")))
template <int R, int C>
LOSATOK_BF16 inline int64_t dot(const Bf16* x, int64_t x_stride, const Bf16* weight, int64_t features,
                                float (&sums)[R][C]) {
  __m512 parts[R][C];
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < C; ++j) parts[i][j] = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k + 32 <= features; k += 32) {
    __m512bh w[C];
    for (int j = 0; j < C; ++j) std::memcpy(&w[j], weight + j * features + k, sizeof w[j]);
    for (int i = 0; i < R; ++i) {
      __m512bh value;
      std::memcpy(&value, x + i * x_stride + k, sizeof value);
      for (int j = 0; j < C; ++j) parts[i][j] = _mm512_dpbf16_ps(parts[i][j], value, w[j]);
    }
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < C; ++j) {
      Vector<float> part;
      std::memcpy(&part, &parts[i][j], sizeof part);
      sums[i][j] = sum(part);
    }
  return k;
}
#else
#define LOSATOK_BF16
template <int R, int C>
inline int64_t dot(const Bf16*, int64_t, const Bf16*, int64_t, float (&sums)[R][C]) {
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < C; ++j) sums[i][j] = 0.f;
  return 0;
}
#endif

template <class T>
struct Product {
  const T* x;
  int64_t x_stride;
  const T* weight;
  int64_t features;
  const T* bias;
  T* out;
  int64_t columns;
};

template <int R, int C, class T>
LOSATOK_BF16 inline void tile(const Product<T>& p, int64_t row, int64_t column) {
  float sums[R][C];
  const T* x = p.x + row * p.x_stride;
  const T* weight = p.weight + column * p.features;
  const int64_t done = dot<R, C>(x, p.x_stride, weight, p.features, sums);
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < C; ++j) {
      float value = sums[i][j];
      for (int64_t k = done; k < p.features; ++k)
        value += load(x[i * p.x_stride + k]) * load(weight[j * p.features + k]);
      if (p.bias) value += load(p.bias[column + j]);
      store(p.out + (row + i) * p.columns + column + j, value);
    }
}

template <int R, class T>
LOSATOK_BF16 void columns_of_tiles(const Product<T>& p, int64_t rows, int64_t column, int64_t width) {
  int64_t row = 0;
  for (; row + R <= rows; row += R) {
    if (width == kColumns)
      tile<R, kColumns>(p, row, column);
    else
      for (int64_t j = 0; j < width; ++j) tile<R, 1>(p, row, column + j);
  }
  if constexpr (R > 1) {
    if (row < rows) {
      Product<T> rest = p;
      rest.x += row * p.x_stride;
      rest.out += row * p.columns;
      columns_of_tiles<R - 1>(rest, rows - row, column, width);
    }
  }
}

}  // namespace

template <class T>
void few_rows(const T* x, int64_t x_stride, int64_t rows, const T* weight, int64_t features, const T* bias, T* out,
              int64_t columns, int64_t first, int64_t last) {
  const Product<T> product{x, x_stride, weight, features, bias, out, columns};
  for (int64_t column = first; column < last; column += kColumns)
    columns_of_tiles<kRows>(product, rows, column, last - column < kColumns ? last - column : kColumns);
}

template void few_rows<float>(const float*, int64_t, int64_t, const float*, int64_t, const float*, float*, int64_t,
                              int64_t, int64_t);
template void few_rows<Bf16>(const Bf16*, int64_t, int64_t, const Bf16*, int64_t, const Bf16*, Bf16*, int64_t, int64_t,
                             int64_t);

}  // namespace losatok::LOSATOK_ISA
