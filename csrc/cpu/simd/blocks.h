// Vectors of 64 bytes whatever the processor: the compiler splits them where registers are narrower, and sums are taken
// in the same order everywhere.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/values.h"

// Vectors of 64 bytes only pass between inlined functions of one file, where no calling convention matters.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace losatok::LOSATOK_ISA {
namespace {  // nothing here may be shared between instruction sets by the linker

typedef float Floats __attribute__((vector_size(64)));
typedef double Doubles __attribute__((vector_size(64)));

template <class W>
struct BlockOf;
template <>
struct BlockOf<float> {
  using type = Floats;
};
template <>
struct BlockOf<double> {
  using type = Doubles;
};
template <class W>
using vector_t = typename BlockOf<W>::type;
template <class W>
constexpr int64_t kBlock = 64 / sizeof(W);  // values of a vector

template <class V, class T>
inline V read(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
inline void write(float* to, const Floats& v) { std::memcpy(to, &v, sizeof v); }
inline void write(double* to, const Doubles& v) { std::memcpy(to, &v, sizeof v); }

// The 16 or 8 lanes of v combined into one, in pairs: a chain of them would wait for each.
template <class Combine>
inline float fold(const Floats& v, const Combine& combine) {
  typedef float Half __attribute__((vector_size(32)));
  typedef float Quarter __attribute__((vector_size(16)));
  float parts[16];
  std::memcpy(parts, &v, sizeof v);
  const Half half = combine(read<Half>(parts), read<Half>(parts + 8));
  std::memcpy(parts, &half, sizeof half);
  const Quarter quarter = combine(read<Quarter>(parts), read<Quarter>(parts + 4));
  return combine(combine(quarter[0], quarter[2]), combine(quarter[1], quarter[3]));
}
template <class Combine>
inline double fold(const Doubles& v, const Combine& combine) {
  return combine(combine(combine(v[0], v[4]), combine(v[2], v[6])), combine(combine(v[1], v[5]), combine(v[3], v[7])));
}
template <class V>
inline auto sum(const V& v) {
  return fold(v, [](const auto& a, const auto& b) { return a + b; });
}

}  // namespace
}  // namespace losatok::LOSATOK_ISA
