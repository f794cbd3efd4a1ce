#include "actors/durable_link.hpp"

#include <utility>
#include <variant>

namespace rollcast {
namespace {

/// Whether it says nothing that a restart could make untrue. That a batch is not known could be: it
/// was forgotten, and the record of that is not on disk.
bool waits_for_nothing(const wire::event_envelope& what) {
  if (const auto* refused = std::get_if<wire::request_failed>(&what.body))
    return what.request_id != 0 && refused->code != errc::unknown_batch;
  return std::holds_alternative<wire::status_report>(what.body);
}

} // namespace

durable_link::durable_link(std::shared_ptr<controller_link> to,
                           std::function<std::uint64_t()> written,
                           std::function<std::uint64_t()> durable)
  : to_(std::move(to)), written_(std::move(written)), durable_(std::move(durable)) {}

void durable_link::send(const std::string& peer, wire::event_envelope what) {
  if (waits_for_nothing(what))
    return to_->send(peer, std::move(what));
  const std::scoped_lock lock{mutex_};
  held_.push_back({written_(), peer, std::move(what)});
  let_go();
}

void durable_link::committed() {
  const std::scoped_lock lock{mutex_};
  let_go();
}

std::size_t durable_link::waiting() const {
  const std::scoped_lock lock{mutex_};
  return held_.size();
}

void durable_link::let_go() {
  const auto durable = durable_();
  for (; !held_.empty() && held_.front().mark <= durable; held_.pop_front())
    to_->send(held_.front().peer, std::move(held_.front().what));
}

} // namespace rollcast
