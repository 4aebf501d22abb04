#include "cpu/simd/vocoder.h"

#include <cmath>

#include "cpu/simd/exponential.h"
#include "cpu/simd/vectors.h"

namespace losatok::LOSATOK_ISA {
namespace {  // nothing here may be shared between instruction sets by the linker

constexpr double kLogMaxMagnitude = 4.6051701859880913680;  // log 100
constexpr float kReducible = 8192.f;                        // phases up to here are reduced by whole quarter turns

// cos and sin of |x| <= kReducible: x less n quarter turns, in three parts of which the first two are exact in products
// with n, then Taylor to degree 9 and 10 on [-pi / 4, pi / 4], error below 2e-9.
inline void cos_sin(float x, float* cosine, float* sine) {
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  const float shifted = x * 0.636619772f + magic;
  const float n = shifted - magic;
  float r = x - n * 1.5703125f;
  r = r - n * 4.83751297e-4f;
  r = r - n * 7.54978942e-8f;
  const float q = r * r;
  float s = 1.f / 362880.f;
  s = s * q - 1.f / 5040.f;
  s = s * q + 1.f / 120.f;
  s = s * q - 1.f / 6.f;
  s = s * q * r + r;
  float c = -1.f / 3628800.f;
  c = c * q + 1.f / 40320.f;
  c = c * q - 1.f / 720.f;
  c = c * q + 1.f / 24.f;
  c = c * q - 0.5f;
  c = c * q + 1.f;
  uint32_t quarter;
  std::memcpy(&quarter, &shifted, sizeof quarter);
  const bool odd = quarter & 1u;
  const float a = odd ? s : c, b = odd ? c : s;
  *cosine = (quarter + 1u) & 2u ? -a : a;
  *sine = quarter & 2u ? -b : b;
}
inline void cos_sin(double x, double* cosine, double* sine) {
  *cosine = std::cos(x);
  *sine = std::sin(x);
}

// For any phase: rows with phases too large to reduce in float use the standard library.
inline void cos_sin_of_any(float x, float* cosine, float* sine) {
  *cosine = std::cos(x);
  *sine = std::sin(x);
}
inline void cos_sin_of_any(double x, double* cosine, double* sine) { cos_sin(x, cosine, sine); }

template <class T>
inline bool reducible(const T* phase, int64_t bins) {
  int beyond = 0;
#pragma omp simd reduction(| : beyond)
  for (int64_t k = 0; k < bins; ++k) beyond |= !(std::fabs(static_cast<float>(load(phase[k]))) <= kReducible);
  return !beyond;
}

template <class W>
inline W magnitude_of(W log_magnitude) {  // min(exp(m), 100); NaN stays NaN
  const W most = static_cast<W>(kLogMaxMagnitude);
  return exponential(log_magnitude > most ? most : log_magnitude);
}

// each(k, log magnitude, cosine, sine) for the bins of a row
template <class T, class Each>
inline void for_bins(const T* head, int64_t bins, Each&& each) {
  using W = wide_t<T>;
  const T* phase = head + bins;
  if (reducible(phase, bins)) {
#pragma omp simd
    for (int64_t k = 0; k < bins; ++k) {
      W cosine, sine;
      cos_sin(load(phase[k]), &cosine, &sine);
      each(k, load(head[k]), cosine, sine);
    }
  } else {
    for (int64_t k = 0; k < bins; ++k) {
      W cosine, sine;
      cos_sin_of_any(load(phase[k]), &cosine, &sine);
      each(k, load(head[k]), cosine, sine);
    }
  }
}

constexpr int kGroup = 4;  // vectors of channels whose sums stay in registers while the taps pass

// Taps: the number of taps where it is known at compile time, else 0.
template <int Taps, class T, class O>
void depthwise_of(const T* const* rows, const wide_t<T>* weight, const wide_t<T>* bias, int64_t count, int64_t taps,
                  int64_t channels, O* out) {
  using W = wide_t<T>;
  constexpr int lanes = kLanes<T>;
  if (Taps) taps = Taps;
  int64_t from = 0;
  for (; from + kGroup * lanes <= channels; from += kGroup * lanes)
    for (int64_t i = 0; i < count; ++i) {
      Vector<W> sum[kGroup];
      for (int g = 0; g < kGroup; ++g) sum[g] = load_vector(bias + from + g * lanes);
      for (int64_t j = 0; j < taps; ++j) {
        const W* times = weight + j * channels + from;
        for (int g = 0; g < kGroup; ++g)
          sum[g] += load_vector(times + g * lanes) * load_vector(rows[i + j] + from + g * lanes);
      }
      for (int g = 0; g < kGroup; ++g) store_vector(out + i * channels + from + g * lanes, sum[g]);
    }
  for (; from < channels; ++from)
    for (int64_t i = 0; i < count; ++i) {
      W sum = bias[from];
      for (int64_t j = 0; j < taps; ++j) sum += weight[j * channels + from] * load(rows[i + j][from]);
      store(out + i * channels + from, sum);
    }
}

template <class T, class O>
void depthwise_by_taps(const T* const* rows, const wide_t<T>* weight, const wide_t<T>* bias, int64_t count,
                       int64_t taps, int64_t channels, O* out) {
  if (taps == 7)
    depthwise_of<7>(rows, weight, bias, count, taps, channels, out);
  else
    depthwise_of<0>(rows, weight, bias, count, taps, channels, out);
}

template <class W>
struct Statistics {
  W mean, rstd;
};

template <class W>
inline Statistics<W> statistics(const W* h, int64_t channels, W eps) {
  W sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < channels; ++c) sum += h[c];
  const W mean = sum / static_cast<W>(channels);
#pragma omp simd reduction(+ : squares)
  for (int64_t c = 0; c < channels; ++c) squares += (h[c] - mean) * (h[c] - mean);
  return {mean, W(1) / std::sqrt(squares / static_cast<W>(channels) + eps)};
}

}  // namespace

template <class T>
void polar(const T* head, int64_t stride, int64_t rows, int64_t bins, wide_t<T>* spectrum) {
  using W = wide_t<T>;
  for (int64_t i = 0; i < rows; ++i) {
    W* to = spectrum + 2 * i * bins;
    for_bins(head + i * stride, bins, [to](int64_t k, W log_magnitude, W cosine, W sine) {
      const W size = magnitude_of(log_magnitude);
      to[2 * k] = size * cosine;
      to[2 * k + 1] = size * sine;
    });
  }
}

// The frames are (Re S_0 + (-1)^j Re S_last + 2 sum of (Re S_k cos - Im S_k sin)(2 pi j k / n)) / n: the gradient by
// S_k is 2 / n (1 / n at both ends) times the transform of theirs, real to real, imaginary to imaginary.
template <class T>
void polar_backward(const T* head, int64_t stride, int64_t rows, int64_t bins, const wide_t<T>* transformed, T* grad) {
  using W = wide_t<T>;
  const W inner = W(1) / static_cast<W>(bins - 1), most = static_cast<W>(kLogMaxMagnitude);
  for (int64_t i = 0; i < rows; ++i) {
    const W* by = transformed + 2 * i * bins;
    T* to = grad + 2 * i * bins;
    for_bins(head + i * stride, bins, [=](int64_t k, W log_magnitude, W cosine, W sine) {
      const W ends = k == 0 || k == bins - 1 ? W(0.5) : W(1);
      const W size = magnitude_of(log_magnitude) * inner * ends;
      const W real = by[2 * k], imaginary = by[2 * k + 1];
      const W along = size * (cosine * real + sine * imaginary);
      store(to + k, log_magnitude > most ? W(0) : along);
      store(to + bins + k, size * (cosine * imaginary - sine * real));
    });
  }
}

template <class W>
void inverse_envelope(const W* window, int64_t hop, int64_t first, int64_t last, W least, W* inverse) {
  for (int64_t i = 0; i < hop; ++i) inverse[i] = 0;
  for (int64_t q = first; q < last; ++q)
#pragma omp simd
    for (int64_t i = 0; i < hop; ++i) inverse[i] += window[q * hop + i] * window[q * hop + i];
#pragma omp simd
  for (int64_t i = 0; i < hop; ++i) inverse[i] = inverse[i] > least ? W(1) / inverse[i] : W(0);
}

template <class W>
void overlap(const W* frames, int64_t size, const W* window, int64_t hop, int64_t first, int64_t last, const W* inverse,
             int64_t count, W* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = 0;
  for (int64_t f = last - 1; f >= first; --f) {
    const W *frame = frames - f * size + f * hop, *times = window + f * hop;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] += frame[i] * times[i];
  }
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] *= inverse[i];
}

template <class W>
void product_of_three(const W* x, const W* a, const W* b, int64_t count, W* out) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = x[i] * a[i] * b[i];
}

template <class T>
void depthwise(const T* const* rows, const wide_t<T>* weight, const wide_t<T>* bias, int64_t count, int64_t taps,
               int64_t channels, wide_t<T>* out) {
  depthwise_by_taps(rows, weight, bias, count, taps, channels, out);
}

template <class T>
void depthwise_backward(const wide_t<T>* const* rows, const wide_t<T>* weight, const wide_t<T>* bias, int64_t count,
                        int64_t taps, int64_t channels, T* out) {
  depthwise_by_taps<wide_t<T>>(rows, weight, bias, count, taps, channels, out);
}

template <class T>
void normalize(const wide_t<T>* h, const wide_t<T>* gain, const wide_t<T>* shift, wide_t<T> eps, int64_t count,
               int64_t channels, T* out) {
  using W = wide_t<T>;
  for (int64_t i = 0; i < count; ++i) {
    const W* row = h + i * channels;
    const Statistics<W> s = statistics(row, channels, eps);
    T* to = out + i * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) store(to + c, (row[c] - s.mean) * s.rstd * gain[c] + shift[c]);
  }
}

// With a = (h - mean) rstd and g = grad gain: rstd (g - mean of g - a (mean of g a)).
template <class T>
void normalize_backward(wide_t<T>* h, const T* grad, int64_t stride, const wide_t<T>* gain, wide_t<T> eps,
                        int64_t count, int64_t channels, int64_t first, int64_t last, wide_t<T>* gain_sums,
                        wide_t<T>* shift_sums) {
  using W = wide_t<T>;
  for (int64_t i = 0; i < count; ++i) {
    W* row = h + i * channels;
    const T* by = grad + i * stride;
    const Statistics<W> s = statistics(row, channels, eps);
    W sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
    for (int64_t c = 0; c < channels; ++c) {
      const W g = load(by[c]) * gain[c];
      sum += g;
      along += g * (row[c] - s.mean) * s.rstd;
    }
    sum /= static_cast<W>(channels);
    along /= static_cast<W>(channels);
    if (gain_sums && i >= first && i < last) {
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const W g = load(by[c]);
        gain_sums[c] += g * (row[c] - s.mean) * s.rstd;
        shift_sums[c] += g;
      }
    }
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const W g = load(by[c]) * gain[c], a = (row[c] - s.mean) * s.rstd;
      row[c] = s.rstd * (g - sum - a * along);
    }
  }
}

template <class T>
void depthwise_outer(const T* const* rows, const wide_t<T>* grad, int64_t count, int64_t taps, int64_t channels,
                     wide_t<T>* weight_sums, wide_t<T>* bias_sums) {
  using W = wide_t<T>;
  constexpr int lanes = kLanes<T>;
  for (int64_t j = 0; j < taps; ++j) {
    W* sums = weight_sums + j * channels;
    int64_t from = 0;
    for (; from + kGroup * lanes <= channels; from += kGroup * lanes) {
      Vector<W> sum[kGroup];
      for (int g = 0; g < kGroup; ++g) sum[g] = load_vector(sums + from + g * lanes);
      for (int64_t i = 0; i < count; ++i)
        for (int g = 0; g < kGroup; ++g) {
          const int64_t c = from + g * lanes;
          sum[g] += load_vector(grad + i * channels + c) * load_vector(rows[i + j] + c);
        }
      for (int g = 0; g < kGroup; ++g) store_vector(sums + from + g * lanes, sum[g]);
    }
    for (; from < channels; ++from)
      for (int64_t i = 0; i < count; ++i) sums[from] += grad[i * channels + from] * load(rows[i + j][from]);
  }
  for (int64_t i = 0; i < count; ++i)
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) bias_sums[c] += grad[i * channels + c];
}

#define LOSATOK_INSTANTIATE(T)                                                                                       \
  template void polar<T>(const T*, int64_t, int64_t, int64_t, wide_t<T>*);                                           \
  template void polar_backward<T>(const T*, int64_t, int64_t, int64_t, const wide_t<T>*, T*);                        \
  template void depthwise<T>(const T* const*, const wide_t<T>*, const wide_t<T>*, int64_t, int64_t, int64_t,         \
                             wide_t<T>*);                                                                            \
  template void depthwise_backward<T>(const wide_t<T>* const*, const wide_t<T>*, const wide_t<T>*, int64_t, int64_t, \
                                      int64_t, T*);                                                                  \
  template void normalize<T>(const wide_t<T>*, const wide_t<T>*, const wide_t<T>*, wide_t<T>, int64_t, int64_t, T*); \
  template void normalize_backward<T>(wide_t<T>*, const T*, int64_t, const wide_t<T>*, wide_t<T>, int64_t, int64_t,  \
                                      int64_t, int64_t, wide_t<T>*, wide_t<T>*);                                     \
  template void depthwise_outer<T>(const T* const*, const wide_t<T>*, int64_t, int64_t, int64_t, wide_t<T>*,         \
                                   wide_t<T>*);
LOSATOK_INSTANTIATE(float)
LOSATOK_INSTANTIATE(double)
LOSATOK_INSTANTIATE(Bf16)

#define LOSATOK_INSTANTIATE_WIDE(W)                                                                        \
  template void inverse_envelope<W>(const W*, int64_t, int64_t, int64_t, W, W*);                           \
  template void overlap<W>(const W*, int64_t, const W*, int64_t, int64_t, int64_t, const W*, int64_t, W*); \
  template void product_of_three<W>(const W*, const W*, const W*, int64_t, W*);
LOSATOK_INSTANTIATE_WIDE(float)
LOSATOK_INSTANTIATE_WIDE(double)

}  // namespace losatok::LOSATOK_ISA
