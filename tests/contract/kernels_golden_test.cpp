// Goal: the bits of every kernel but the GEMM (which has its own file) never change: not with the
// compiler's optimisation, not with the instruction set, not with a later version of the code.
// Method: integer-generated inputs, hashes committed in golden/kernels.txt. This file is built
// twice, against the kernels at -O2 and at -O0.
#include "kernels/dispatch.hpp"
#include "kernels/elementwise.hpp"
#include "kernels/latent.hpp"
#include "kernels/numerics.hpp"
#include "kernels/rms_norm.hpp"
#include "kernels/rope.hpp"
#include "kernels/route.hpp"
#include "kernels/sampling.hpp"
#include "tests/contract/golden.hpp"
#include "tests/unit/kernels/attention_problem.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <string>

namespace rollcast::test {
namespace {

using namespace kernels;

template <class F>
void on_every_instruction_set(F check) {
  ASSERT_FALSE(instruction_sets().empty()) << "this machine has no FMA";
  for (const auto set : instruction_sets()) {
    SCOPED_TRACE(set);
    ASSERT_TRUE(use_instruction_set(set));
    check();
  }
  ASSERT_TRUE(use_instruction_set(""));
}

TEST(numerics_contract, bits_are_the_committed_ones) {
  std::vector<float> exps;
  std::vector<double> logs, sines, noise;
  for (std::uint32_t i = 0; i < 20'000; ++i) {
    exps.push_back(exp_f32(-90.0f + static_cast<float>(i) * 0.009f));
    logs.push_back(log_f64(static_cast<double>(i + 1) * 0x1p-10));
    logs.push_back(exp_f64(static_cast<double>(i) * 0.03125 - 300.0));
    sines.push_back(sin_cos_f64(static_cast<double>(i) * 0.8125).sin);
    sines.push_back(sin_cos_f64(static_cast<double>(i) * 0.8125).cos);
    noise.push_back(gumbel(token_bits(12345, 6, i)));
  }
  expect_golden("kernels.exp_f32", exps);
  expect_golden("kernels.exp_log_f64", logs);
  expect_golden("kernels.sin_cos_f64", sines);
  expect_golden("kernels.gumbel", noise);
}

TEST(row_kernels_contract, bits_are_the_committed_ones_on_every_instruction_set) {
  on_every_instruction_set([] {
    for (const std::size_t dim : {80u, 768u, 1001u}) {
      const auto x = pattern(3 * 2 * dim, dim, 12.0f), w = pattern(dim, 2);
      std::vector<float> y(3 * dim);
      rms_norm_cpu({x.data(), w.data(), y.data(), dim, 2 * dim, dim, 1e-6f}, 0, 3);
      expect_golden("kernels.rms_norm." + std::to_string(dim), y);
      silu_mul_cpu({x.data(), 2 * dim, y.data(), dim, dim}, 0, 3);
      expect_golden("kernels.silu_mul." + std::to_string(dim), y);
    }
  });
}

TEST(rope_contract, bits_are_the_committed_ones_on_every_instruction_set) {
  constexpr std::size_t positions = 64, dim = 80, rows = 40, columns = (3 + 2 * 2) * dim;
  for (const auto scaling : {rope_scaling::none, rope_scaling::linear, rope_scaling::llama3}) {
    const rope_params params{dim, 500000.0, scaling, 8.0, 1.0, 4.0, 32};
    std::vector<float> table(positions * dim);
    rope_table(params, positions, table.data());
    const std::string name = std::to_string(static_cast<int>(scaling));
    expect_golden("kernels.rope_table." + name, table);
    for (const auto type : {dtype::f32, dtype::bf16})
      on_every_instruction_set([&] {
        const auto norm = pattern(dim, 4);
        auto qkv = pattern(rows * columns, 5, 3.0f);
        std::vector<row_place> places;
        for (std::uint32_t r = 0; r < rows; ++r)
          places.push_back({r + 8, (r + 8) / 16});
        kv_layout kv{nullptr, 16, 2, dim, type};
        std::vector<float> cache(3 * kv.block_bytes() / sizeof(float));
        kv.data = reinterpret_cast<std::byte*>(cache.data());
        qkv_rope_append_cpu({qkv.data(), columns, 3, 2, norm.data(), norm.data(), 1e-6f,
                             table.data(), places.data(), kv},
                            0, rows);
        const std::string full = name + (type == dtype::f32 ? ".f32" : ".bf16");
        expect_golden("kernels.qkv_rope." + full, qkv);
        expect_golden("kernels.kv_append." + full, cache);
      });
  }
}

TEST(attention_contract, bits_are_the_committed_ones_on_every_instruction_set) {
  on_every_instruction_set([] {
    for (const auto& shape :
         {attention_shape{6, 2, 64, dtype::f32}, attention_shape{6, 2, 64, dtype::bf16},
          attention_shape{7, 1, 80, dtype::f32}, attention_shape{4, 1, 128, dtype::bf16},
          attention_shape{16, 1, 576, dtype::f32, 512},
          attention_shape{16, 1, 576, dtype::bf16, 512}}) {
      attention_problem problem{shape, 150, 16, 7};
      problem.append(0, 150);
      std::vector<float> out;
      problem.attend(0, 149, 32, out); // A prefill, and the last position as a decode row.
      problem.attend(149, 150, 1, out);
      expect_golden("kernels.attention." + std::to_string(shape.head_dim)
                      + (shape.type == dtype::f32 ? ".f32" : ".bf16"),
                    out);
    }
  });
}

TEST(latent_contract, bits_are_the_committed_ones_on_every_instruction_set) {
  constexpr std::size_t rows = 40, heads = 3, nope = 24, turned = 16, rank = 64;
  rope_params params{turned, 10000.0, rope_scaling::yarn, 8.0, 1.0, 4.0, 32};
  params.attention_factor = 1.0625;
  std::vector<float> table(64 * turned);
  rope_table(params, 64, table.data());
  expect_golden("kernels.rope_table.3", table);
  for (const auto type : {dtype::f32, dtype::bf16})
    on_every_instruction_set([&] {
      const auto q = pattern(rows * heads * (nope + turned), 12, 3.0f);
      const auto kv_rows = pattern(rows * (rank + turned), 13, 3.0f), norm = pattern(rank, 14);
      std::vector<float> q_latent(rows * heads * (rank + turned));
      std::vector<row_place> places;
      for (std::uint32_t r = 0; r < rows; ++r)
        places.push_back({r + 8, (r + 8) / 16});
      kv_layout kv{nullptr, 16, 1, rank + turned, type, rank};
      std::vector<float> cache(3 * kv.block_bytes() / sizeof(float));
      kv.data = reinterpret_cast<std::byte*>(cache.data());
      latent_append_cpu({q.data(), heads * (nope + turned), kv_rows.data(), rank + turned, heads,
                         nope, turned, norm.data(), 1e-6f, table.data(), places.data(),
                         q_latent.data(), kv},
                        0, rows);
      const std::string name = type == dtype::f32 ? "f32" : "bf16";
      expect_golden("kernels.latent_q." + name, q_latent);
      expect_golden("kernels.latent_append." + name, cache);
    });
}

TEST(route_contract, bits_are_the_committed_ones_on_every_instruction_set) {
  constexpr std::size_t rows = 9, experts = 130, top_k = 6, dim = 77;
  const auto bias = pattern(experts, 11);
  on_every_instruction_set([&] {
    for (const auto score : {router_score::softmax, router_score::sigmoid}) {
      const auto logits = pattern(rows * experts, 8, 5.0f);
      std::vector<std::uint32_t> ids(rows * top_k);
      std::vector<float> weights(rows * top_k);
      route_args args{logits.data(), experts, experts,    top_k,
                      score,         true,    ids.data(), weights.data()};
      const bool grouped = score == router_score::sigmoid;
      if (grouped) {
        args.choice_bias = bias.data();
        args.groups = 10;
        args.groups_kept = 3;
        args.scaling = 2.5f;
      }
      route_cpu(args, 0, rows);
      const std::string name = grouped ? "sigmoid" : "softmax";
      expect_golden("kernels.route_ids." + name, ids);
      expect_golden("kernels.route_weights." + name, weights);
      const auto outputs = pattern(experts * dim, 9);
      auto y = pattern(rows * dim, 10);
      combine_cpu({outputs.data(), ids.data(), weights.data(), top_k, y.data(), dim}, 0, rows);
      expect_golden("kernels.combine." + name, y);
    }
  });
}

TEST(sampling_contract, bits_are_the_committed_ones_on_every_instruction_set) {
  on_every_instruction_set([] {
    std::vector<std::uint32_t> bits;
    for (std::uint32_t seed = 0; seed < 40; ++seed) {
      const std::size_t vocabulary = 900 + seed;
      const auto logits = pattern(vocabulary, seed, 9.0f);
      std::vector<float> memory(sample_scratch_bytes(vocabulary) / sizeof(float) + 16);
      auto* scratch = reinterpret_cast<std::byte*>(memory.data());
      scratch += 64 - reinterpret_cast<std::uintptr_t>(scratch) % 64;
      sample_params params;
      params.temperature = 0.25f * static_cast<float>(seed % 6);
      params.top_p = seed % 3 == 0 ? 1.0f : 0.9f;
      params.top_k = seed % 4 == 0 ? 40 : 0;
      params.min_p = seed % 5 == 0 ? 0.05f : 0.0f;
      params.seed = seed * 0x9e3779b97f4a7c15ull;
      params.position = 17 * seed;
      const auto got = sample_token_cpu(logits.data(), vocabulary, params, scratch);
      bits.push_back(static_cast<std::uint32_t>(got.token));
      bits.push_back(std::bit_cast<std::uint32_t>(got.logprob));
      bits.push_back(std::bit_cast<std::uint32_t>(got.kept_mass));
    }
    expect_golden("kernels.sampling", bits);
  });
}

} // namespace
} // namespace rollcast::test
