#include "cpu/simd/quantize.h"

#include <cmath>
#include <limits>

#include "cpu/simd/blocks.h"

namespace losatok::LOSATOK_ISA {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kRoundUp = 1.f + 1e-6f;

typedef int32_t Ints __attribute__((vector_size(64)));

// The squared distances of x to kCodes codes, `stride` apart, by differences: the only place where a distance is
// computed, so that a pair of row and code has one distance, however it was found. False, with out unset, where the
// first features alone take every one of them beyond `limit`: a sum of squares only grows, in floating point too.
template <int kCodes, class T>
inline bool distances(const T* x, const T* codes, int64_t stride, int64_t features, T limit, T* out) {
  using Vector = vector_t<T>;
  constexpr int64_t kStep = kBlock<T>, kFirst = 2 * kStep;
  Vector sums[kCodes] = {};
  T tails[kCodes] = {};
  const auto add = [&](int64_t j) {
    const Vector row = read<Vector>(x + j);
    for (int c = 0; c < kCodes; ++c) {
      const Vector difference = row - read<Vector>(codes + c * stride + j);
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

}  // namespace

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

void round_rows(const float* x, int64_t rows, int64_t columns, int64_t stride, Bf16* out, float* errors) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = x + i * columns;
    Bf16* to = out + i * stride;
    double squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < columns; ++j) {
      store(to + j, row[j]);
      const float error = row[j] - load(to[j]);
      squares += static_cast<double>(error) * error;
    }
    errors[i] = static_cast<float>(std::sqrt(squares)) * kRoundUp;
  }
}

void scan_scores(const float* products, int64_t rows, int64_t first, int64_t width, const CodeTable& table,
                 const ScanBound* bounds, ScanState* states) {
  const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = products + i * width;
    const float* half_norms = table.half_norms + first;
    const float* norms = table.norms + first;
    ScanState& state = states[i];
    Floats best = read<Floats>(state.best), second = read<Floats>(state.second);
    Ints code = read<Ints>(state.code);
    Ints here = lanes + static_cast<int32_t>(first);
    const Floats slack = bounds[i].slack - Floats{};
    for (int64_t k = 0; k < width; k += kScanLanes) {
      const Floats score = (read<Floats>(half_norms + k) - read<Floats>(row + k)) - slack * read<Floats>(norms + k);
      const Ints less = score < best;  // false for a NaN
      const Floats loser = less ? best : score;
      second = loser < second ? loser : second;
      best = less ? score : best;
      code = less ? here : code;
      here += static_cast<int32_t>(kScanLanes);
    }
    write(state.best, best);
    write(state.second, second);
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

template int64_t nearest<float>(const float*, const float*, int64_t, int64_t, float*);
template int64_t nearest<double>(const double*, const double*, int64_t, int64_t, double*);

}  // namespace losatok::LOSATOK_ISA
