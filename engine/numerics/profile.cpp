#include "engine/numerics/profile.hpp"

#include "engine/numerics/profile_list.hpp"

#include <array>
#include <string>

namespace rollcast {

namespace {

constexpr std::array profiles{
  numerics_profile{
    "cpu-f32-v1", kernels::arithmetic::f32, kernels::dtype::f32,
    "gemm: one f32 fma chain over k ascending, weights widened exactly, bias after the chain; "
    "reduce: 64 lanes, fold 32 16 8 4 2 1; attention: key tiles of 64 at absolute positions, one "
    "online-softmax update a tile, f32 kv; rope: double tables rounded once; vocabulary softmax: "
    "40-bit fixed-point terms, integer sum; sampling: philox4x32-10 (seed, position, token id), "
    "gumbel-max in double, lowest id on ties"},
  numerics_profile{
    "cpu-bf16-v1", kernels::arithmetic::bf16, kernels::dtype::bf16,
    "gemm: inputs rounded to bf16, per pair acc=ftz(fma(x1,w1,acc)) then ftz(fma(x0,w0,acc)), bias "
    "after the chain; reduce: 64 lanes, fold 32 16 8 4 2 1; attention: key tiles of 64 at absolute "
    "positions, one online-softmax update a tile, bf16 kv rounded once, f32 arithmetic; rope: "
    "double tables rounded once; vocabulary softmax: 40-bit fixed-point terms, integer sum; "
    "sampling: philox4x32-10 (seed, position, token id), gumbel-max in double, lowest id on ties"},
  numerics_profile{
    "cuda-bf16-v1", kernels::arithmetic::bf16, kernels::dtype::bf16,
    "gemm: bf16 inputs rounded once, k in leaves of whole multiples of 64 whose number is that of "
    "kernels/cuda/gemm.hpp for (n, k), each one ascending chain of mma.m16n8k16 in f32, leaves "
    "added ascending, then bias, then residual; rows: f32 residual, norm, rope and silu, reduce 64 "
    "lanes, fold 32 16 8 4 2 1; attention: q, k, v rounded once to bf16, key tiles of 64 and "
    "splits "
    "of 512 at absolute positions, scores one mma chain times scale, one online-softmax update a "
    "tile, weights rounded to bf16, sum and values one mma chain, splits merged ascending; rope: "
    "double tables rounded once; vocabulary softmax: 40-bit fixed-point terms, integer sum; "
    "sampling: philox4x32-10 (seed, position, token id), gumbel-max in double, lowest id on ties",
    true},
  numerics_profile{
    "cuda-bf16-fast-v1", kernels::arithmetic::bf16, kernels::dtype::bf16,
    "not exact: products by cuBLASLt, whose order of additions is its own for every number of "
    "rows; gate and up rounded to bf16 before silu; all else as cuda-bf16-v1",
    true, 0, false}};

} // namespace

content_hash numerics_profile::hash() const noexcept {
  const auto chained = hash_of(std::span{name.data(), name.size()});
  const auto words = hash_of(std::span{contract.data(), contract.size()}, chained.low);
  if (architecture == 0)
    return words;
  const std::string sm = "sm_" + std::to_string(architecture);
  return hash_of(std::span{sm.data(), sm.size()}, words.low);
}

std::span<const numerics_profile> all_profiles() noexcept {
  return profiles;
}

result<numerics_profile> find_profile(std::string_view name) {
  std::string known;
  for (const auto& profile : profiles) {
    if (profile.name == name)
      return profile;
    known += (known.empty() ? "" : ", ") + std::string{profile.name};
  }
  return fail(errc::unsupported_numerics,
              "unknown numerics profile '" + std::string{name} + "': this build has " + known);
}

} // namespace rollcast
