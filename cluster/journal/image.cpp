#include "cluster/journal/image.hpp"

#include "cluster/wire/batch_hash.hpp"

#include <algorithm>
#include <utility>

namespace rollcast::journal {

namespace {

batch_image* find(image& all, batch_id id) {
  const auto at = std::find_if(all.batches.begin(), all.batches.end(),
                               [id](const batch_image& b) { return b.id == id; });
  return at == all.batches.end() ? nullptr : &*at;
}

void apply_to(image& all, const batch_submitted& x, std::uint64_t now) {
  batch_image batch;
  batch.id = x.id;
  batch.spec = *x.spec;
  batch.spec_hash = hash_of(*x.spec);
  batch.first_response = x.first_response;
  batch.first_group = x.first_group;
  batch.owner = x.owner;
  batch.groups = x.spec->groups.size();
  for (const auto& group : x.spec->groups)
    batch.size += group.group_size;
  batch.responses.resize(batch.size);
  batch.submitted_unix_ns = now;
  all.next_batch = std::max(all.next_batch, x.id.value + 1);
  all.next_group = std::max(all.next_group, x.first_group + batch.groups);
  all.next_response = std::max(all.next_response, x.first_response + batch.size);
  const auto at = std::find_if(all.batches.begin(), all.batches.end(),
                               [&](const auto& b) { return b.id > x.id; });
  all.batches.insert(at, std::move(batch));
}

void apply_to(batch_image& batch, const batch_started& x, std::uint64_t now) {
  batch.started = x;
  batch.started_unix_ns = now;
}

void apply_to(batch_image& batch, const chunk_edge& x, std::uint64_t) {
  if (x.tokens.empty())
    return;
  auto& r = batch.responses[x.ordinal];
  if (r.versions.empty() || r.versions.back().version != x.weight_version)
    r.versions.push_back({x.weight_version, x.position});
  r.tokens.insert(r.tokens.end(), x.tokens.begin(), x.tokens.end());
  r.logprobs.insert(r.logprobs.end(), x.logprobs.begin(), x.logprobs.end());
  if (x.kept_masses.empty())
    r.kept_masses.insert(r.kept_masses.end(), x.tokens.size(), 1.0f);
  else
    r.kept_masses.insert(r.kept_masses.end(), x.kept_masses.begin(), x.kept_masses.end());
  r.experts.insert(r.experts.end(), x.experts.begin(), x.experts.end());
}

void apply_to(batch_image& batch, const response_finished& x, std::uint64_t) {
  auto& r = batch.responses[x.ordinal];
  r.reason = x.reason;
  r.sequence = 1
               + static_cast<std::uint64_t>(
                 std::count_if(batch.responses.begin(), batch.responses.end(),
                               [](const response_image& other) { return other.sequence != 0; }));
}

void apply_to(batch_image& batch, const batch_failed& x, std::uint64_t) {
  batch.failure = x.why;
}

void apply_to(batch_image& batch, const batch_ended& x, std::uint64_t now) {
  batch.ended = x;
  batch.ended_unix_ns = now;
}

void apply_to(batch_image& batch, const results_acknowledged& x, std::uint64_t) {
  batch.acknowledged = std::max(batch.acknowledged, x.sequence);
  for (auto& r : batch.responses)
    if (r.sequence != 0 && r.sequence <= batch.acknowledged) {
      response_image left;
      left.sequence = r.sequence;
      left.reason = r.reason;
      batch.tokens_acknowledged += r.tokens.size();
      r = std::move(left);
    }
  if (batch.acknowledged > batch.size) {
    batch.responses.clear();
    batch.spec.groups.clear();
  }
}

void apply_to(image& all, const batch_forgotten& x, std::uint64_t) {
  std::erase_if(all.batches, [&](const batch_image& b) { return b.id == x.id; });
}

void apply_to(image& all, const cluster_identity& x, std::uint64_t) {
  all.identity.reset();
  if (!x.model.empty())
    all.identity = x;
}

void apply_to(image& all, const epoch_decided& x, std::uint64_t) {
  all.weights = x;
}

void apply_to(image& all, const epoch_promised& x, std::uint64_t) {
  all.epoch_promised = std::max(all.epoch_promised, x.epoch);
}

} // namespace

void apply(image& before, const record& what, std::uint64_t unix_ns) {
  std::visit(
    [&](const auto& x) {
      if constexpr (requires { apply_to(before, x, unix_ns); })
        apply_to(before, x, unix_ns);
      else if (auto* batch = find(before, x.id))
        apply_to(*batch, x, unix_ns);
    },
    what);
}

} // namespace rollcast::journal
