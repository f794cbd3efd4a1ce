#include "tests/sim/protocol_sim_client.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace rollcast::sim {
namespace {

/// Bits of two finite floats.
std::uint64_t finite(std::uint64_t bits) {
  return bits & 0x7f7fffff'7f7fffffu;
}

} // namespace

void sim_client::publish() {
  last_update_ = true;
}

void sim_client::train(bool calm) {
  if (!calm && happens(1))
    ask(wire::abort_weights{happens(50) ? 0 : served_() + rng_.below(2)});
  if (!update_) {
    // Scores may wait for this very update: of workers that are all kept apart, none gives them.
    const bool only_scores = std::all_of(asked_.begin(), asked_.end(), [](const auto& a) {
      return std::holds_alternative<wire::score>(a.second);
    });
    if (update_asked_ || !only_scores)
      return;
    if (calm ? last_update_ : updates_left_ > 0 && happens(5))
      return begin();
    if (!calm && happens(1)) {
      update_asked_ = true;
      ask(wire::rollback_weights{});
    }
    return;
  }
  if (!update_->begun || update_->committed || (!calm && happens(50)))
    return;
  if (!update_->slices.empty()) {
    wire::weight_bucket bucket{update_->epoch, ++update_->buckets, {}};
    bucket.slices.push_back(std::move(update_->slices.back()));
    update_->slices.pop_back();
    ask(std::move(bucket));
    return;
  }
  update_->committed = true;
  wire::commit_weights commit{update_->epoch, {}, update_->values.size()};
  if (update_->wrong_hash)
    commit.hash = content_hash{1, 2};
  else if (update_->complete && happens(50))
    commit.hash = test::fake_weights{{update_->values.at(0), update_->values.at(1)}}.hash();
  ask(std::move(commit));
}

void sim_client::begin() {
  updates_left_ -= updates_left_ > 0;
  auto& u = update_.emplace();
  u.complete = last_update_ || happens(50);
  u.wrong_hash = !last_update_ && happens(5);
  wire::begin_weights b;
  b.changed_only = !u.complete;
  b.flip = last_update_ || happens(60) ? wire::weight_flip::chunk_edge
                                       : wire::weight_flip::between_batches;
  b.epoch = last_update_ || happens(60) ? 0 : served_() + 1 + rng_.below(2);
  ask(b);
}

void sim_client::take_begun(const wire::weights_begun& b) {
  if (!update_ || update_->begun)
    return fail_with("an update is begun that nobody asked for");
  update_->begun = true;
  update_->epoch = b.epoch;
  update_->base = served_();
  make_slices();
}

/// Whole tensors, or halves, in any order.
void sim_client::make_slices() {
  auto& u = *update_;
  const auto both = u.complete || happens(30);
  const auto only = rng_.below(2);
  for (std::size_t i = 0; i < 2; ++i) {
    if (!both && i != only)
      continue;
    u.values[i] = finite(rng_.next());
    std::string bytes(sizeof(std::uint64_t), '\0');
    std::memcpy(bytes.data(), &u.values[i], bytes.size());
    const std::string name = test::fake_weights::names[i];
    const std::size_t part = happens(50) ? 8 : 4;
    for (std::size_t at = 0; at < 8; at += part)
      u.slices.push_back({name, kernels::dtype::f32, {2}, at, bytes.substr(at, part)});
  }
  for (std::size_t i = u.slices.size(); i > 1; --i)
    std::swap(u.slices[i - 1], u.slices[rng_.below(i)]);
}

void sim_client::take_served(const wire::request& asked, const wire::weights_served& s) {
  const bool back = std::holds_alternative<wire::rollback_weights>(asked);
  if (!back && !update_)
    return fail_with("an update is served that was refused before");
  if (back) {
    update_asked_ = false;
    ++counts.rolled_back;
  } else {
    const auto u = *std::exchange(update_, std::nullopt);
    // An epoch that was decided when its scheduler died may have been served by nobody.
    const auto* base = truth_.values(u.base);
    auto expected = base ? *base : epoch_values{};
    for (const auto& [i, value] : u.values)
      expected[i] = value;
    // If nobody is left who flipped, this is the first that is heard of it.
    if (s.epoch != u.epoch || u.wrong_hash
        || ((base || u.complete) && !truth_.serves(u.epoch, expected).empty()))
      return fail_with("epoch " + std::to_string(u.epoch) + " is served, but not what was sent");
    ++counts.served;
    last_update_ = false;
  }
  const auto* values = truth_.values(s.epoch);
  if (values && test::fake_weights{*values}.hash() != s.hash)
    fail_with("epoch " + std::to_string(s.epoch)
              + " is said to be served, with a hash that no worker has");
}

void sim_client::take_unserved(const wire::request& asked, const wire::request_failed& why) {
  if (std::holds_alternative<wire::rollback_weights>(asked)) {
    update_asked_ = false;
    return;
  }
  const bool ours = std::holds_alternative<wire::begin_weights>(asked)
                    || std::holds_alternative<wire::weight_bucket>(asked)
                    || std::holds_alternative<wire::commit_weights>(asked);
  if (ours && why.code == errc::frame_malformed)
    return fail_with("a sound part of an update is refused: " + why.message);
  if (!ours || !update_)
    return;
  ++counts.not_served;
  update_.reset();
}

} // namespace rollcast::sim
