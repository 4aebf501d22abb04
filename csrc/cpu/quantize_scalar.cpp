// Finite scalar quantization and affine integers on the CPU: blocks of rows that stay in the cache, tanh through ATen.
#include "cpu/simd/quantize_scalar.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "checks/quantize_scalar.h"
#include "cpu/checks.h"
#include "cpu/isa.h"
#include "cpu/plain_tensors.h"

namespace losatok {
namespace {

using at::Tensor;

using check::wide_type;

#define LOSATOK_DISPATCH(TYPE, NAME, ...)                                               \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, TYPE, NAME, [&] {           \
    using wide_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>; \
    __VA_ARGS__();                                                                      \
  })

constexpr double kMargin = 1e-3;
constexpr int64_t kBlockValues = 4096;

// The constants of each feature, repeated for as many rows as make a block.
template <class T>
struct Levels {
  int64_t features, rows;
  std::vector<T> shift, half_range, offset, half_width, lowest, highest, slope, weights;
  bool numbers_exactly;  // every index is exact in T

  explicit Levels(at::IntArrayRef levels)
      : features(levels.size()), rows(std::max<int64_t>(1, kBlockValues / std::max<int64_t>(features, 1))) {
    int64_t weight = 1;
    for (const int64_t count : levels) {
      weights.push_back(static_cast<T>(weight));
      weight *= count;
    }
    numbers_exactly = weight <= int64_t(1) << std::numeric_limits<T>::digits;
    for (int64_t row = 0; row < rows; ++row)
      for (const int64_t count : levels) {
        const double range = (count - 1) * (1 + kMargin) / 2, half = count % 2 ? 0.0 : 0.5;
        shift.push_back(static_cast<T>(std::atanh(half / range)));
        half_range.push_back(static_cast<T>(range));
        offset.push_back(static_cast<T>(half));
        half_width.push_back(static_cast<T>(count / 2));
        lowest.push_back(-static_cast<T>(count / 2));
        highest.push_back(static_cast<T>(count - 1 - count / 2));
        slope.push_back(static_cast<T>(range / (count / 2)));
      }
  }
  LevelTable<T> table() const {
    return {half_range.data(), offset.data(), half_width.data(), lowest.data(), highest.data()};
  }
};

// from as T: itself, or through the buffer.
template <class T, class X>
const T* widened(const X* from, int64_t count, T* buffer) {
  if constexpr (std::is_same_v<T, X>) {
    return from;
  } else {
    std::transform(from, from + count, buffer, [](X v) { return static_cast<T>(v); });
    return buffer;
  }
}

// Where to compute what belongs in `to`: in `to` itself, or in the buffer, which finish() converts.
template <class T, class X>
T* target(X* to, T* buffer) {
  if constexpr (std::is_same_v<T, X>) {
    return to;
  } else {
    return buffer;
  }
}

template <class T, class X>
void finish(const T* from, int64_t count, X* to) {
  if constexpr (!std::is_same_v<T, X>) std::transform(from, from + count, to, [](T v) { return static_cast<X>(v); });
}

// Calls visit(rows) for the rows of a block, counted from it, that lie past the length of their clip.
template <class Visit>
void for_padding(const int64_t* lengths, int64_t time, int64_t first, int64_t rows, const Visit& visit) {
  if (!lengths) return;
  int64_t clip = first / time, position = first % time;
  for (int64_t i = 0; i < rows; ++i) {
    if (position >= lengths[clip]) visit(i);
    if (++position == time) {
      position = 0;
      ++clip;
    }
  }
}

// Buffers of one thread.
template <class T>
struct LevelScratch {
  Tensor squeezed;
  std::vector<T> values, digits, wide;

  LevelScratch(int64_t count, const at::TensorOptions& options)
      : squeezed(at::empty({count}, options)), values(count), digits(count), wide(count) {}
};

// Calls visit(scratch, first, rows) for blocks of frames, with tanh(x + shift) in scratch; frames past a length hold
// what they hold.
template <class X, class T, class Visit>
void for_squeezed_blocks(const Tensor& x, const Levels<T>& levels, const Visit& visit) {
  const int64_t total = x.size(0) * x.size(1), d = levels.features;
  const Tensor source = x.contiguous();
  const X* data = source.const_data_ptr<X>();
  at::parallel_for(0, (total + levels.rows - 1) / levels.rows, 1, [&](int64_t begin, int64_t end) {
    const PlainTensors guard;
    LevelScratch<T> scratch(levels.rows * d, x.options().dtype(wide_type(x.scalar_type())));
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * levels.rows, rows = std::min(levels.rows, total - first), count = rows * d;
      T* squeezed = scratch.squeezed.template mutable_data_ptr<T>();
      const T* from = widened(data + first * d, count, scratch.wide.data());
      LOSATOK_SIMD(shift_values<T>)(from, count, levels.shift.data(), squeezed);
      scratch.squeezed.narrow(0, 0, count).tanh_();
      visit(scratch, squeezed, first, rows);
    }
  });
}

std::tuple<Tensor, Tensor> fsq_quantize_forward(const Tensor& x, at::IntArrayRef counts,
                                                const std::optional<Tensor>& lengths) {
  check::fsq_quantize_forward(x, counts, lengths);
  Tensor quantized = at::empty(x.sizes(), x.options());
  Tensor indices = at::empty({x.size(0), x.size(1)}, x.options().dtype(at::kLong));
  const Tensor ends = lengths ? lengths->contiguous() : Tensor();
  const int64_t* length = lengths ? ends.const_data_ptr<int64_t>() : nullptr;
  LOSATOK_DISPATCH(x.scalar_type(), "fsq_quantize_forward", [&] {
    const Levels<wide_t> levels(counts);
    const LevelTable<wide_t> table = levels.table();
    const int64_t d = levels.features;
    scalar_t* values_out = quantized.mutable_data_ptr<scalar_t>();
    int64_t* indices_out = indices.mutable_data_ptr<int64_t>();
    for_squeezed_blocks<scalar_t>(
        x, levels, [&](LevelScratch<wide_t>& scratch, const wide_t* squeezed, int64_t first, int64_t rows) {
          const wide_t* digits = scratch.digits.data();
          scalar_t* values = values_out + first * d;
          int64_t* index = indices_out + first;
          wide_t* wide = target(values, scratch.values.data());
          LOSATOK_SIMD(round_levels<wide_t>)(squeezed, rows * d, table, wide, scratch.digits.data());
          finish(wide, rows * d, values);
          if (levels.numbers_exactly) {
            LOSATOK_SIMD(number_rows<wide_t>)(digits, rows, d, levels.weights.data(), index);
          } else {
            for (int64_t i = 0; i < rows; ++i) {
              index[i] = 0;
              for (int64_t j = d - 1; j >= 0; --j)
                index[i] = index[i] * counts[j] + static_cast<int64_t>(digits[i * d + j]);
            }
          }
          for_padding(length, x.size(1), first, rows, [&](int64_t i) {
            std::fill_n(values + i * d, d, scalar_t(0));
            index[i] = -1;
          });
        });
  });
  return {quantized, indices};
}

Tensor fsq_quantize_backward(const Tensor& grad, const Tensor& x, at::IntArrayRef counts,
                             const std::optional<Tensor>& lengths) {
  check::fsq_quantize_backward(grad, x, counts, lengths);
  Tensor grad_x = at::empty(x.sizes(), x.options());
  const Tensor grads = grad.to(wide_type(x.scalar_type())).contiguous();
  const Tensor ends = lengths ? lengths->contiguous() : Tensor();
  const int64_t* length = lengths ? ends.const_data_ptr<int64_t>() : nullptr;
  LOSATOK_DISPATCH(x.scalar_type(), "fsq_quantize_backward", [&] {
    const Levels<wide_t> levels(counts);
    const int64_t d = levels.features;
    const wide_t* g = grads.const_data_ptr<wide_t>();
    scalar_t* out = grad_x.mutable_data_ptr<scalar_t>();
    for_squeezed_blocks<scalar_t>(
        x, levels, [&](LevelScratch<wide_t>& scratch, const wide_t* squeezed, int64_t first, int64_t rows) {
          wide_t* wide = target(out + first * d, scratch.values.data());
          LOSATOK_SIMD(level_gradient<wide_t>)(squeezed, g + first * d, rows * d, levels.slope.data(), wide);
          finish(wide, rows * d, out + first * d);
          for_padding(length, x.size(1), first, rows,
                      [&](int64_t i) { std::fill_n(out + (first + i) * d, d, scalar_t(0)); });
        });
  });
  return grad_x;
}

Tensor fsq_dequantize_forward(const Tensor& indices, at::IntArrayRef counts, at::ScalarType dtype) {
  check::codes("indices", indices, check::fsq_dequantize_forward(indices, counts, dtype));
  const int64_t rows = indices.size(0), d = counts.size();
  Tensor values = at::empty({rows, d}, indices.options().dtype(dtype));
  const Tensor source = indices.contiguous();
  LOSATOK_DISPATCH(dtype, "fsq_dequantize_forward", [&] {
    const int64_t* index = source.const_data_ptr<int64_t>();
    scalar_t* out = values.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t rest = index[i];
        for (int64_t j = 0; j < d; ++j) {
          const int64_t half = counts[j] / 2, digit = rest < 0 ? half : rest % counts[j];
          if (rest > 0) rest /= counts[j];
          out[i * d + j] = static_cast<scalar_t>(static_cast<wide_t>(digit - half) / static_cast<wide_t>(half));
        }
      }
    });
  });
  return values;
}

std::tuple<Tensor, Tensor, Tensor> affine_quantize_forward(const Tensor& x, int64_t bits) {
  check::affine_quantize_forward(x, bits);
  const int64_t rows = x.size(0), size = x.size(1), bytes = bits == 8 ? size : (size + 1) / 2;
  const auto options = x.options().dtype(wide_type(x.scalar_type()));
  Tensor packed = at::empty({rows, bytes}, x.options().dtype(at::kByte));
  Tensor scale = at::empty({rows}, options), offset = at::empty({rows}, options);
  const Tensor source = x.contiguous();
  std::atomic<bool> finite{true};
  LOSATOK_DISPATCH(x.scalar_type(), "affine_quantize_forward", [&] {
    const scalar_t* data = source.const_data_ptr<scalar_t>();
    uint8_t* out = packed.mutable_data_ptr<uint8_t>();
    wide_t *scales = scale.mutable_data_ptr<wide_t>(), *offsets = offset.mutable_data_ptr<wide_t>();
    at::parallel_for(
        0, rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(size, 1)), [&](int64_t begin, int64_t end) {
          std::vector<wide_t> row(size);
          std::vector<uint8_t> q(size);
          for (int64_t i = begin; i < end; ++i) {
            std::transform(data + i * size, data + (i + 1) * size, row.begin(),
                           [](scalar_t v) { return static_cast<wide_t>(v); });
            uint8_t* to = bits == 8 ? out + i * bytes : q.data();
            if (!LOSATOK_SIMD(affine_row<wide_t>)(row.data(), size, (1 << bits) - 1, to, scales + i, offsets + i))
              finite = false;
            if (bits == 4) LOSATOK_SIMD(pack_nibbles)(q.data(), size, out + i * bytes);
          }
        });
  });
  TORCH_CHECK_VALUE(finite, "x should hold finite values whose range is finite; clean it with torch.nan_to_num first");
  return {packed, scale, offset};
}

Tensor affine_dequantize_forward(const Tensor& packed, const Tensor& scale, const Tensor& offset, int64_t bits,
                                 int64_t size, at::ScalarType dtype) {
  check::affine_dequantize_forward(packed, scale, offset, bits, size, dtype);
  const int64_t rows = packed.size(0), bytes = packed.size(1);
  Tensor values = at::empty({rows, size}, packed.options().dtype(dtype));
  // In float unless scale or result are double.
  const auto wide = scale.scalar_type() == at::kDouble || dtype == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor source = packed.contiguous();
  const Tensor scales = scale.to(wide).contiguous(), offsets = offset.to(wide).contiguous();
  AT_DISPATCH_FLOATING_TYPES(wide, "affine_dequantize_forward", [&] {
    using wide_t = scalar_t;
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "affine_dequantize_forward", [&] {
      const uint8_t* data = source.const_data_ptr<uint8_t>();
      const wide_t *step = scales.const_data_ptr<wide_t>(), *least = offsets.const_data_ptr<wide_t>();
      scalar_t* out = values.mutable_data_ptr<scalar_t>();
      at::parallel_for(
          0, rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(size, 1)), [&](int64_t begin, int64_t end) {
            std::vector<wide_t> row(size);
            std::vector<uint8_t> q(size);
            for (int64_t i = begin; i < end; ++i) {
              const uint8_t* from = data + i * bytes;
              if (bits == 4) LOSATOK_SIMD(unpack_nibbles)(from, size, q.data());
              LOSATOK_SIMD(affine_values<wide_t>)(bits == 4 ? q.data() : from, size, step[i], least[i], row.data());
              std::transform(row.begin(), row.end(), out + i * size, [](wide_t v) { return static_cast<scalar_t>(v); });
            }
          });
    });
  });
  return values;
}

}  // namespace

TORCH_LIBRARY_IMPL(losatok, CPU, m) {
  m.impl("fsq_quantize_forward", &fsq_quantize_forward);
  m.impl("fsq_quantize_backward", &fsq_quantize_backward);
  m.impl("fsq_dequantize_forward", &fsq_dequantize_forward);
  m.impl("affine_quantize_forward", &affine_quantize_forward);
  m.impl("affine_dequantize_forward", &affine_dequantize_forward);
}

}  // namespace losatok
