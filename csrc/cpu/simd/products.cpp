#include "cpu/simd/products.h"

#include "cpu/simd/blocks.h"

namespace losatok::LOSATOK_ISA {
namespace {

// In squares that fit the first cache.
template <class T>
inline void transpose_squares(const T* x, int64_t rows, int64_t columns, int64_t width, T* out) {
  constexpr int64_t kSquare = 16;
  for (int64_t r0 = 0; r0 < width; r0 += kSquare)
    for (int64_t c0 = 0; c0 < columns; c0 += kSquare)
      for (int64_t c = c0; c < c0 + kSquare && c < columns; ++c)
        for (int64_t r = r0; r < r0 + kSquare && r < width; ++r)
          out[c * width + r] = r < rows ? x[r * columns + c] : T{};
}

}  // namespace

template <class W>
void multiply(int64_t m, int64_t n, int64_t k, const W* a, int64_t stride, const W* b, W* c, bool add) {
  using Vector = vector_t<W>;
  constexpr int64_t kRows = 4;
  for (int64_t i = 0; i < m; i += kRows) {
    const int64_t rows = m - i < kRows ? m - i : kRows;
    for (int64_t j = 0; j < n; j += kBlock<W>) {
      Vector sums[kRows] = {};
      for (int64_t l = 0; l < k; ++l) {
        const Vector right = read<Vector>(b + l * n + j);
        for (int64_t r = 0; r < kRows; ++r) sums[r] += a[(i + (r < rows ? r : 0)) * stride + l] * right;
      }
      for (int64_t r = 0; r < rows; ++r) {
        W* to = c + (i + r) * n + j;
        write(to, add ? read<Vector>(to) + sums[r] : sums[r]);
      }
    }
  }
}

template <class T>
void transpose(const T* x, int64_t rows, int64_t columns, int64_t width, T* out) {
  transpose_squares(x, rows, columns, width, out);
}

void transpose_pairs(const Bf16* x, int64_t rows, int64_t columns, int64_t width, Bf16* out) {
  struct Pair {
    Bf16 first, second;
  };
  transpose_squares(reinterpret_cast<const Pair*>(x), rows, columns / 2, width, reinterpret_cast<Pair*>(out));
}

template void multiply<float>(int64_t, int64_t, int64_t, const float*, int64_t, const float*, float*, bool);
template void multiply<double>(int64_t, int64_t, int64_t, const double*, int64_t, const double*, double*, bool);
template void transpose<float>(const float*, int64_t, int64_t, int64_t, float*);
template void transpose<double>(const double*, int64_t, int64_t, int64_t, double*);
template void transpose<Bf16>(const Bf16*, int64_t, int64_t, int64_t, Bf16*);

}  // namespace losatok::LOSATOK_ISA
