// Loads and stores of single elements, computed on in float (double). Like all of simd/ without torch headers, and in a
// namespace of its own per instruction set, so that the linker shares nothing between them.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/bottleneck.h"

namespace losatok::LOSATOK_ISA {
namespace {

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
