#include "cpu/simd/int8_linear.h"

#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace losatok::LOSATOK_ISA {
namespace {

constexpr int kSquare = 16;  // rows of the weight, and lanes of 32 bits of each: a float, or a pair of bfloat16
template <class T>
constexpr int kColumns = kSquare * 4 / static_cast<int>(sizeof(T));

#if defined(__AVX512F__)

// int8 are whole in bfloat16, whose bits are the upper half of float's.
inline __m512i widened(const int8_t* from, Bf16) {
  const __m512i pairs = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  const __m512 even = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(pairs, 16), 16));
  const __m512 odd = _mm512_cvtepi32_ps(_mm512_srai_epi32(pairs, 16));
  return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(even), 16), _mm512_castps_si512(odd));
}
inline __m512i widened(const int8_t* from, float) {
  return _mm512_castps_si512(
      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))));
}

// Row i of a square becomes its column i: pairs of rows, then of pairs, within quarters of registers; then quarters.
inline void transpose(__m512i (&r)[kSquare]) {
  __m512i t[kSquare];
  for (int i = 0; i < kSquare; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < kSquare; i += 4)
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
    t[j + 4] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
    t[j + 8] = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0x88);
    t[j + 12] = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0xdd);
  }
  for (int j = 0; j < 4; ++j) {
    r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
    r[j + 4] = _mm512_shuffle_i32x4(t[j + 4], t[j + 12], 0x88);
    r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    r[j + 12] = _mm512_shuffle_i32x4(t[j + 4], t[j + 12], 0xdd);
  }
}

template <class T>
inline void square(const int8_t* weight, int64_t stride, int64_t width, T* out) {
  __m512i rows[kSquare];
  for (int i = 0; i < kSquare; ++i) rows[i] = widened(weight + i * stride, T{});
  transpose(rows);
  for (int i = 0; i < kSquare; ++i) _mm512_storeu_si512(out + i * width * (4 / sizeof(T)), rows[i]);
}

#else

// int8 are whole in bfloat16, whose bits are the upper half of float's.
inline void widen(int8_t from, Bf16* to) { store(to, static_cast<float>(from)); }
inline void widen(int8_t from, float* to) { *to = static_cast<float>(from); }

template <class T>
inline void square(const int8_t* weight, int64_t stride, int64_t width, T* out) {
  constexpr int kGroup = 4 / static_cast<int>(sizeof(T));
  for (int lane = 0; lane < kSquare; ++lane)
    for (int row = 0; row < kSquare; ++row)
      for (int i = 0; i < kGroup; ++i)
        widen(weight[row * stride + lane * kGroup + i], out + (lane * width + row) * kGroup + i);
}

#endif

}  // namespace

template <class T>
void int8_operand(const int8_t* weight, int64_t stride, int64_t rows, int64_t columns, int64_t width, int64_t depth,
                  T* out) {
  for (int64_t row = 0; row < width; row += kSquare) {
    for (int64_t column = 0; column < depth; column += kColumns<T>) {
      T* to = out + column * width + row * (4 / sizeof(T));
      const int8_t* from = weight + row * stride + column;
      if (row + kSquare <= rows && column + kColumns<T> <= columns) {
        square(from, stride, width, to);
        continue;
      }
      int8_t edge[kSquare * kColumns<T>] = {};
      for (int64_t i = 0; i < kSquare && row + i < rows; ++i)
        for (int64_t j = 0; j < kColumns<T> && column + j < columns; ++j)
          edge[i * kColumns<T> + j] = from[i * stride + j];
      square(edge, kColumns<T>, width, to);
    }
  }
}

template <class T>
void finish_int8(Activation activation, const float* sums, int64_t width, const float* scale, const float* bias,
                 int64_t rows, int64_t columns, T* y, int64_t stride) {
  by_activation(activation, [&]<Activation A>() {
    for (int64_t i = 0; i < rows; ++i, sums += width, y += stride) {
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) {
        float value = sums[j] * scale[j], derivative;
        if (bias) value += bias[j];
        evaluate<A, T>(value, &value, &derivative);
        store(y + j, value);
      }
    }
  });
}

#define LOSATOK_INSTANTIATE(T)                                                                                      \
  template void int8_operand<T>(const int8_t*, int64_t, int64_t, int64_t, int64_t, int64_t, T*);                    \
  template void finish_int8<T>(Activation, const float*, int64_t, const float*, const float*, int64_t, int64_t, T*, \
                               int64_t);
LOSATOK_INSTANTIATE(float)
LOSATOK_INSTANTIATE(Bf16)

}  // namespace losatok::LOSATOK_ISA
