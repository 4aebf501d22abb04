#include "cpu/simd/modulation.h"

#include <cmath>

namespace losatok::LOSATOK_ISA {
namespace {

template <class T>
inline T* row(const Rows<T>& rows, int64_t i) {
  return rows.data ? rows.data + i * rows.stride : nullptr;
}

// Where row i of a gradient goes: one of the two is null.
template <class T>
struct Target {
  T* own;
  wide_t<T>* sums;

  Target(const ParameterGrad<T>& grad, int64_t i) : own(row(grad.rows, i)), sums(own ? nullptr : grad.sums) {}

  template <bool kOwn>
  inline void add(int64_t j, wide_t<T> value) const {
    if constexpr (kOwn)
      store(own + j, value);
    else
      sums[j] += value;
  }
};

// Calls loop<whether>(): a choice at compile time, so that loops become vector code.
template <class Loop>
inline void by_choice(bool choice, const Loop& loop) {
  choice ? loop.template operator()<true>() : loop.template operator()<false>();
}

}  // namespace

template <class T>
void layer_norm_modulate(Rows<const T> x, int64_t rows, int64_t columns, Rows<const T> shift, Rows<const T> scale,
                         wide_t<T> eps, Rows<T> y, wide_t<T>* mean, wide_t<T>* rstd) {
  using W = wide_t<T>;
  for (int64_t i = 0; i < rows; ++i) {
    const T *from = row(x, i), *add = row(shift, i), *times = row(scale, i);
    T* to = row(y, i);
    W sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < columns; ++j) sum += load(from[j]);
    const W m = sum / static_cast<W>(columns);
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < columns; ++j) {
      const W difference = load(from[j]) - m;
      squares += difference * difference;
    }
    const W inverse = W(1) / std::sqrt(squares / static_cast<W>(columns) + eps);
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j)
      store(to + j, (load(from[j]) - m) * inverse * (W(1) + load(times[j])) + load(add[j]));
    mean[i] = m;
    rstd[i] = inverse;
  }
}

template <class T>
void layer_norm_modulate_backward(Rows<const T> grad, Rows<const T> x, int64_t rows, int64_t columns,
                                  Rows<const T> scale, const wide_t<T>* mean, const wide_t<T>* rstd, Rows<T> grad_x,
                                  ParameterGrad<T> grad_shift, ParameterGrad<T> grad_scale) {
  using W = wide_t<T>;
  for (int64_t i = 0; i < rows; ++i) {
    const T *from = row(x, i), *g = row(grad, i), *times = row(scale, i);
    T* to = row(grad_x, i);
    const Target<T> shift_to(grad_shift, i), scale_to(grad_scale, i);
    const W m = mean[i], inverse = rstd[i];
    // The mean gradient of the normalised row, and its part along that row: neither moves it.
    W total = 0, along = 0;
    by_choice(shift_to.own != nullptr, [&]<bool kOwnShift>() {
      by_choice(scale_to.own != nullptr, [&]<bool kOwnScale>() {
        W t = 0, a = 0;
#pragma omp simd reduction(+ : t, a)
        for (int64_t j = 0; j < columns; ++j) {
          const W gradient = load(g[j]), normal = (load(from[j]) - m) * inverse;
          const W inner = gradient * (W(1) + load(times[j]));
          t += inner;
          a += inner * normal;
          shift_to.template add<kOwnShift>(j, gradient);
          scale_to.template add<kOwnScale>(j, gradient * normal);
        }
        total = t;
        along = a;
      });
    });
    total /= static_cast<W>(columns);
    along /= static_cast<W>(columns);
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) {
      const W normal = (load(from[j]) - m) * inverse;
      store(to + j, inverse * (load(g[j]) * (W(1) + load(times[j])) - total - normal * along));
    }
  }
}

template <class T>
void gated_residual(Rows<const T> x, Rows<const T> branch, Rows<const T> gate, int64_t rows, int64_t columns,
                    Rows<T> y) {
  for (int64_t i = 0; i < rows; ++i) {
    const T *from = row(x, i), *side = row(branch, i), *times = row(gate, i);
    T* to = row(y, i);
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) store(to + j, load(from[j]) + load(times[j]) * load(side[j]));
  }
}

template <class T>
void gated_residual_backward(Rows<const T> grad, Rows<const T> branch, Rows<const T> gate, int64_t rows,
                             int64_t columns, Rows<T> grad_branch, ParameterGrad<T> grad_gate) {
  for (int64_t i = 0; i < rows; ++i) {
    const T *g = row(grad, i), *side = row(branch, i), *times = row(gate, i);
    T* to = row(grad_branch, i);
    const Target<T> gate_to(grad_gate, i);
    by_choice(gate_to.own != nullptr, [&]<bool kOwn>() {
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) {
        store(to + j, load(times[j]) * load(g[j]));
        gate_to.template add<kOwn>(j, load(g[j]) * load(side[j]));
      }
    });
  }
}

#define LOSATOK_INSTANTIATE(T)                                                                                     \
  template void layer_norm_modulate<T>(Rows<const T>, int64_t, int64_t, Rows<const T>, Rows<const T>, wide_t<T>,   \
                                       Rows<T>, wide_t<T>*, wide_t<T>*);                                           \
  template void layer_norm_modulate_backward<T>(Rows<const T>, Rows<const T>, int64_t, int64_t, Rows<const T>,     \
                                                const wide_t<T>*, const wide_t<T>*, Rows<T>, ParameterGrad<T>,     \
                                                ParameterGrad<T>);                                                 \
  template void gated_residual<T>(Rows<const T>, Rows<const T>, Rows<const T>, int64_t, int64_t, Rows<T>);         \
  template void gated_residual_backward<T>(Rows<const T>, Rows<const T>, Rows<const T>, int64_t, int64_t, Rows<T>, \
                                           ParameterGrad<T>);
LOSATOK_INSTANTIATE(float)
LOSATOK_INSTANTIATE(double)
LOSATOK_INSTANTIATE(Bf16)
#undef LOSATOK_INSTANTIATE

}  // namespace losatok::LOSATOK_ISA
