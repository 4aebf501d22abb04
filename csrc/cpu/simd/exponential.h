// e^x for loops that become vector code; in a namespace of its own per instruction set, as all of simd/.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace losatok::LOSATOK_ISA {
namespace {

// e^x by 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]: Taylor to degree 7 (error below 2e-9), or rough, to degree 4
// (5e-5), which bfloat16 does not see. Below -87.7 it is 0, above 88 it stays what it is there. NaN stays NaN.
template <bool kRough = false>
inline float exponential(float x) {
  x = x < -88.f ? -88.f : x;
  x = x > 88.f ? 88.f : x;
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  float r = x - n * 0.693145752f;  // ln 2 in two parts, the first exact in products with small integers
  r = r - n * 1.42860677e-6f;
  float p = 1.f / 24.f;
  if constexpr (!kRough) {
    p = 1.f / 5040.f;
    p = p * r + 1.f / 720.f;
    p = p * r + 1.f / 120.f;
    p = p * r + 1.f / 24.f;
  }
  p = p * r + 1.f / 6.f;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}
// 1 / x to 1e-5 for positive normal x without a division: a guess from the bits, and Newton twice.
inline float rough_reciprocal(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = 0x7ef311c7u - bits;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  y = y * (2.f - x * y);
  return y * (2.f - x * y);
}

inline double exponential(double x) { return std::exp(x); }

}  // namespace
}  // namespace losatok::LOSATOK_ISA
