#include "actors/outbox.hpp"

#include <unordered_map>
#include <utility>
#include <variant>

namespace rollcast {
namespace {

struct sizes {
  std::size_t operator()(const wire::response_ready& r) const {
    return (r.token_ids.size() + r.prompt_token_ids.size()) * sizeof(token_id)
           + (r.logprobs.size() + r.kept_mass.size()) * sizeof(float) + r.id.size()
           + (r.experts ? r.experts->ids.size() : 0)
           + r.weight_versions.size() * sizeof(wire::weight_span);
  }
  std::size_t operator()(const wire::scored& s) const {
    std::size_t bytes = 0;
    for (const auto& row : s.rows)
      bytes += sizeof(row) + row.logprobs.size() * sizeof(float);
    return bytes;
  }
  std::size_t operator()(const wire::status_report& s) const {
    return s.workers.size() * sizeof(wire::worker_status)
           + s.batches.size() * (sizeof(wire::batch_status) + name_bytes);
  }
  std::size_t operator()(const wire::batch_done& d) const {
    return d.summary.workers.size() * sizeof(wire::worker_summary);
  }
  std::size_t operator()(const wire::request_failed& f) const { return f.message.size(); }
  template <class Small>
  std::size_t operator()(const Small&) const {
    return 0;
  }
  static constexpr std::size_t name_bytes = 64;
};

} // namespace

std::size_t bytes_of(const wire::event_envelope& what) {
  return sizeof(wire::event_envelope) + std::visit(sizes{}, what.body);
}

/// Outlives the outbox with the last burden.
struct outbox::tally {
  explicit tally(outbox_bounds b) : bounds(b) {}
  bool has_room(const std::string& peer, bool answers) const {
    const auto it = by_peer.find(peer);
    const auto has = it == by_peer.end() ? std::size_t{0} : it->second;
    const auto most = all >= bounds.bytes_of_all ? bounds.bytes_of_reader : bounds.bytes_of_peer;
    return has < (answers ? 2 * most : most);
  }

  const outbox_bounds bounds;
  mutable std::mutex mutex; ///< Guards what follows.
  std::unordered_map<std::string, std::size_t> by_peer;
  std::size_t all = 0;
};

struct outbox::load {
  load(std::shared_ptr<tally> t, std::string p, std::size_t b)
    : of(std::move(t)), peer(std::move(p)), bytes(b) {}
  ~load() {
    const std::scoped_lock lock{of->mutex};
    of->all -= bytes;
    const auto it = of->by_peer.find(peer);
    if ((it->second -= bytes) == 0)
      of->by_peer.erase(it);
  }
  load(const load&) = delete;
  load& operator=(const load&) = delete;

  std::shared_ptr<tally> of;
  std::string peer;
  std::size_t bytes;
};

outbox::outbox(outbox_bounds bounds) : tally_(std::make_shared<tally>(bounds)) {}

outbox::burden outbox::charge(const std::string& peer, std::size_t bytes, bool answers) {
  {
    const std::scoped_lock lock{tally_->mutex};
    if (!tally_->has_room(peer, answers))
      return nullptr;
    tally_->by_peer[peer] += bytes;
    tally_->all += bytes;
  }
  return std::make_shared<const load>(tally_, peer, bytes);
}

bool outbox::post(const std::string& peer, wire::event_envelope what) {
  auto weight = charge(peer, bytes_of(what), what.request_id != 0);
  const std::scoped_lock lock{mutex_};
  if (weight) {
    next_.letters.push_back({peer, std::move(what), std::move(weight)});
    return true;
  }
  auto& unanswered = next_.dropped[peer];
  if (what.request_id != 0)
    unanswered.push_back(what.request_id);
  return false;
}

outbox::turn outbox::take() {
  const std::scoped_lock lock{mutex_};
  return std::exchange(next_, {});
}

std::size_t outbox::bytes_for(const std::string& peer) const {
  const std::scoped_lock lock{tally_->mutex};
  const auto it = tally_->by_peer.find(peer);
  return it == tally_->by_peer.end() ? 0 : it->second;
}

} // namespace rollcast
