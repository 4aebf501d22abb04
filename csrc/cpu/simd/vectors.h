// Vectors as wide as the registers of the instruction set. Compilers keep arrays of these in registers, which they do
// not always do for the sums of a loop.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/values.h"

// Vectors only pass between inlined functions of one file, where no calling convention matters.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace losatok::LOSATOK_ISA {
namespace {  // nothing here may be shared between instruction sets by the linker

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
template <class W>
struct VectorOf {
  typedef W type __attribute__((vector_size(kBytes), may_alias));
};
template <class W>
using Vector = typename VectorOf<W>::type;
template <class T>
constexpr int kLanes = kBytes / sizeof(wide_t<T>);
typedef uint32_t Words __attribute__((vector_size(kBytes)));
typedef uint16_t HalfWords __attribute__((vector_size(kBytes / 2)));

template <class W>
inline Vector<W> load_vector(const W* from) {
  Vector<W> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline Vector<float> load_vector(const Bf16* from) {
  HalfWords bits;
  std::memcpy(&bits, from, sizeof bits);
  return reinterpret_cast<Vector<float>>(__builtin_convertvector(bits, Words) << 16);
}

template <class W>
inline void store_vector(W* to, Vector<W> value) {
  std::memcpy(to, &value, sizeof value);
}
inline void store_vector(Bf16* to, Vector<float> value) {  // rounds as store() in values.h
  const Words bits = reinterpret_cast<Words>(value);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const HalfWords halves = __builtin_convertvector(value == value ? rounded : Words{} + 0x7fc0u, HalfWords);
  std::memcpy(to, &halves, sizeof halves);
}

}  // namespace
}  // namespace losatok::LOSATOK_ISA
