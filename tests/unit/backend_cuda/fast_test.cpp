// Goal: the profile that is not exact is computed by a library of products and by nothing else of
// it, gives the model's numbers, has a hash of its own, and is refused in a line without a library.
// Method: the emulated device with a plain product in the library's place, which counts what it is
// asked for; all boundaries of a pass: bias, residual, gate and up, graphs.

#include "engine/backend/product_library.hpp"
#include "engine/base/prng.hpp"
#include "tests/unit/backend_cuda/devices.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>

namespace rollcast::test {
namespace {

namespace gpu = kernels::cuda;

/// The exact product through the library's door.
class plain_products final : public product_library {
public:
  std::size_t workspace_bytes() const noexcept override { return std::size_t{4} << 20; }

  gpu::device_status multiply(const library_product& p, std::byte* workspace,
                              gpu::stream_handle stream) const override {
    ++asked;
    gpu::gemm_args args;
    args.x = p.x;
    args.x_stride = p.k;
    args.w = p.w;
    args.y = p.y;
    args.y_stride = p.n;
    args.rows = p.rows;
    args.n = p.n;
    args.k = p.k;
    args.bias = p.bias;
    args.residual = p.add ? static_cast<const float*>(p.y) : nullptr;
    args.residual_stride = p.n;
    args.output = p.output;
    args.workspace = workspace;
    return gpu::gemm(args, stream);
  }

  mutable std::atomic<int> asked{0};
};

std::unique_ptr<backend> fast_device(const small_model& model,
                                     std::shared_ptr<const product_library> products) {
  auto options = small_options();
  options.products = std::move(products);
  auto made =
    make_cuda_backend(model.config, model.tensors(), *find_profile(cuda_fast_profile), options, {});
  EXPECT_TRUE(made.has_value()) << made.error().detail;
  return std::move(*made);
}

std::vector<token_id> some_tokens() {
  std::vector<token_id> tokens;
  prng random{3};
  for (int i = 0; i < 40; ++i)
    tokens.push_back(static_cast<token_id>(random.below(99)));
  return tokens;
}

std::vector<float> scores(std::unique_ptr<backend> device, std::span<const token_id> tokens) {
  std::vector<float> out;
  EXPECT_TRUE(engine(std::move(device), {8, 48, 0}).score(tokens, 1, 1.0f, out));
  return out;
}

double worst_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    worst = std::max(worst, std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return worst;
}

class cuda_fast : public ::testing::TestWithParam<architecture> {};

TEST_P(cuda_fast, says_what_the_exact_profile_says_but_for_rounding) {
  const small_model model{GetParam()};
  const auto products = std::make_shared<plain_products>();
  auto device = fast_device(model, products);
  EXPECT_FALSE(device->numerics().exact);
  EXPECT_NE(device->numerics().hash(), model.cuda(small_options())->numerics().hash());
  const auto tokens = some_tokens();
  const auto fast = scores(std::move(device), tokens);
  EXPECT_EQ(products->asked, 2 * (4 * static_cast<int>(model.config.layers) + 1))
    << "two passes, for 24 rows of logits each";
  const auto worst = worst_difference(fast, scores(model.cuda(small_options()), tokens));
  EXPECT_LT(worst, 0.06);
  EXPECT_GT(worst, 0.0) << "gate and up are rounded once more";
}

TEST_P(cuda_fast, runs_whole_rollouts_in_graphs) {
  const small_model model{GetParam()};
  std::vector<engine> engines;
  engines.emplace_back(fast_device(model, std::make_shared<plain_products>()),
                       engine_limits{8, 48, 0});
  EXPECT_EQ(run_rollout(small_rollout(3), engines, {}).size(), 3u);
}

INSTANTIATE_TEST_SUITE_P(families, cuda_fast,
                         ::testing::Values(architecture::qwen3, architecture::qwen2),
                         [](const auto& family) { return std::string{to_string(family.param)}; });

TEST(cuda_fast_device, computes_with_the_makers_library_or_is_refused_in_one_line) {
  const small_model model{architecture::qwen2};
  auto made = make_cuda_backend(model.config, model.tensors(), *find_profile(cuda_fast_profile),
                                small_options(), {});
  if (!made) {
    EXPECT_EQ(made.error().code, errc::bad_config);
    EXPECT_TRUE(
      made.error().detail.starts_with("numerics profile cuda-bf16-fast-v1 needs cuBLASLt"))
      << made.error().detail;
    return;
  }
  EXPECT_FALSE(gpu::describe_device(0)->emulated) << "its memory is none that the library knows";
  const auto tokens = some_tokens();
  EXPECT_LT(
    worst_difference(scores(std::move(*made), tokens), scores(model.cuda(small_options()), tokens)),
    0.06);
}

} // namespace
} // namespace rollcast::test
