#pragma once

#include "engine/backend/backend.hpp"
#include "engine/base/check.hpp"
#include "engine/model/finite.hpp"
#include "engine/model/tensor_source.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
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

/// The weights of a fake device: two tensors of eight bytes each, F32 [2], whose bits are the seed.
class fake_weights final : public device_weights {
public:
  static constexpr std::array<const char*, 2> names{"fake.a", "fake.b"};

  explicit fake_weights(std::array<std::uint64_t, 2> values) : values_(values) {
    for (std::size_t i = 0; i < names.size(); ++i)
      tensors_.push_back(
        {names[i], kernels::dtype::f32, {2}, hash_of(std::span{values_}.subspan(i, 1))});
    hash_ = epoch_hash_of(tensors_);
  }

  content_hash hash() const noexcept override { return hash_; }
  std::span<const tensor_info> tensors() const noexcept override { return tensors_; }
  const std::array<std::uint64_t, 2>& values() const noexcept { return values_; }
  std::uint64_t seed() const noexcept { return values_[0] ^ values_[1]; }

private:
  std::array<std::uint64_t, 2> values_;
  std::vector<tensor_info> tensors_;
  content_hash hash_;
};

/// A device without a model: the KV of a position is a hash of all tokens up to it, read back from
/// the cache, and a token is a hash of the last KV, the seed and the position. So a lost, doubled,
/// foreign or misplaced token or KV block changes every token after it. A position's ids of experts
/// are a hash of its KV.
class fake_backend : public backend {
public:
  explicit fake_backend(fake_device how = {}) : how_(how) {
    shape_ = {how.vocabulary,
              how.positions_max,
              how.kv_blocks,
              how.block_tokens,
              4'096,
              256,
              kernels::kv_group * sizeof(std::uint64_t),
              {2, 3, 1}};
    weights_ = std::make_shared<const fake_weights>(std::array<std::uint64_t, 2>{how.weights, 0});
    kv_.resize(std::size_t{how.kv_blocks} * how.block_tokens);
  }

  const device_shape& shape() const noexcept override { return shape_; }
  const numerics_profile& numerics() const noexcept override { return profile_; }
  std::span<const token_id> eos_token_ids() const noexcept override { return eos_; }

  std::shared_ptr<const device_weights> weights() const noexcept override { return weights_; }

  result<std::shared_ptr<const device_weights>>
  prepare_weights(const tensor_source& tensors, const std::shared_ptr<const device_weights>& over,
                  const prepare_options& options) const override {
    auto values =
      over ? dynamic_cast<const fake_weights&>(*over).values() : std::array<std::uint64_t, 2>{};
    for (const auto name : tensors.names())
      if (std::find(fake_weights::names.begin(), fake_weights::names.end(), name)
          == fake_weights::names.end())
        return fail(errc::bad_checkpoint,
                    tensors.origin(name) + ": 1 tensor unknown: " + std::string(name));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::string name = fake_weights::names[i];
      if (over && !tensors.contains(name))
        continue;
      const auto view = tensors.tensor(name);
      if (!view)
        return fail(view);
      if (view->type != kernels::dtype::f32 || view->shape != std::vector<std::size_t>{2})
        return fail(errc::bad_checkpoint,
                    tensors.origin(name) + ": tensor " + name + " has another shape than F32 [2]");
      if (!options.allow_non_finite && first_non_finite(view->bytes, view->type, false))
        return fail(errc::bad_checkpoint,
                    tensors.origin(name) + ": tensor " + name + "; weights must be finite");
      std::memcpy(&values[i], view->bytes.data(), sizeof(values[i]));
    }
    return std::make_shared<const fake_weights>(values);
  }

  void use_weights(std::shared_ptr<const device_weights> weights) override {
    weights_ = std::dynamic_pointer_cast<const fake_weights>(weights);
    ROLLCAST_CHECK(weights_ != nullptr);
  }

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
        const auto before = position == 0 ? weights_->seed() : kv_[slot(s.blocks, position - 1)];
        const auto row = s.row_begin + i;
        states[row] = mix(before, static_cast<std::uint64_t>(rows.tokens[row]));
        kv_[slot(s.blocks, position)] = states[row];
      }
    }
    if (rows.keep_experts) {
      experts_.clear();
      for (const auto state : states)
        for (std::size_t id = 0; id < shape_.experts.position_bytes(); ++id)
          experts_.push_back(static_cast<std::byte>(mix(state, id)));
    }
    logits_.clear();
    for (const auto row : rows.logit_rows)
      logits_.push_back(states[row]);
  }

  std::span<const float> logits() override { return {}; } // it chooses without
  std::span<const std::byte> experts() override { return experts_; }

  void sample(std::span<const kernels::sample_params> how,
              std::span<kernels::sampled_token> out) override {
    for (std::size_t i = 0; i < how.size(); ++i) {
      const auto drawn = mix(mix(logits_[i], how[i].seed), how[i].position);
      const bool end = drawn % how_.mean_length == 0 && how[i].banned_count == 0;
      out[i].token = end ? 0 : static_cast<token_id>(1 + (drawn >> 8) % (how_.vocabulary - 1));
      out[i].logprob = logprob_of(logits_[i], out[i].token);
      out[i].kept_mass = how[i].top_k > 0 ? 0.5f : 1.0f;
    }
  }

  void score(std::span<const float>, std::span<const token_id> tokens,
             std::span<float> out) override {
    for (std::size_t i = 0; i < out.size(); ++i)
      out[i] = logprob_of(logits_[i], tokens[i]);
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
  static float logprob_of(std::uint64_t state, token_id token) noexcept {
    return -static_cast<float>(mix(state, static_cast<std::uint64_t>(token)) % 1'009) / 64.0f;
  }
  std::size_t slot(const std::uint32_t* blocks, std::size_t position) const noexcept {
    return std::size_t{blocks[position / how_.block_tokens]} * how_.block_tokens
           + position % how_.block_tokens;
  }

  fake_device how_;
  device_shape shape_;
  std::shared_ptr<const fake_weights> weights_;
  numerics_profile profile_ = *find_profile(default_profile);
  std::vector<token_id> eos_{0};
  std::vector<std::uint64_t> kv_;
  std::vector<std::uint64_t> logits_;
  std::vector<std::byte> experts_;
};

} // namespace rollcast::test
