// Nearest codes and residual vector quantization on the CPU.
//
// Per block of rows and tile of codes, a matrix product (oneDNN, in bfloat16 where the processor multiplies it) gives
// scores |c|^2 / 2 - x.c, each within a known bound of the truth; a scan keeps the least ones; those that could be the
// least are decided by differences in float32. Which product was taken, on how many threads, with how many rows,
// therefore never shows in a result. Rows and codes are centred by a mean of codes first, which tightens the bound.
// float64 goes by differences alone.
#include "cpu/simd/quantize.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "checks/quantize.h"
#include "cpu/block_products.h"
#include "cpu/checks.h"
#include "cpu/isa.h"

namespace losatok {
namespace {

constexpr int64_t kRows = 64;  // of a block
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// How rows of some size are searched in codebooks of some size.
struct Plan {
  int64_t count, features;  // codes, and their size
  bool filter;              // by products; else all by differences
  bool bfloat16, exact;
  int64_t depth, padded, tile;  // features and codes as the product sees them, and codes to a tile

  Plan(int64_t rows, int64_t count, int64_t features, bool exact)
      : count(count),
        features(features),
        filter(rows >= 16 && count >= 8),
        bfloat16(multiplies_bfloat16()),
        exact(exact) {
    depth = bfloat16 ? round_up(features, 2) : features;
    padded = round_up(count, kScanLanes);
    tile = features <= 256 ? 256 : features <= 512 ? 128 : 64;
  }
};

// One codebook, made ready for the search.
struct Stage {
  at::Tensor codes;  // float32 or float64, contiguous
  std::vector<float> centre, half_norms, norms, packed;
  std::vector<Bf16> packed_pairs;
  float rounding = 0;   // the most that bfloat16 takes off a code, over its norm
  bool filter = false;  // false too where a code's norm overflows

  CodeTable table() const {
    return {codes.const_data_ptr<float>(), half_norms.data(), norms.data(), codes.size(0), codes.size(1)};
  }
};

// The mean of some of the codes: any point near them serves as their centre.
std::vector<float> centre_of(const float* codes, const Plan& plan) {
  constexpr int64_t kSample = 256;
  const int64_t step = std::max<int64_t>(1, plan.count / kSample);
  std::vector<double> sum(plan.features, 0.0);
  int64_t finite = 0;
  for (int64_t k = 0; k < plan.count; k += step) {
    const float* code = codes + k * plan.features;
    if (!std::all_of(code, code + plan.features, [](float c) { return std::isfinite(c); })) continue;
    ++finite;
    for (int64_t j = 0; j < plan.features; ++j) sum[j] += code[j];
  }
  std::vector<float> mean(plan.features);
  for (int64_t j = 0; j < plan.features; ++j) mean[j] = static_cast<float>(sum[j] / std::max<int64_t>(finite, 1));
  return mean;
}

// Centres, measures and packs the codes [first, first + width) of a tile; false where a norm overflows.
bool prepare_tile(Stage& stage, const Plan& plan, int64_t first, std::vector<float>& tile_rounding) {
  const int64_t d = plan.features, rows = std::min(plan.tile, plan.count - first);
  const int64_t width = std::min(plan.tile, plan.padded - first);
  std::vector<float> centred(rows * d), errors(rows);
  const float* codes = stage.codes.const_data_ptr<float>() + first * d;
  float* norms = stage.norms.data() + first;
  LOSATOK_SIMD(centre_rows)(codes, rows, d, stage.centre.data(), centred.data(), norms);
  bool ready = true;
  for (int64_t k = 0; k < rows; ++k) {
    const double half = 0.5 * static_cast<double>(norms[k]) * norms[k];
    stage.half_norms[first + k] = static_cast<float>(half * (1 - 4e-6)) - 1e-37f * static_cast<float>(d);
    if (half < std::numeric_limits<float>::max()) continue;
    if (std::all_of(codes + k * d, codes + (k + 1) * d, [](float c) { return std::isfinite(c); })) ready = false;
    std::fill_n(centred.begin() + k * d, d, 0.f);
    norms[k] = 0.f;
    stage.half_norms[first + k] = kInfinity;
  }
  if (!plan.bfloat16) {
    LOSATOK_SIMD(transpose<float>)(centred.data(), rows, d, width, stage.packed.data() + first * d);
    return ready;
  }
  std::vector<Bf16> rounded(rows * plan.depth, Bf16{});
  LOSATOK_SIMD(round_rows)(centred.data(), rows, d, plan.depth, rounded.data(), errors.data());
  for (int64_t k = 0; k < rows; ++k)
    if (norms[k] > 0.f)
      tile_rounding[first / plan.tile] = std::max(tile_rounding[first / plan.tile], errors[k] / norms[k]);
  LOSATOK_SIMD(transpose_pairs)(rounded.data(), rows, plan.depth, width,
                                stage.packed_pairs.data() + first * plan.depth);
  return ready;
}

Stage prepare(const at::Tensor& codes, const Plan& plan) {
  Stage stage;
  stage.codes = codes;
  stage.filter = plan.filter && codes.scalar_type() == at::kFloat;
  if (!stage.filter) return stage;
  stage.centre = centre_of(codes.const_data_ptr<float>(), plan);
  stage.half_norms.assign(plan.padded, kInfinity);
  stage.norms.assign(plan.padded, 0.f);
  if (plan.bfloat16) {
    stage.packed_pairs.resize(plan.padded * plan.depth);
  } else {
    stage.packed.resize(plan.padded * plan.depth);
  }
  const int64_t tiles = (plan.padded + plan.tile - 1) / plan.tile;
  std::vector<float> rounding(tiles, 0.f);
  std::vector<char> ready(tiles, 0);
  at::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) ready[t] = prepare_tile(stage, plan, t * plan.tile, rounding);
  });
  stage.rounding = *std::max_element(rounding.begin(), rounding.end());
  stage.filter = std::all_of(ready.begin(), ready.end(), [](char r) { return r; });
  return stage;
}

// Buffers of one thread.
struct Scratch {
  std::vector<float> centred, products, norms, errors;
  std::vector<Bf16> rounded;
  std::vector<ScanBound> bounds;
  std::vector<ScanState> states;

  explicit Scratch(const Plan& plan)
      : centred(kRows * plan.features),
        products(kRows * plan.tile),
        norms(kRows),
        errors(kRows),
        rounded(kRows * plan.depth),
        bounds(kRows),
        states(kRows) {}
};

ScanBound bound_of(const Plan& plan, const Stage& stage, float norm, float error) {
  if (!plan.exact) return {0.f, 0.f, 0.f, 0.f};
  constexpr float kUnit = 6e-8f;  // 2^-24, rounded up
  const float d = static_cast<float>(plan.features);
  ScanBound bound;
  bound.slack = 1.01f * kUnit * (d + 8.f) * norm + 1e-37f * d;
  if (plan.bfloat16) bound.slack += 1.01f * (error + stage.rounding * norm);
  bound.floor = 4e-37f * d * (1.f + norm);  // bfloat16 products take numbers below 2^-126 for zero
  bound.energy = 0.5f * norm * norm;
  bound.relative = 2.4f * kUnit * (d + 4.f);
  return bound;
}

void search(const Plan& plan, const Stage& stage, const float* rows, int64_t count, Scratch& scratch, int64_t* indices,
            float* distances) {
  const int64_t d = plan.features;
  if (!stage.filter) {
    const float* codes = stage.codes.const_data_ptr<float>();
    for (int64_t i = 0; i < count; ++i)
      indices[i] = LOSATOK_SIMD(nearest<float>)(rows + i * d, codes, plan.count, d, distances + i);
    return;
  }
  const CodeTable table = stage.table();
  LOSATOK_SIMD(centre_rows)(rows, count, d, stage.centre.data(), scratch.centred.data(), scratch.norms.data());
  if (plan.bfloat16) LOSATOK_SIMD(round_rows)
  (scratch.centred.data(), count, d, plan.depth, scratch.rounded.data(), scratch.errors.data());
  for (int64_t i = 0; i < count; ++i) {
    scratch.bounds[i] = bound_of(plan, stage, scratch.norms[i], scratch.errors[i]);
    std::fill_n(scratch.states[i].best, kScanLanes, kInfinity);
    std::fill_n(scratch.states[i].second, kScanLanes, kInfinity);
    std::fill_n(scratch.states[i].code, kScanLanes, 0);
  }
  // The product is generated per size, so that it gets few of them; what lies past `count` is left over and not read.
  const int64_t height = std::min(kRows, round_up(count, 16));
  for (int64_t first = 0; first < plan.padded; first += plan.tile) {
    const int64_t width = std::min(plan.tile, plan.padded - first);
    if (plan.bfloat16)
      multiply_blocks(height, width, plan.depth, scratch.rounded.data(), plan.depth,
                      stage.packed_pairs.data() + first * plan.depth, scratch.products.data(), false);
    else
      multiply_blocks(height, width, d, scratch.centred.data(), d, stage.packed.data() + first * d,
                      scratch.products.data(), false);
    LOSATOK_SIMD(scan_scores)
    (scratch.products.data(), count, first, width, table, scratch.bounds.data(), scratch.states.data());
  }
  for (int64_t i = 0; i < count; ++i) {
    const float* row = rows + i * d;
    indices[i] = plan.exact
                     ? LOSATOK_SIMD(decide_by_distance)(row, table, scratch.states[i], scratch.bounds[i], distances + i)
                     : LOSATOK_SIMD(decide_by_score)(row, table, scratch.states[i], distances + i);
  }
}

void search(const Plan& plan, const Stage& stage, const double* rows, int64_t count, Scratch&, int64_t* indices,
            double* distances) {
  const double* codes = stage.codes.const_data_ptr<double>();
  for (int64_t i = 0; i < count; ++i)
    indices[i] =
        LOSATOK_SIMD(nearest<double>)(rows + i * plan.features, codes, plan.count, plan.features, distances + i);
}

// The frames of [B, T] that lie below their lengths, numbered without gaps.
class Frames {
 public:
  Frames(int64_t batch, int64_t time, const std::optional<at::Tensor>& lengths) : time_(time), ends_(batch) {
    at::Tensor values;
    if (lengths) values = lengths->contiguous();
    const int64_t* length = lengths ? values.const_data_ptr<int64_t>() : nullptr;
    for (int64_t b = 0; b < batch; ++b) {
      count_ += length ? std::clamp<int64_t>(length[b], 0, time) : time;
      ends_[b] = count_;
    }
  }
  int64_t count() const { return count_; }

  // The clip and the position in it of frame n.
  std::pair<int64_t, int64_t> operator[](int64_t n) const {
    const auto clip = std::upper_bound(ends_.begin(), ends_.end(), n) - ends_.begin();
    return {clip, n - (clip ? ends_[clip - 1] : 0)};
  }
  int64_t row(int64_t n) const {
    const auto [clip, position] = (*this)[n];
    return clip * time_ + position;
  }

 private:
  int64_t time_, count_ = 0;
  std::vector<int64_t> ends_;
};

at::ScalarType wide_type(const at::Tensor& x) { return check::wide_type(x.scalar_type()); }

// Calls visit(rows, count, first) for blocks of frames, in parallel: frames first.. as packed rows of T.
template <class T, class X, class Visit>
void for_blocks(const at::Tensor& x, const Frames& frames, const Plan& plan, const Visit& visit) {
  const at::Tensor source = x.stride(2) == 1 || x.size(2) <= 1 ? x : x.contiguous();
  const X* data = source.const_data_ptr<X>();
  const int64_t d = plan.features, clip_stride = source.stride(0), frame_stride = source.stride(1);
  const int64_t blocks = (frames.count() + kRows - 1) / kRows;
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> rows(kRows * d);
    Scratch scratch(plan);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kRows, count = std::min(kRows, frames.count() - first);
      for (int64_t i = 0; i < count; ++i) {
        const auto [clip, position] = frames[first + i];
        const X* from = data + clip * clip_stride + position * frame_stride;
        std::transform(from, from + d, rows.begin() + i * d, [](X v) { return static_cast<T>(v); });
      }
      visit(rows.data(), count, first, scratch);
    }
    if (plan.filter) at::native::cpublas::brgemm_release(plan.bfloat16);
  });
}

#define LOSATOK_DISPATCH(TYPE, NAME, ...)                                                                      \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, TYPE, NAME, [&] {                                  \
    using accumulate_t [[maybe_unused]] = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>; \
    __VA_ARGS__();                                                                                             \
  })

std::tuple<at::Tensor, at::Tensor> vq_nearest_forward(const at::Tensor& x, const at::Tensor& codebook,
                                                      const std::optional<at::Tensor>& lengths,
                                                      c10::string_view precision) {
  check::vq_nearest_forward(x, codebook, lengths, precision);
  const Frames frames(x.size(0), x.size(1), lengths);
  auto indices = at::full({x.size(0), x.size(1)}, -1, x.options().dtype(at::kLong));
  auto distance = at::zeros({x.size(0), x.size(1)}, x.options().dtype(wide_type(x)));
  const Plan plan(frames.count(), codebook.size(0), codebook.size(1), precision == "exact");
  const Stage stage = prepare(codebook.to(wide_type(x)).contiguous(), plan);
  LOSATOK_DISPATCH(x.scalar_type(), "vq_nearest_forward", [&] {
    int64_t* index_out = indices.mutable_data_ptr<int64_t>();
    accumulate_t* distance_out = distance.mutable_data_ptr<accumulate_t>();
    for_blocks<accumulate_t, scalar_t>(x, frames, plan,
                                       [&](const accumulate_t* rows, int64_t count, int64_t first, Scratch& scratch) {
                                         int64_t found[kRows];
                                         accumulate_t squares[kRows];
                                         search(plan, stage, rows, count, scratch, found, squares);
                                         for (int64_t i = 0; i < count; ++i) {
                                           const int64_t row = frames.row(first + i);
                                           index_out[row] = found[i];
                                           distance_out[row] = squares[i];
                                         }
                                       });
  });
  return {indices, distance};
}

std::tuple<at::Tensor, at::Tensor> rvq_encode_forward(const at::Tensor& x, const at::Tensor& codebooks,
                                                      const std::optional<at::Tensor>& lengths,
                                                      c10::string_view precision) {
  check::rvq_encode_forward(x, codebooks, lengths, precision);
  const int64_t stages = codebooks.size(0), d = codebooks.size(2);
  const Frames frames(x.size(0), x.size(1), lengths);
  auto codes = at::full({x.size(0), x.size(1), stages}, -1, x.options().dtype(at::kLong));
  auto quantized = at::zeros(x.sizes(), x.options());
  const Plan plan(frames.count(), codebooks.size(1), d, precision == "exact");
  const at::Tensor all = codebooks.to(wide_type(x)).contiguous();
  std::vector<Stage> ready;
  for (int64_t q = 0; q < stages; ++q) ready.push_back(prepare(all[q], plan));
  LOSATOK_DISPATCH(x.scalar_type(), "rvq_encode_forward", [&] {
    int64_t* codes_out = codes.mutable_data_ptr<int64_t>();
    scalar_t* quantized_out = quantized.mutable_data_ptr<scalar_t>();
    for_blocks<accumulate_t, scalar_t>(
        x, frames, plan, [&](accumulate_t* residual, int64_t count, int64_t first, Scratch& scratch) {
          int64_t found[kRows];
          accumulate_t squares[kRows];
          std::vector<accumulate_t> total(count * d, 0);
          for (int64_t q = 0; q < stages; ++q) {
            search(plan, ready[q], residual, count, scratch, found, squares);
            const accumulate_t* codebook = ready[q].codes.template const_data_ptr<accumulate_t>();
            for (int64_t i = 0; i < count; ++i) {
              codes_out[frames.row(first + i) * stages + q] = found[i];
              const accumulate_t* code = codebook + found[i] * d;
              for (int64_t j = 0; j < d; ++j) {
                residual[i * d + j] -= code[j];
                total[i * d + j] += code[j];
              }
            }
          }
          for (int64_t i = 0; i < count; ++i)
            std::transform(total.begin() + i * d, total.begin() + (i + 1) * d,
                           quantized_out + frames.row(first + i) * d,
                           [](accumulate_t v) { return static_cast<scalar_t>(v); });
        });
  });
  return {codes, quantized};
}

at::Tensor rvq_decode_forward(const at::Tensor& codes, const at::Tensor& codebooks) {
  check::rvq_decode_forward(codes, codebooks);
  check::codes("codes", codes, codebooks.size(1));
  const int64_t rows = codes.size(0), used = codes.size(1), count = codebooks.size(1), d = codebooks.size(2);
  auto quantized = at::empty({rows, d}, codebooks.options());
  const at::Tensor chosen = codes.contiguous(), books = codebooks.contiguous();
  LOSATOK_DISPATCH(codebooks.scalar_type(), "rvq_decode_forward", [&] {
    const int64_t* code = chosen.const_data_ptr<int64_t>();
    const scalar_t* book = books.const_data_ptr<scalar_t>();
    scalar_t* out = quantized.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows, 256, [&](int64_t begin, int64_t end) {
      std::vector<accumulate_t> total(d);
      for (int64_t i = begin; i < end; ++i) {
        std::fill(total.begin(), total.end(), accumulate_t(0));
        for (int64_t q = 0; q < used; ++q) {
          const int64_t k = code[i * used + q];
          if (k < 0) continue;
          const scalar_t* vector = book + (q * count + k) * d;
          for (int64_t j = 0; j < d; ++j) total[j] += static_cast<accumulate_t>(vector[j]);
        }
        std::transform(total.begin(), total.end(), out + i * d,
                       [](accumulate_t v) { return static_cast<scalar_t>(v); });
      }
    });
  });
  return quantized;
}

// sums [count, d] = for each code the sum of contribution(row, column) over the rows that chose it, in their order and
// in double: threads share the columns, so that their number changes nothing and no code is written by two.
template <class T, class Contribution>
void sum_by_code(const int64_t* codes, int64_t code_stride, int64_t rows, int64_t count, int64_t d, T* sums,
                 const Contribution& contribution) {
  constexpr int64_t kColumns = 16;
  at::parallel_for(0, (d + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> total(count * kColumns);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kColumns, columns = std::min(kColumns, d - first);
      std::fill(total.begin(), total.end(), 0.0);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t k = codes[i * code_stride];
        if (k < 0) continue;
        double* to = total.data() + k * kColumns;
        for (int64_t j = 0; j < columns; ++j) to[j] += contribution(i, first + j, k);
      }
      for (int64_t k = 0; k < count; ++k)
        for (int64_t j = 0; j < columns; ++j) sums[k * d + first + j] = static_cast<T>(total[k * kColumns + j]);
    }
  });
}

at::Tensor rvq_decode_backward(const at::Tensor& grad, const at::Tensor& codes, const at::Tensor& codebooks) {
  check::rvq_decode_backward(grad, codes, codebooks);
  check::codes("codes", codes, codebooks.size(1));
  const int64_t rows = codes.size(0), used = codes.size(1), count = codebooks.size(1), d = codebooks.size(2);
  const at::Tensor chosen = codes.contiguous(), grads = grad.to(wide_type(codebooks)).contiguous();
  auto sums = at::zeros(codebooks.sizes(), codebooks.options());
  LOSATOK_DISPATCH(codebooks.scalar_type(), "rvq_decode_backward", [&] {
    const accumulate_t* g = grads.const_data_ptr<accumulate_t>();
    for (int64_t q = 0; q < used; ++q)
      sum_by_code(chosen.const_data_ptr<int64_t>() + q, used, rows, count, d,
                  sums.mutable_data_ptr<scalar_t>() + q * count * d,
                  [&](int64_t i, int64_t j, int64_t) { return g[i * d + j]; });
  });
  return sums;
}

std::tuple<at::Tensor, at::Tensor> vq_nearest_backward(const at::Tensor& grad, const at::Tensor& x,
                                                       const at::Tensor& codebook, const at::Tensor& indices,
                                                       bool need_x, bool need_codebook) {
  check::vq_nearest_backward(grad, x, codebook, indices);
  check::codes("indices", indices, codebook.size(0));
  const int64_t rows = indices.numel(), d = codebook.size(1);
  const at::ScalarType wide = wide_type(x);
  const at::Tensor grads = grad.to(wide).contiguous(), chosen = indices.contiguous();
  const at::Tensor source = x.to(wide).contiguous(), codes = codebook.to(wide).contiguous();
  auto grad_x = at::zeros(need_x ? x.sizes() : at::IntArrayRef({0}), x.options().dtype(wide));
  auto grad_codebook = at::zeros(need_codebook ? codebook.sizes() : at::IntArrayRef({0}), codebook.options());
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const T *g = grads.const_data_ptr<T>(), *v = source.const_data_ptr<T>(), *c = codes.const_data_ptr<T>();
    const int64_t* k = chosen.const_data_ptr<int64_t>();
    if (need_x) {
      T* out = grad_x.mutable_data_ptr<T>();
      at::parallel_for(0, rows, 256, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t j = 0; j < d && k[i] >= 0; ++j) out[i * d + j] = 2 * g[i] * (v[i * d + j] - c[k[i] * d + j]);
      });
    }
    if (need_codebook)
      LOSATOK_DISPATCH(codebook.scalar_type(), "vq_nearest_backward", [&] {
        sum_by_code(k, 1, rows, codebook.size(0), d, grad_codebook.mutable_data_ptr<scalar_t>(),
                    [&](int64_t i, int64_t j, int64_t code) { return 2 * g[i] * (c[code * d + j] - v[i * d + j]); });
      });
  };
  if (wide == at::kDouble) {
    run(0.0);
  } else {
    run(0.f);
  }
  return {grad_x.to(x.scalar_type()), grad_codebook};
}

}  // namespace

TORCH_LIBRARY_IMPL(losatok, CPU, m) {
  m.impl("vq_nearest_forward", &vq_nearest_forward);
  m.impl("vq_nearest_backward", &vq_nearest_backward);
  m.impl("rvq_encode_forward", &rvq_encode_forward);
  m.impl("rvq_decode_forward", &rvq_decode_forward);
  m.impl("rvq_decode_backward", &rvq_decode_backward);
}

}  // namespace losatok
