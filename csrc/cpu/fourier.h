// Fourier transforms of real rows for the ops on the CPU: tables of one size, shared by threads.
//
// The libraries that torch calls split a transform by the number of threads, and their results depend on it. Here each
// row is transformed alone: the same bits on any number of threads.
#pragma once

#include <cmath>
#include <vector>

#include "cpu/block_products.h"
#include "cpu/isa.h"
#include "cpu/simd/fourier.h"

namespace losatok {

template <class W>
class RealFourier {
 public:
  // size: samples of a row, even.
  explicit RealFourier(int64_t size) : half_(size / 2), turns_(2 * size) {
    int64_t rest = half_;
    for (const int64_t factor : {5, 3, 4, 2})
      for (; rest % factor == 0; rest /= factor) factors_.push_back(factor);
    for (int64_t factor = 7; rest > 1; factor += 2) {
      if (factor * factor > rest) factor = rest;
      for (; rest % factor == 0; rest /= factor) factors_.push_back(factor);
    }
    for (int64_t k = 0; 4 * k <= size; ++k) {
      const double angle = 2 * M_PI * static_cast<double>(k) / static_cast<double>(size);
      const W cosine = 4 * k == size ? W(0) : static_cast<W>(std::cos(angle)), sine = static_cast<W>(std::sin(angle));
      set(k, cosine, sine);
      set(half_ - k, -cosine, sine);
      set(half_ + k, -cosine, -sine);
      if (k > 0) set(size - k, cosine, -sine);
    }
  }

  // Memory for the transforms of one thread.
  Buffer<W> work() const { return Buffer<W>((half_ + 1) * (kFourierWork / static_cast<int64_t>(sizeof(W)))); }

  FourierTables<W> tables(W* work) const {
    return {half_, factors_.data(), static_cast<int64_t>(factors_.size()), turns_.data(), work};
  }

 private:
  void set(int64_t k, W cosine, W sine) {
    turns_[2 * k] = cosine;
    turns_[2 * k + 1] = sine;
  }

  int64_t half_;
  std::vector<int64_t> factors_;
  std::vector<W> turns_;
};

}  // namespace losatok
