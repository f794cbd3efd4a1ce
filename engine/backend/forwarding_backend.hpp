#pragma once

#include "engine/backend/backend.hpp"

#include <memory>
#include <utility>

namespace rollcast {

/// A device that does what another does: derive from it to change one thing of it. Drafts are
/// followed on the host, through `sample`, so that who changes that changes both.
class forwarding_backend : public backend {
public:
  explicit forwarding_backend(std::shared_ptr<backend> inner) : inner_(std::move(inner)) {}

  const device_shape& shape() const noexcept override { return inner_->shape(); }
  const numerics_profile& numerics() const noexcept override { return inner_->numerics(); }
  std::span<const token_id> eos_token_ids() const noexcept override {
    return inner_->eos_token_ids();
  }
  std::shared_ptr<const device_weights> weights() const noexcept override {
    return inner_->weights();
  }
  result<std::shared_ptr<const device_weights>>
  prepare_weights(const tensor_source& tensors, const std::shared_ptr<const device_weights>& over,
                  const prepare_options& options) const override {
    return inner_->prepare_weights(tensors, over, options);
  }
  void use_weights(std::shared_ptr<const device_weights> weights) override {
    inner_->use_weights(std::move(weights));
  }
  void forward(const forward_rows& rows) override { inner_->forward(rows); }
  std::span<const float> logits() override { return inner_->logits(); }
  bool keep_states(const state_wish& which) override { return inner_->keep_states(which); }
  std::span<const float> states() override { return inner_->states(); }
  std::span<const std::byte> experts() override { return inner_->experts(); }
  void borrow(std::shared_ptr<const device_weights> target) override {
    inner_->borrow(std::move(target));
  }
  bool observe(activation_observer* by) override { return inner_->observe(by); }
  void sample(std::span<const kernels::sample_params> how,
              std::span<kernels::sampled_token> out) override {
    inner_->sample(how, out);
  }
  void score(std::span<const float> temperatures, std::span<const token_id> tokens,
             std::span<float> out) override {
    inner_->score(temperatures, tokens, out);
  }
  void export_kv(std::span<const std::uint32_t> blocks, std::size_t groups,
                 std::span<std::byte> image) const override {
    inner_->export_kv(blocks, groups, image);
  }
  void import_kv(std::span<const std::uint32_t> blocks, std::size_t groups,
                 std::span<const std::byte> image) override {
    inner_->import_kv(blocks, groups, image);
  }

protected:
  std::shared_ptr<backend> inner_;
};

} // namespace rollcast
