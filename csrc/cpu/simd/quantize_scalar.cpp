#include "cpu/simd/quantize_scalar.h"

#include <cmath>
#include <limits>

namespace losatok::LOSATOK_ISA {

template <class T>
void shift_values(const T* x, int64_t count, const T* shift, T* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = x[i] + shift[i];
}

template <class T>
void round_levels(const T* squeezed, int64_t count, const LevelTable<T>& table, T* values, T* digits) {
  for (int64_t i = 0; i < count; ++i) {
    T level = std::nearbyint(squeezed[i] * table.half_range[i] - table.offset[i]);
    level = level < table.lowest[i] ? table.lowest[i] : level;  // written so that a NaN stays one
    level = level > table.highest[i] ? table.highest[i] : level;
    values[i] = level / table.half_width[i];
    digits[i] = (level == level ? level : T(0)) + table.half_width[i];
  }
}

template <class T>
void number_rows(const T* digits, int64_t rows, int64_t features, const T* weights, int64_t* indices) {
  for (int64_t i = 0; i < rows; ++i) {
    T sum = 0;
    for (int64_t j = 0; j < features; ++j) sum += digits[i * features + j] * weights[j];
    indices[i] = static_cast<int64_t>(sum);
  }
}

template <class T>
void level_gradient(const T* squeezed, const T* grad, int64_t count, const T* slope, T* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = grad[i] * slope[i] * (T(1) - squeezed[i] * squeezed[i]);
}

template <class T>
bool affine_row(const T* x, int64_t count, int top, uint8_t* out, T* scale, T* offset) {
  *scale = *offset = T(0);
  if (count == 0) return true;
  T low = x[0], high = x[0];
  int64_t bad = 0;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(+ : bad)
  for (int64_t i = 0; i < count; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
    bad += !(std::fabs(x[i]) <= std::numeric_limits<T>::max());
  }
  const double least = low, span = static_cast<double>(high) - least;
  if (bad || !(span <= std::numeric_limits<double>::max())) return false;
  T step = static_cast<T>(span / top);
  if (static_cast<double>(step) * top < span) step = std::nextafter(step, std::numeric_limits<T>::infinity());
  const double divisor = step > 0 ? static_cast<double>(step) : 1.0;  // not its inverse, which may overflow
  for (int64_t i = 0; i < count; ++i) {
    const double q = std::nearbyint((static_cast<double>(x[i]) - least) / divisor);
    out[i] = static_cast<uint8_t>(static_cast<int32_t>(q > top ? top : q));
  }
  *scale = step;
  *offset = low;
  return true;
}

template <class T>
void affine_values(const uint8_t* q, int64_t count, T scale, T offset, T* out) {
  const double step = scale, least = offset;
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(least + step * static_cast<double>(q[i]));
}

#define LOSATOK_INSTANTIATE(T)                                                    \
  template void shift_values<T>(const T*, int64_t, const T*, T*);                 \
  template void round_levels<T>(const T*, int64_t, const LevelTable<T>&, T*, T*); \
  template void number_rows<T>(const T*, int64_t, int64_t, const T*, int64_t*);   \
  template void level_gradient<T>(const T*, const T*, int64_t, const T*, T*);     \
  template bool affine_row<T>(const T*, int64_t, int, uint8_t*, T*, T*);          \
  template void affine_values<T>(const uint8_t*, int64_t, T, T, T*);
LOSATOK_INSTANTIATE(float)
LOSATOK_INSTANTIATE(double)
#undef LOSATOK_INSTANTIATE

void pack_nibbles(const uint8_t* q, int64_t count, uint8_t* packed) {
  const int64_t pairs = count / 2;
  for (int64_t i = 0; i < pairs; ++i) packed[i] = static_cast<uint8_t>(q[2 * i] | (q[2 * i + 1] << 4));
  if (count % 2) packed[pairs] = q[count - 1];
}

void unpack_nibbles(const uint8_t* packed, int64_t count, uint8_t* q) {
  const int64_t pairs = count / 2;
  for (int64_t i = 0; i < pairs; ++i) {
    q[2 * i] = packed[i] & 15;
    q[2 * i + 1] = packed[i] >> 4;
  }
  if (count % 2) q[count - 1] = packed[pairs] & 15;
}

}  // namespace losatok::LOSATOK_ISA
