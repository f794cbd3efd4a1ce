#include "actors/durable_link.hpp"

#include "actors/outbox.hpp"

#include <utility>
#include <variant>

namespace rollcast {
namespace {

/// Whether a refusal may be news of what is not on disk yet: that a batch is forgotten, that an
/// update whose epoch was decided is taken back. That the journal cannot write is said at once:
/// whoever hears it is to publish again, whether the decision comes back with a restart or not.
bool may_be_news(errc code) {
  return code == errc::unknown_batch || code == errc::cancelled || code == errc::timed_out
         || code == errc::peer_lost;
}

/// Whether it says nothing that a restart could make untrue.
bool waits_for_nothing(const wire::event_envelope& what) {
  if (const auto* refused = std::get_if<wire::request_failed>(&what.body))
    return what.request_id != 0 && !may_be_news(refused->code);
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
  const auto bytes = bytes_of(what);
  // A disk that is full for long, and controllers that ask for their results again and again.
  if (what.request_id == 0 && held_bytes_ + bytes > held_bytes_max)
    return;
  held_.push_back({written_(), bytes, peer, std::move(what)});
  held_bytes_ += bytes;
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
  for (; !held_.empty() && held_.front().mark <= durable; held_.pop_front()) {
    held_bytes_ -= held_.front().bytes;
    to_->send(held_.front().peer, std::move(held_.front().what));
  }
}

} // namespace rollcast
