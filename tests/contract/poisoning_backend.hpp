#pragma once

#include "engine/backend/forwarding_backend.hpp"
#include "engine/model/config.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

namespace rollcast::test {

/// A device that turns all to NaN before each pass that the pass may not read: every KV slot but
/// those before a sequence's first row, and every activation row. Whoever is not in a pass loses
/// its KV, so no response may sit one out; of a drafter's model, whose contexts do, the KV stays.
class poisoning_backend final : public forwarding_backend {
public:
  poisoning_backend(std::shared_ptr<backend> inner, const model_config& config)
    : forwarding_backend(std::move(inner)), head_dim_(config.head_dim), heads_(config.kv_heads),
      layers_(config.layers), latent_(config.latent.rank != 0),
      taken_width_(config.draft.state_width), blocks_(inner_->shape().kv_blocks) {
    std::iota(blocks_.begin(), blocks_.end(), 0u);
    image_.resize(groups() * shape().kv_group_bytes);
  }

  void forward(const forward_rows& rows) override {
    const std::vector<bool> live = live_slots(rows);
    inner_->export_kv(blocks_, groups(), image_);
    const std::vector<std::byte> before = image_;
    poison_activations();
    image_ = before;
    for (std::size_t slot = 0; slot < live.size() && taken_width_ == 0; ++slot)
      if (!live[slot])
        poison_slot(slot);
    inner_->import_kv(blocks_, groups(), image_);
    inner_->forward(rows);
    ++passes_;
  }

  std::size_t passes() const noexcept { return passes_; }
  std::size_t poisoned() const noexcept { return poisoned_; } ///< Slots, over all passes.

private:
  std::size_t groups() const {
    return std::size_t{shape().kv_blocks} * shape().block_tokens / kernels::kv_group;
  }

  std::vector<bool> live_slots(const forward_rows& rows) const {
    const auto block = shape().block_tokens;
    std::vector<bool> live(std::size_t{shape().kv_blocks} * block);
    for (const auto& s : rows.sequences)
      for (std::uint32_t p = 0; p < s.position; ++p)
        live[std::size_t{s.blocks[p / block]} * block + p % block] = true;
    // A branch's own blocks hold nothing yet.
    for (const auto& c : rows.copies)
      std::fill_n(live.begin() + static_cast<std::ptrdiff_t>(std::size_t{c.to} * block), block,
                  false);
    return live;
  }

  /// A full pass over NaN keys and values leaves NaN in every buffer.
  void poison_activations() {
    std::memset(image_.data(), 0xff, image_.size());
    inner_->import_kv(blocks_, groups(), image_);
    const auto rows = std::min(shape().rows_max, shape().positions_max - 1);
    const std::vector<token_id> tokens(rows, 1);
    std::vector<kernels::row_place> places;
    std::vector<std::uint32_t> wanted(shape().logit_rows_max);
    std::iota(wanted.begin(), wanted.end(), 0u);
    for (std::uint32_t i = 0; i < rows; ++i)
      places.push_back({1 + i, blocks_[(1 + i) / shape().block_tokens]});
    const kernels::attention_sequence sequence{blocks_.data(), 0, rows, 1};
    const std::vector<float> taken(rows * taken_width_, std::numeric_limits<float>::quiet_NaN());
    forward_rows pass{tokens, places, {&sequence, 1}, wanted};
    pass.keep_states = taken_width_ != 0;
    pass.taken = taken;
    inner_->forward(pass);
    const auto logits = inner_->logits();
    EXPECT_TRUE(std::isnan(logits.front()) && std::isnan(logits.back()));
  }

  void poison_slot(std::size_t slot) {
    const std::size_t tiles = latent_ ? 1 : 2; // values that are part of the keys have none
    const std::size_t element =
      shape().kv_group_bytes / (layers_ * heads_ * tiles * kernels::kv_group * head_dim_);
    const std::size_t tile = kernels::kv_group * head_dim_ * element;
    const std::size_t lane = slot % kernels::kv_group;
    for (std::size_t layer = 0; layer < layers_; ++layer)
      for (std::size_t head = 0; head < heads_; ++head) {
        std::byte* k =
          image_.data()
          + ((layer * groups() + slot / kernels::kv_group) * heads_ + head) * tiles * tile;
        for (std::size_t d = 0; d < head_dim_; ++d)
          std::memset(k + (d * kernels::kv_group + lane) * element, 0xff, element);
        if (!latent_)
          std::memset(k + tile + lane * head_dim_ * element, 0xff, head_dim_ * element);
      }
    ++poisoned_;
  }

  std::size_t head_dim_;
  std::size_t heads_;
  std::size_t layers_;
  bool latent_;
  std::size_t taken_width_; ///< Of a drafter's model; 0: of a target.
  std::vector<std::uint32_t> blocks_;
  std::vector<std::byte> image_;
  std::size_t passes_ = 0;
  std::size_t poisoned_ = 0;
};

} // namespace rollcast::test
