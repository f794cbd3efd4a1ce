#include "tests/support/journal_fold.hpp"

#include "cluster/batch/batch_book.hpp"
#include "engine/base/check.hpp"

#include <algorithm>

namespace rollcast::test {
namespace {

/// Takes one record after another into an image.
struct folder {
  journal::image out;
  std::uint64_t unix_ns = 0;

  journal::batch_image& batch(batch_id id) {
    const auto it =
      std::find_if(out.batches.begin(), out.batches.end(), [&](auto& b) { return b.id == id; });
    ROLLCAST_CHECK(it != out.batches.end());
    return *it;
  }

  void operator()(const journal::batch_submitted& r) {
    auto& b = out.batches.emplace_back();
    b.id = r.id;
    b.spec = *r.spec;
    b.spec_hash = hash_of(*r.spec);
    b.first_response = r.first_response;
    b.first_group = r.first_group;
    b.groups = r.spec->groups.size();
    for (const auto& group : r.spec->groups)
      b.size += group.group_size;
    b.responses.resize(b.size);
    b.submitted_unix_ns = unix_ns;
    out.next_batch = r.id.value + 1;
    out.next_group = r.first_group + b.groups;
    out.next_response = r.first_response + b.size;
  }

  void operator()(const journal::batch_started& r) {
    batch(r.id).started = r;
    batch(r.id).started_unix_ns = unix_ns;
  }

  void operator()(const journal::chunk_edge& r) {
    auto& b = batch(r.id);
    auto& to = b.responses[r.ordinal];
    ROLLCAST_CHECK(to.tokens.size() == r.position && to.sequence == 0);
    if (to.versions.empty() || to.versions.back().version != r.weight_version)
      to.versions.push_back({r.weight_version, r.position});
    to.tokens.insert(to.tokens.end(), r.tokens.begin(), r.tokens.end());
    to.logprobs.insert(to.logprobs.end(), r.logprobs.begin(), r.logprobs.end());
    to.kept_masses.insert(to.kept_masses.end(), r.kept_masses.begin(), r.kept_masses.end());
    to.kept_masses.resize(to.tokens.size(), 1.0f);
    b.generated_tokens += r.tokens.size();
  }

  void operator()(const journal::response_finished& r) {
    auto& b = batch(r.id);
    const auto before = std::count_if(b.responses.begin(), b.responses.end(),
                                      [](const auto& x) { return x.sequence != 0; });
    b.responses[r.ordinal].sequence = static_cast<std::uint64_t>(before) + 1;
    b.responses[r.ordinal].reason = r.reason;
  }

  void operator()(const journal::batch_ended& r) {
    batch(r.id).ended = r;
    batch(r.id).ended_unix_ns = unix_ns;
  }

  void operator()(const journal::results_acknowledged& r) {
    auto& b = batch(r.id);
    b.acknowledged = r.sequence;
    for (auto& x : b.responses)
      if (x.sequence != 0 && x.sequence <= r.sequence)
        x.tokens = {}, x.logprobs = x.kept_masses = {};
    if (r.sequence <= b.size)
      return;
    b.responses.clear();
    b.spec.groups.clear();
  }

  void operator()(const journal::batch_forgotten& r) {
    std::erase_if(out.batches, [&](const auto& b) { return b.id == r.id; });
  }

  void operator()(const journal::cluster_identity& r) {
    out.identity.reset();
    if (!r.model.empty())
      out.identity = r;
    else
      out.weights.reset();
  }

  void operator()(const journal::epoch_decided& r) { out.weights = r; }

  void operator()(const journal::epoch_promised& r) {
    out.epoch_promised = std::max(out.epoch_promised, r.epoch);
  }
};

} // namespace

journal::image record_log::image_of(std::size_t count, std::uint64_t generation) const {
  folder f;
  f.out.generation = generation;
  for (std::size_t i = 0; i < count; ++i) {
    f.unix_ns = all[i].unix_ns;
    std::visit(f, all[i].what);
  }
  return std::move(f.out);
}

} // namespace rollcast::test
