#include "actors/herald.hpp"

#include <utility>

namespace rollcast {

void herald::serve(registry_actor scheduler, worker_id as) {
  const std::scoped_lock lock{mutex_};
  scheduler_ = std::move(scheduler);
  id_ = as;
  if (!thread_.joinable())
    thread_ = std::jthread{[this](const std::stop_token& stop) { speak(stop); }};
}

void herald::leave() {
  const std::scoped_lock lock{mutex_};
  scheduler_ = nullptr;
  id_ = {};
}

void herald::prepares(std::uint64_t update, std::shared_ptr<const weight_cargo> cargo) {
  const std::scoped_lock lock{mutex_};
  update_ = update;
  cargo_ = std::move(cargo);
}

void herald::set_busy(bool on) {
  const std::scoped_lock lock{mutex_};
  busy_since_ = on ? std::optional{clock::now()} : std::nullopt;
}

void herald::speak(const std::stop_token& stop) {
  std::unique_lock lock{mutex_};
  while (!stop.stop_requested()) {
    stopped_.wait_for(lock, stop, options_.every, [] { return false; });
    const auto held = busy_since_ ? clock::now() - *busy_since_ : clock::duration{0};
    if (stop.stop_requested() || !scheduler_ || held < options_.every || held > options_.busy_max)
      continue;
    weight_news news;
    news.worker = id_;
    news.update = update_;
    news.kind = static_cast<std::uint8_t>(weight_news_kind::progressed);
    news.bytes = cargo_ ? cargo_->bytes_here() : 0;
    caf::anon_send(scheduler_, atom::weights_v, std::move(news));
  }
}

} // namespace rollcast
