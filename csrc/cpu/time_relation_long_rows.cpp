// Rows of the time-relation loss whose squares overflow. They are divided by a power of two first: that loses no digit,
// and normalised rows do not depend on their length.
#include <algorithm>
#include <cmath>

#include "cpu/time_relation.h"

namespace losatok::relation {
namespace {

template <class T>
void shorten(T* row, int64_t columns, int& exponent) {
  double largest = 0;
  for (int64_t j = 0; j < columns; ++j) {
    const double value = std::fabs(static_cast<double>(row[j]));
    if (!std::isfinite(value)) return;
    largest = std::max(largest, value);
  }
  std::frexp(largest, &exponent);
  for (int64_t j = 0; j < columns; ++j) row[j] = static_cast<T>(std::ldexp(static_cast<double>(row[j]), -exponent));
}

}  // namespace

template <class R>
std::optional<Shortened> shortened(const at::Tensor& rows, int64_t frames, const R* inverse) {
  const auto too_long = [](R factor) { return factor < kLeastInverse<R>; };
  if (std::none_of(inverse, inverse + frames, too_long)) return std::nullopt;
  const at::Tensor copy = rows.narrow(0, 0, frames).clone(at::MemoryFormat::Contiguous);
  Shortened result{copy, std::vector<int>(frames, 0)};
  const int64_t columns = copy.size(1);
  for (int64_t i = 0; i < frames; ++i) {
    if (!too_long(inverse[i])) continue;
    int& exponent = result.exponents[i];
    if (copy.scalar_type() == at::kDouble) {
      shorten(copy.mutable_data_ptr<double>() + i * columns, columns, exponent);
    } else if (copy.scalar_type() == at::kFloat) {
      shorten(copy.mutable_data_ptr<float>() + i * columns, columns, exponent);
    } else if (copy.scalar_type() == at::kBFloat16) {
      shorten(copy.mutable_data_ptr<c10::BFloat16>() + i * columns, columns, exponent);
    }  // float16: its largest number, squared, is far from the end of float32; only infinities come here
  }
  return result;
}

template std::optional<Shortened> shortened(const at::Tensor&, int64_t, const float*);
template std::optional<Shortened> shortened(const at::Tensor&, int64_t, const double*);

}  // namespace losatok::relation
