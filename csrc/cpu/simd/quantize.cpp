#include "cpu/simd/quantize.h"

#include <cmath>
#include <cstring>
#include <limits>

// Vectors of 64 bytes only pass between inlined functions of this file, where no calling convention matters.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace losatok::LOSATOK_ISA {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kRoundUp = 1.f + 1e-6f;

// 64 bytes whatever the processor: the compiler splits them where registers are narrower, and results are the same.
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

template <class V, class T>
inline V load(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline float sum(const Floats& v) {
  typedef float Half __attribute__((vector_size(32)));
  typedef float Quarter __attribute__((vector_size(16)));
  float parts[16];
  std::memcpy(parts, &v, sizeof v);
  const Half half = load<Half>(parts) + load<Half>(parts + 8);
  std::memcpy(parts, &half, sizeof half);
  const Quarter quarter = load<Quarter>(parts) + load<Quarter>(parts + 4);
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

typedef double Doubles __attribute__((vector_size(64)));

inline double sum(const Doubles& v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = Floats;
};
template <>
struct VectorOf<double> {
  using type = Doubles;
};

// The squared distances of x to kCodes codes, `stride` apart, by differences: the only place where a distance is
// computed, so that a pair of row and code has one distance, however it was found. False, with out unset, where the
// first features alone take every one of them beyond `limit`: a sum of squares only grows, in floating point too.
template <int kCodes, class T>
inline bool distances(const T* x, const T* codes, int64_t stride, int64_t features, T limit, T* out) {
  using Vector = typename VectorOf<T>::type;
  constexpr int64_t kStep = sizeof(Vector) / sizeof(T), kFirst = 2 * kStep;
  Vector sums[kCodes] = {};
  T tails[kCodes] = {};
  const auto add = [&](int64_t j) {
    const Vector row = load<Vector>(x + j);
    for (int c = 0; c < kCodes; ++c) {
      const Vector difference = row - load<Vector>(codes + c * stride + j);
      sums[c] += difference * difference;
    }
  };
  int64_t j = 0;
  if (features >= 2 * kFirst && limit < std::numeric_limits<T>::infinity()) {
    for (; j < kFirst; j += kStep) add(j);
    bool near = false;
    for (int c = 0; c < kCodes; ++c) near |= !(sum(sums[c]) > limit);  // true for a NaN
    if (!near) return false;
  }
  for (; j + kStep <= features; j += kStep) add(j);
  for (; j < features; ++j)
    for (int c = 0; c < kCodes; ++c) {
      const T difference = x[j] - codes[c * stride + j];
      tails[c] += difference * difference;
    }
  for (int c = 0; c < kCodes; ++c) out[c] = sum(sums[c]) + tails[c];
  return true;
}

template <class T>
inline T distance_to(const T* x, const T* code, int64_t features) {
  T out;
  distances<1>(x, code, 0, features, std::numeric_limits<T>::infinity(), &out);
  return out;
}

template <class T>
struct Nearest {
  int64_t code = -1;
  T distance = std::numeric_limits<T>::infinity();

  inline void offer(int64_t k, T d) {  // a NaN never enters
    if (d < distance || (d == distance && k < code)) {
      code = k;
      distance = d;
    }
  }
};

// Codes first, first + step, ...
template <class T>
inline void offer_all(Nearest<T>& nearest, const T* x, const T* codes, int64_t first, int64_t step, int64_t count,
                      int64_t features) {
  constexpr int kAtOnce = 4;
  T found[kAtOnce];
  int64_t k = first;
  for (; k + (kAtOnce - 1) * step < count; k += kAtOnce * step) {
    if (!distances<kAtOnce>(x, codes + k * features, step * features, features, nearest.distance, found)) continue;
    for (int c = 0; c < kAtOnce; ++c) nearest.offer(k + c * step, found[c]);
  }
  for (; k < count; k += step) {
    nearest.offer(k, distance_to(x, codes + k * features, features));
  }
}

template <class T>
int64_t nearest(const T* x, const T* codes, int64_t count, int64_t features, T* distance) {
  Nearest<T> found;
  offer_all(found, x, codes, 0, 1, count, features);
  if (found.code < 0) {
    found.code = 0;
    found.distance = distance_to(x, codes, features);
  }
  *distance = found.distance;
  return found.code;
}

inline uint16_t round_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, sizeof x);
  return x;
}

// out [columns, width] = x [rows, columns]^T, in squares that fit the first cache.
template <class T>
inline void transpose(const T* x, int64_t rows, int64_t columns, int64_t width, T* out) {
  constexpr int64_t kSquare = 16;
  for (int64_t r0 = 0; r0 < width; r0 += kSquare)
    for (int64_t c0 = 0; c0 < columns; c0 += kSquare)
      for (int64_t c = c0; c < c0 + kSquare && c < columns; ++c)
        for (int64_t r = r0; r < r0 + kSquare && r < width; ++r)
          out[c * width + r] = r < rows ? x[r * columns + c] : T(0);
}

}  // namespace

void centre_rows(const float* x, int64_t rows, int64_t columns, const float* centre, float* out, float* norms) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = x + i * columns;
    float* to = out + i * columns;
    double squares = 0;  // of values whose squares leave float
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < columns; ++j) {
      const float value = row[j] - centre[j];
      to[j] = value;
      squares += static_cast<double>(value) * value;
    }
    norms[i] = static_cast<float>(std::sqrt(squares)) * kRoundUp;
  }
}

void round_rows(const float* x, int64_t rows, int64_t columns, int64_t stride, uint16_t* out, float* errors) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = x + i * columns;
    uint16_t* to = out + i * stride;
    double squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < columns; ++j) {
      const uint16_t bits = round_to_bf16(row[j]);
      to[j] = bits;
      const float error = row[j] - from_bf16(bits);
      squares += static_cast<double>(error) * error;
    }
    errors[i] = static_cast<float>(std::sqrt(squares)) * kRoundUp;
  }
}

void pack_codes(const float* x, int64_t rows, int64_t columns, int64_t width, float* out) {
  transpose(x, rows, columns, width, out);
}

void pack_code_pairs(const uint16_t* x, int64_t rows, int64_t columns, int64_t width, uint16_t* out) {
  // A pair of bfloat16 moves as one 32-bit value.
  transpose(reinterpret_cast<const uint32_t*>(x), rows, columns / 2, width, reinterpret_cast<uint32_t*>(out));
}

void scan_scores(const float* products, int64_t rows, int64_t first, int64_t width, const CodeTable& table,
                 const ScanBound* bounds, ScanState* states) {
  const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = products + i * width;
    const float* half_norms = table.half_norms + first;
    const float* norms = table.norms + first;
    ScanState& state = states[i];
    Floats best = load<Floats>(state.best), second = load<Floats>(state.second);
    Ints code = load<Ints>(state.code);
    Ints here = lanes + static_cast<int32_t>(first);
    const Floats slack = bounds[i].slack - Floats{};
    for (int64_t k = 0; k < width; k += kScanLanes) {
      const Floats score = (load<Floats>(half_norms + k) - load<Floats>(row + k)) - slack * load<Floats>(norms + k);
      const Ints less = score < best;  // false for a NaN
      const Floats loser = less ? best : score;
      second = loser < second ? loser : second;
      best = less ? score : best;
      code = less ? here : code;
      here += static_cast<int32_t>(kScanLanes);
    }
    std::memcpy(state.best, &best, sizeof best);
    std::memcpy(state.second, &second, sizeof second);
    std::memcpy(state.code, &code, sizeof code);
  }
}

int64_t decide_by_score(const float* x, const CodeTable& table, const ScanState& state, float* distance) {
  Nearest<float> found;
  for (int64_t lane = 0; lane < kScanLanes; ++lane) found.offer(state.code[lane], state.best[lane]);
  if (found.code < 0) return nearest(x, table.codes, table.count, table.features, distance);
  *distance = distance_to(x, table.codes + found.code * table.features, table.features);
  return found.code;
}

int64_t decide_by_distance(const float* x, const CodeTable& table, const ScanState& state, const ScanBound& bound,
                           float* distance) {
  // The least that any code's half squared distance (less the row's energy) is known not to exceed.
  float ceiling = kInfinity;
  for (int64_t lane = 0; lane < kScanLanes; ++lane) {
    if (!(state.best[lane] < kInfinity)) continue;
    const int64_t code = state.code[lane];
    const float doubt = bound.slack * table.norms[code] + bound.relative * std::fabs(table.half_norms[code]);
    const float highest = state.best[lane] + 2.f * doubt;
    if (highest < ceiling) ceiling = highest;
  }
  const float half_distance = bound.energy + ceiling;
  ceiling += bound.floor + bound.relative * (half_distance > 0.f ? half_distance : 0.f);
  if (!(ceiling < kInfinity)) return nearest(x, table.codes, table.count, table.features, distance);
  Nearest<float> found;
  for (int64_t lane = 0; lane < kScanLanes; ++lane) {
    if (!(state.best[lane] <= ceiling)) continue;
    if (state.second[lane] <= ceiling) {
      offer_all(found, x, table.codes, lane, kScanLanes, table.count, table.features);
    } else {
      const int64_t code = state.code[lane];
      found.offer(code, distance_to(x, table.codes + code * table.features, table.features));
    }
  }
  if (found.code < 0) return nearest(x, table.codes, table.count, table.features, distance);
  *distance = found.distance;
  return found.code;
}

int64_t nearest_f32(const float* x, const float* codes, int64_t count, int64_t features, float* distance) {
  return nearest(x, codes, count, features, distance);
}

int64_t nearest_f64(const double* x, const double* codes, int64_t count, int64_t features, double* distance) {
  return nearest(x, codes, count, features, distance);
}

}  // namespace losatok::LOSATOK_ISA
