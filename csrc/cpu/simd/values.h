// The types of values in memory, and what they are computed in. Where LOSATOK_ISA is defined, inside the kernels, also
// how one is read and written.
#pragma once

#include <cstdint>
#include <cstring>

namespace losatok {

struct Bf16 {
  uint16_t bits;
};

template <class T>
struct Wide {  // what T is computed and accumulated in
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};
template <class T>
using wide_t = typename Wide<T>::type;

}  // namespace losatok

#ifdef LOSATOK_ISA
namespace losatok::LOSATOK_ISA {
namespace {  // nothing here may be shared between instruction sets by the linker

inline float load(float x) { return x; }
inline double load(double x) { return x; }
inline float load(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void store(float* to, float x) { *to = x; }
inline void store(double* to, double x) { *to = x; }
inline void store(Bf16* to, float x) {  // round to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>(x == x ? rounded : 0x7fc0u);
}

}  // namespace
}  // namespace losatok::LOSATOK_ISA
#endif
