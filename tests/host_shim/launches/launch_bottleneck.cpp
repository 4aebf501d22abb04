// Launches of bottleneck_project and normalized_reconstruction_loss.
#include "cuda/bottleneck.h"
#include "launches/launches.h"

namespace launches {

namespace {

void project(DType dtype, int64_t rows, int64_t features, int64_t hidden_size, int64_t out, int64_t offset,
             ProjectPlan plan) {
  Buffer x(dtype, rows * features, offset), in(dtype, hidden_size * features), to(dtype, out * hidden_size, offset);
  Buffer bias_in(dtype, hidden_size), bias_out(dtype, out);
  Buffer z(dtype, rows * out), hidden(dtype, rows * hidden_size), partial(DType::kFloat, plan.splits * rows * out);
  for (Buffer* b : {&x, &in, &to, &bias_in, &bias_out}) b->random();
  z.nan();
  hidden.nan();
  const ProjectForward a{x.data(),
                         in.data(),
                         bias_in.data(),
                         to.data(),
                         bias_out.data(),
                         z.data(),
                         hidden.data(),
                         plan.splits > 1 ? partial.nan().floats() : nullptr,
                         rows,
                         features,
                         hidden_size,
                         out,
                         features,
                         features,
                         hidden_size,
                         Activation::kGelu};
  check(project_forward(dtype, a, plan, nullptr), "project_forward");
  z.expect_finite("z");
  hidden.expect_finite("hidden");

  const int64_t blocks = (rows + kGradRows - 1) / kGradRows;
  Buffer grad_hidden_out(dtype, rows * hidden_size), activated(dtype, rows * hidden_size);
  Buffer sums(DType::kFloat, blocks * hidden_size), bias(dtype, hidden_size), no_partial(DType::kFloat, 0);
  grad_hidden_out.nan();
  activated.nan();
  sums.nan();
  const GradHidden g{
      z.data(), to.data(), hidden.data(), grad_hidden_out.data(), activated.data(), sums.floats(), rows, hidden_size,
      out,      out,       hidden_size,   Activation::kSilu};
  check(grad_hidden(dtype, g, nullptr), "grad_hidden");
  check(column_sums(DType::kFloat, sums.data(), blocks, hidden_size, hidden_size, no_partial.floats(), dtype,
                    bias.nan().data(), false, nullptr),
        "column_sums");
  grad_hidden_out.expect_finite("grad_hidden");
  activated.expect_finite("activated");
  bias.expect_finite("bias");
}

void rows(DType dtype, DType target_dtype, int64_t features, int64_t offset) {
  const int64_t lengths[] = {5, 2};
  const Frames frames{lengths, 2, 5};
  Buffer restored(dtype, 10 * features, offset), target(target_dtype, 10 * features), loss(DType::kFloat, 10);
  restored.random();
  target.random();
  check(normalized_rows(dtype, target_dtype,
                        {restored.data(), target.data(), loss.nan().floats(), 10, features, 0, frames, true}, nullptr),
        "normalized_rows");
  restored.expect_finite("grad_restored");
  loss.expect_finite("row loss");
  Buffer copy(dtype, 10 * features), sums(DType::kFloat, features), partial(DType::kFloat, 0);
  check(copy_valid_rows(dtype, restored.data(), copy.nan().data(), 10, features, 0, frames, nullptr),
        "copy_valid_rows");
  check(multiply_by_derivative(dtype, copy.data(), restored.data(), 10 * features, Activation::kGeluTanh, nullptr),
        "multiply_by_derivative");
  check(activate(dtype, restored.data(), copy.data(), 10 * features, Activation::kRelu, nullptr), "activate");
  check(column_sums(dtype, copy.data(), 10, features, features, partial.floats(), DType::kFloat, sums.random().data(),
                    true, nullptr),
        "column_sums");
  sums.expect_finite("column sums");
  double total = 0.;
  Buffer mean(DType::kFloat, 1), scale(DType::kFloat, 1);
  check(sum_terms(loss.floats(), 1, 10, &total, nullptr), "sum_terms");
  check(finish_mean(&total, 1, {frames, false, -1, features}, mean.nan().floats(), scale.nan().floats(), nullptr),
        "finish_mean");
  mean.expect_finite("mean");
}

void tall_column_sums(DType dtype) {
  const int64_t count = 1030;
  Buffer values(dtype, count * 3), sums(dtype, 3), partial(DType::kFloat, column_sum_blocks(count) * 3);
  check(column_sums(dtype, values.random().data(), count, 3, 3, partial.nan().floats(), dtype, sums.nan().data(), false,
                    nullptr),
        "column_sums");
  sums.expect_finite("column sums");
}

}  // namespace

void bottleneck(DType dtype, DType other) {
  project(dtype, 5, 16, 72, 8, 0, {true, 1});    // 16-byte copies
  project(dtype, 17, 13, 130, 7, 3, {true, 3});  // single elements, split hidden units
  project(dtype, 66, 24, 136, 16, 0, {false, 1});
  rows(dtype, dtype, 12, 0);
  rows(dtype, other, 131, 1);
  tall_column_sums(dtype);
}

}  // namespace launches
