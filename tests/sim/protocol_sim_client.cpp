#include "tests/sim/protocol_sim_client.hpp"

#include <algorithm>
#include <utility>

namespace rollcast::sim {

sim_client::sim_client(std::uint64_t seed, std::string name, bool trains, bool with_static,
                       sim_truth& truth, std::function<std::uint64_t()> served)
  : rng_(seed), name_(std::move(name)), trains_(trains), truth_(truth), served_(std::move(served)) {
  plan_batches(with_static);
  updates_left_ = trains_ ? rng_.below(4) : 0;
}

void sim_client::plan_batches(bool with_static) {
  static constexpr const char* policies[] = {"", "", "", "divided", "static"};
  for (auto i = 1 + rng_.below(3); i > 0; --i) {
    batch b;
    b.spec.batch_key = name_ + std::to_string(i);
    b.spec.seed = rng_.next();
    b.spec.policy = policies[rng_.below(std::size(policies) - !with_static)];
    b.spec.chunk_tokens = static_cast<std::uint32_t>(3 + rng_.below(14));
    b.spec.force_migration = happens(30);
    b.spec.sampling.max_new_tokens = static_cast<std::uint32_t>(4 + rng_.below(28));
    b.spec.sampling.temperature = happens(50) ? 1.0f : 0.5f;
    if (happens(15))
      b.spec.required_weight_version = 1 + rng_.below(3);
    for (auto g = 1 + rng_.below(3); g > 0; --g) {
      auto& group = b.spec.groups.emplace_back();
      for (auto t = 1 + rng_.below(20); t > 0; --t)
        group.prompt_token_ids.push_back(static_cast<token_id>(1 + rng_.below(900)));
      group.group_size = static_cast<std::uint32_t>(1 + rng_.below(4));
      b.size += group.group_size;
    }
    if (happens(40))
      b.spec.routed_experts_from = static_cast<std::uint32_t>(rng_.below(30));
    b.results.resize(b.size);
    batches_.push_back(std::move(b));
  }
}

std::uint64_t sim_client::ask(wire::request what) {
  out.push_back({++requests_, what});
  asked_.emplace(requests_, std::move(what));
  return requests_;
}

sim_client::batch* sim_client::find(const std::string& key) {
  for (auto& b : batches_)
    if (b.spec.batch_key == key)
      return &b;
  return nullptr;
}

std::string sim_client::reconnect() {
  const auto old = peer();
  ++connections_;
  out.clear();
  asked_.clear();
  update_.reset();
  update_asked_ = false;
  for (auto& b : batches_) {
    b.next = 0;
    b.asking = false;
  }
  return old;
}

bool sim_client::done() const {
  return asked_.empty() && out.empty() && !paused_
         && std::all_of(batches_.begin(), batches_.end(), [](const batch& b) {
              return b.refused || (b.over && (b.failure || b.acknowledged > b.size));
            });
}

void sim_client::act(bool calm) {
  if (trains_)
    train(calm);
  for (auto& b : batches_)
    act(b, calm);
  if (calm && paused_ && asked_.empty())
    ask(wire::resume{});
  if (!calm && happens(6))
    say_anything();
}

void sim_client::act(batch& b, bool calm) {
  if (b.refused || b.asking)
    return;
  if (b.next == 0 && !b.over) {
    if (!calm && happens(70))
      return;
    b.asking = true;
    // Both continue where it was; a submission under the same key is the same batch.
    if (!b.accepted || happens(30))
      ask(b.spec);
    else
      ask(wire::resume_results{b.spec.batch_key, b.have});
    return;
  }
  if (!calm && !b.over && happens(1)) {
    b.asking = true;
    ask(happens(50) ? wire::request{b.spec}
                    : wire::request{wire::resume_results{b.spec.batch_key, b.have}});
    return;
  }
  if (!calm && !b.over && !b.cancelling && happens(1) && happens(20)) {
    b.cancelling = true;
    ask(wire::cancel_batch{b.spec.batch_key});
  }
  collect(b, calm);
}

/// Acknowledges: late, less than it has, and again.
void sim_client::collect(batch& b, bool calm) {
  const auto last = b.over ? b.size + 1 : b.have;
  if (b.failure && b.acknowledged >= last)
    return;
  if (last > b.acknowledged && (calm || happens(20))) {
    const auto part = calm || happens(60) ? last : b.acknowledged + 1;
    const bool said = std::any_of(asked_.begin(), asked_.end(), [&](const auto& a) {
      const auto* ack = std::get_if<wire::ack_results>(&a.second);
      return ack && ack->batch_key == b.spec.batch_key && ack->sequence >= part;
    });
    if (!said || (!calm && happens(10))) {
      b.acknowledging = std::max(b.acknowledging, part);
      ask(wire::ack_results{b.spec.batch_key, part});
    }
  }
}

void sim_client::say_anything() {
  switch (rng_.below(6)) {
    case 0: ask(wire::get_status{}); break;
    case 1:
      if (!paused_ && happens(30)) {
        paused_ = true;
        ask(wire::pause{});
      }
      break;
    case 2:
    case 3:
      if (paused_)
        ask(wire::resume{});
      break;
    default:
      // Late ones, too: of those that wait when the calm begins it shows whether they end.
      if (happens(40))
        ask_scores();
  }
}

void sim_client::ask_scores() {
  wire::score s;
  for (auto n = 1 + rng_.below(5); n > 0; --n) {
    auto& sequence = s.sequences.emplace_back();
    for (auto t = 2 + rng_.below(30); t > 0; --t)
      sequence.token_ids.push_back(static_cast<token_id>(1 + rng_.below(900)));
    sequence.prompt_tokens = 1;
  }
  if (happens(50) && served_() > 0)
    s.weight_version = std::max<std::uint64_t>(1, served_() - rng_.below(2));
  ask(std::move(s));
}

} // namespace rollcast::sim
