#pragma once

#include "engine/backend/backend.hpp"

#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

namespace rollcast::test {

/// What a fake device is like. Equal seeds are equal weights.
struct fake_device {
  std::uint32_t kv_blocks = 256;
  std::uint32_t block_tokens = 16;
  std::uint32_t positions_max = 2'048;
  std::uint32_t vocabulary = 1'000;
  std::uint64_t weights = 1;
  std::uint32_t mean_length = 40; ///< One token in so many is the end.
  std::chrono::microseconds step_time{0};
};

/// A device without a model: the KV of a position is a hash of all tokens up to it, read back from
/// the cache, and a token is a hash of the last KV, the seed and the position. So a lost, doubled,
/// foreign or misplaced token or KV block changes every token after it.
class fake_backend final : public backend {
public:
  explicit fake_backend(fake_device how = {}) : how_(how) {
    shape_ = {how.vocabulary,
              how.positions_max,
              how.kv_blocks,
              how.block_tokens,
              4'096,
              256,
              kernels::kv_group * sizeof(std::uint64_t)};
    kv_.resize(std::size_t{how.kv_blocks} * how.block_tokens);
  }

  const device_shape& shape() const noexcept override { return shape_; }
  const numerics_profile& numerics() const noexcept override { return profile_; }
  content_hash weights_hash() const noexcept override { return {0, how_.weights}; }
  std::span<const token_id> eos_token_ids() const noexcept override { return eos_; }

  void forward(const forward_rows& rows) override {
    if (how_.step_time.count() > 0)
      std::this_thread::sleep_for(how_.step_time);
    std::vector<std::uint64_t> states(rows.tokens.size());
    auto copy = rows.copies.begin();
    for (const auto& s : rows.sequences) {
      // A branch comes behind what it copies, and its copies are in its order.
      const auto own = s.blocks[s.position / how_.block_tokens];
      for (; copy != rows.copies.end() && copy->to == own; ++copy)
        for (auto at = copy->begin; at < copy->end; ++at)
          kv_[std::size_t{own} * how_.block_tokens + at] =
            kv_[std::size_t{copy->from} * how_.block_tokens + at];
      for (std::uint32_t i = 0; i < s.rows; ++i) {
        const auto position = s.position + i;
        const auto before = position == 0 ? how_.weights : kv_[slot(s.blocks, position - 1)];
        const auto row = s.row_begin + i;
        states[row] = mix(before, static_cast<std::uint64_t>(rows.tokens[row]));
        kv_[slot(s.blocks, position)] = states[row];
      }
    }
    logits_.clear();
    for (const auto row : rows.logit_rows)
      logits_.push_back(states[row]);
  }

  std::span<const float> logits() override { return {}; } // it chooses without

  void sample(std::span<const kernels::sample_params> how,
              std::span<kernels::sampled_token> out) override {
    for (std::size_t i = 0; i < how.size(); ++i) {
      const auto drawn = mix(mix(logits_[i], how[i].seed), how[i].position);
      const bool end = drawn % how_.mean_length == 0 && how[i].banned_count == 0;
      out[i].token = end ? 0 : static_cast<token_id>(1 + (drawn >> 8) % (how_.vocabulary - 1));
      out[i].logprob = -static_cast<float>(drawn % 1'009) / 64.0f;
      out[i].kept_mass = how[i].top_k > 0 ? 0.5f : 1.0f;
    }
  }

  void score(std::span<const float>, std::span<const token_id>, std::span<float> out) override {
    std::fill(out.begin(), out.end(), 0.0f);
  }

  void export_kv(std::span<const std::uint32_t> blocks, std::size_t groups,
                 std::span<std::byte> image) const override {
    for (std::size_t p = 0; p < groups * kernels::kv_group; ++p)
      std::memcpy(&image[p * sizeof(std::uint64_t)], &kv_[slot(blocks.data(), p)],
                  sizeof(std::uint64_t));
  }

  void import_kv(std::span<const std::uint32_t> blocks, std::size_t groups,
                 std::span<const std::byte> image) override {
    for (std::size_t p = 0; p < groups * kernels::kv_group; ++p)
      std::memcpy(&kv_[slot(blocks.data(), p)], &image[p * sizeof(std::uint64_t)],
                  sizeof(std::uint64_t));
  }

private:
  static std::uint64_t mix(std::uint64_t a, std::uint64_t b) noexcept {
    std::uint64_t z = (a ^ (b + 0x9e3779b97f4a7c15u + (a << 6) + (a >> 2))) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::size_t slot(const std::uint32_t* blocks, std::size_t position) const noexcept {
    return std::size_t{blocks[position / how_.block_tokens]} * how_.block_tokens
           + position % how_.block_tokens;
  }

  fake_device how_;
  device_shape shape_;
  numerics_profile profile_ = *find_profile(default_profile);
  std::vector<token_id> eos_{0};
  std::vector<std::uint64_t> kv_;
  std::vector<std::uint64_t> logits_;
};

} // namespace rollcast::test
