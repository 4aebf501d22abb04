// The time-relation loss by tiles of the Gram matrices, which never exist whole: a panel of rows at a time, from the
// diagonal to the right, so that half of each product is saved by symmetry. A window shortens the panels to the band.
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm_cpu_dispatch.h>

#include <vector>

#include "cpu/time_relation.h"

namespace losatok::relation {
namespace {

constexpr int64_t kColumns = 512;               // of a tile: its two matrices stay in the second-level cache
constexpr int64_t kConvertAtOnce = 8 << 20;     // bytes up to which a clip is converted whole
constexpr int64_t kGradientCopies = 512 << 20;  // bytes, all workers together

template <class R>
at::Tensor tensor(const Matrix<R>& m) {
  using Element = std::remove_const_t<R>;
  return at::from_blob(const_cast<Element*>(m.data), {m.rows, m.columns}, {m.row_stride, m.column_stride},
                       at::TensorOptions().dtype(c10::CppTypeToScalarType<Element>::value));
}

struct Panel {
  int64_t begin, end;
};

// The sum of one panel's tiles. Adds to `grad`, whose first row is frame `grad_begin`, when it is not null.
template <class R>
double visit(Workspace<R>& own, Features<R>& high, const Clip<R>& clip, Panel panel, R* grad, int64_t grad_begin) {
  const int64_t rows = panel.end - panel.begin, d = clip.low_size;
  const int64_t end = std::min(clip.frames, panel.end + clip.window);
  const R* left = clip.unit ? clip.unit + panel.begin * d : nullptr;
  double sum = 0;
  for (int64_t j = panel.begin; j < end; j += kColumns) {
    const int64_t columns = std::min(kColumns, end - j);
    const int64_t once = std::clamp<int64_t>(panel.end - j, 0, columns);
    const GramTile tile{rows, columns, j - panel.begin, once, clip.window};
    const R *inverse_i = clip.inverse_high + panel.begin, *inverse_j = clip.inverse_high + j;
    R* low = nullptr;
    if (clip.unit) {
      low = own.low_gram.reserve(rows * columns);
      product<R>(packed(left, rows, d), packed(clip.unit + j * d, columns, d).transposed(), packed(low, rows, columns));
    }
    if constexpr (std::is_same_v<R, float>) {
      if (high.bfloat16_products()) {
        const Bf16* gram = high.gram_bfloat16(panel.begin, rows, j, columns);
        sum += low ? LOSATOK_SIMD(gram_difference<R, Bf16>)(low, gram, tile, inverse_i, inverse_j)
                   : LOSATOK_SIMD(gram_squares<R, Bf16>)(gram, tile, inverse_i, inverse_j);
      }
    }
    if (!high.bfloat16_products()) {
      const R* gram = high.gram(panel.begin, rows, j, columns);
      sum += low ? LOSATOK_SIMD(gram_difference<R, R>)(low, gram, tile, inverse_i, inverse_j)
                 : LOSATOK_SIMD(gram_squares<R, R>)(gram, tile, inverse_i, inverse_j);
    }
    if (!grad) continue;
    R* const to = grad - grad_begin * d;
    product<R>({low, rows, columns, columns}, packed(clip.unit + j * d, columns, d),
               packed(to + panel.begin * d, rows, d), true);
    if (columns == once) continue;
    const Matrix<const R> mirrored{low + once, rows, columns - once, columns};
    product<R>(mirrored.transposed(), packed(left, rows, d), packed(to + (j + once) * d, columns - once, d), true);
  }
  return sum;
}

// The share of one worker, and the rows of the gradient that it reaches.
struct Share {
  std::vector<Panel> panels;
  int64_t begin = 0, end = 0;
};

// The same shares every time, so that sums are taken in the same order. Panels of a whole triangle grow shorter to the
// end and are dealt out to and fro; those of a band are alike, and neighbours stay together, so that a worker's
// gradient is a strip.
std::vector<Share> shares(int64_t frames, int64_t window, int64_t low_size, int64_t element) {
  const int64_t rows = panel_rows(frames, window);
  const int64_t panels = (frames + rows - 1) / rows;
  const bool band = 2 * window + 1 < frames;
  int64_t workers = at::in_parallel_region() ? 1 : std::min<int64_t>(at::get_num_threads(), panels);
  if (!band) workers = std::clamp<int64_t>(kGradientCopies / (frames * low_size * element + 1), 1, workers);
  std::vector<Share> all(workers);
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t turn = p % (2 * workers);
    const int64_t worker = band ? p * workers / panels : std::min(turn, 2 * workers - 1 - turn);
    all[worker].panels.push_back({p * rows, std::min(frames, (p + 1) * rows)});
  }
  for (Share& share : all) {
    share.begin = share.panels.front().begin;
    share.end = std::min(frames, share.panels.back().end + window);
  }
  return all;
}

}  // namespace

int64_t panel_rows(int64_t frames, int64_t window) {
  const int64_t reach = std::min(frames, 2 * window + 1);
  return std::clamp<int64_t>((reach / 6 + 15) / 16 * 16, 16, 192);
}

template <class R>
void product(const Matrix<const R>& a, const Matrix<const R>& b, const Matrix<R>& out, bool accumulate) {
  at::Tensor to = tensor(out);
  if (accumulate) {
    at::cpu::addmm_out(to, to, tensor(a), tensor(b));
  } else {
    at::cpu::mm_out(to, tensor(a), tensor(b));
  }
}

template <class R>
Features<R>::Features(Workspace<R>& own, const at::Tensor& clip, int64_t frames, bool bfloat16_products)
    : own_(own), clip_(clip), frames_(frames), bfloat16_products_(bfloat16_products) {
  const int64_t columns = size();
  const bool rows_lie_so = clip.stride(1) == 1 && (clip.stride(0) >= columns || frames == 1);
  if (clip.scalar_type() == c10::CppTypeToScalarType<R>::value && rows_lie_so) {
    in_place_ = clip.const_data_ptr<R>();
    stride_ = std::max(clip.stride(0), columns);
  } else if (!bfloat16_products && frames * columns * static_cast<int64_t>(sizeof(R)) <= kConvertAtOnce) {
    in_place_ = rows(0, frames).data;
    stride_ = columns;
  }
}

template <class R>
Matrix<const R> Features<R>::rows(int64_t begin, int64_t count, int which) {
  const int64_t columns = size();
  if (in_place_) return {in_place_ + begin * stride_, count, columns, stride_};
  R* to = own_.converted[which].reserve(count * columns);
  tensor(packed(to, count, columns)).copy_(clip_.narrow(0, begin, count));
  return packed<R>(const_cast<const R*>(to), count, columns);
}

template <class R>
void Features<R>::inverse_norms(R* inverse) {
  constexpr int64_t kBlock = 256;
  const auto block = [&](int64_t begin, int64_t end) {
    const Matrix<const R> x = rows(begin, end - begin);
    LOSATOK_SIMD(unit_rows<R>)(x.data, x.rows, x.columns, x.row_stride, kEps<R>, nullptr, inverse + begin);
  };
  if (in_place_) return at::parallel_for(0, frames_, 64, block);
  for (int64_t begin = 0; begin < frames_; begin += kBlock) block(begin, std::min(frames_, begin + kBlock));
}

template <class R>
const R* Features<R>::gram(int64_t i, int64_t count_i, int64_t j, int64_t count_j) {
  R* out = own_.high_gram.reserve(count_i * count_j);
  product<R>(rows(i, count_i, 0), rows(j, count_j, 1).transposed(), packed(out, count_i, count_j));
  return out;
}

template <class R>
const Bf16* Features<R>::gram_bfloat16(int64_t i, int64_t count_i, int64_t j, int64_t count_j) {
  c10::BFloat16* out = own_.high_gram_bfloat16.reserve(count_i * count_j);
  const c10::BFloat16* x = clip_.const_data_ptr<c10::BFloat16>();
  const int64_t stride = clip_.stride(0);
  product<c10::BFloat16>({x + i * stride, count_i, size(), stride},
                         Matrix<const c10::BFloat16>{x + j * stride, count_j, size(), stride}.transposed(),
                         packed(out, count_i, count_j));
  return reinterpret_cast<const Bf16*>(out);
}

template <class R>
double tiled(Workspace<R>& own, const Clip<R>& clip, R scale, R* grad) {
  const int64_t d = clip.low_size;
  const std::vector<Share> all = shares(clip.frames, clip.window, grad ? d : 0, sizeof(R));
  const int64_t workers = all.size();
  if (static_cast<int64_t>(own.helpers.size()) < workers - 1) own.helpers.resize(workers - 1);
  std::vector<double> sums(workers, 0.);
  std::vector<R*> parts(workers, nullptr);
  at::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t w = first; w < last; ++w) {
      const Share& share = all[w];
      Workspace<R>& mine = w ? own.helpers[w - 1] : own;
      Features<R> high(mine, clip.high, clip.frames, clip.bfloat16_products);
      if (grad) {
        const int64_t count = (share.end - share.begin) * d;
        parts[w] = workers == 1 ? grad : mine.grad.reserve(count);
        std::fill_n(parts[w], count, R(0));
      }
      for (const Panel& panel : share.panels) sums[w] += visit(mine, high, clip, panel, parts[w], share.begin);
    }
  });
  if (grad) {
    at::parallel_for(0, clip.frames, 128, [&](int64_t begin, int64_t end) {
      if (workers > 1) std::fill(grad + begin * d, grad + end * d, R(0));
      for (int64_t w = 0; w < workers && workers > 1; ++w) {
        const int64_t from = std::max(begin, all[w].begin), to = std::min(end, all[w].end);
        const R* part = parts[w] - all[w].begin * d;
        for (int64_t k = from * d; k < to * d; ++k) grad[k] += part[k];
      }
      R* g = grad + begin * d;
      LOSATOK_SIMD(through_normalization<R>)(g, nullptr, nullptr, clip.unit + begin * d, clip.inverse_low + begin,
                                             kEps<R>, end - begin, d, scale, g);
    });
  }
  double sum = 0;
  for (const double s : sums) sum += s;
  return sum;
}

template void product(const Matrix<const float>&, const Matrix<const float>&, const Matrix<float>&, bool);
template void product(const Matrix<const double>&, const Matrix<const double>&, const Matrix<double>&, bool);
template class Features<float>;
template class Features<double>;
template double tiled(Workspace<float>&, const Clip<float>&, float, float*);
template double tiled(Workspace<double>&, const Clip<double>&, double, double*);

}  // namespace losatok::relation
