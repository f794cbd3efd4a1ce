#include "actors/status_board.hpp"

#include "actors/probe.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace rollcast {

namespace {

constexpr std::uint64_t second_ns = 1'000'000'000;
/// A little less than a second, so that ticks of 200 ms make a second and not more.
constexpr std::uint64_t interval_ns = 950'000'000;
constexpr std::size_t history_max = 120;
constexpr std::size_t averaged = 10;
constexpr std::uint64_t loss_shown_ns = 600 * second_ns;
constexpr std::size_t losses_max = 8;

} // namespace

status_board::status_board(std::string version) : version_(std::move(version)) {}

std::string status_board::json() const {
  std::shared_ptr<const cluster_view> view;
  std::uint64_t made_ns = 0;
  {
    const std::scoped_lock lock{mutex_};
    view = pinned_;
    made_ns = pinned_ns_;
  }
  if (!view)
    return "{}";
  return to_json(*view, static_cast<double>(steady_ns() - made_ns) * 1e-9);
}

bool status_board::due(std::uint64_t now_ns) {
  if (looked_ns_ != 0 && now_ns - looked_ns_ < interval_ns)
    return false;
  passed_s_ = looked_ns_ == 0 ? 0 : static_cast<double>(now_ns - looked_ns_) * 1e-9;
  looked_ns_ = now_ns;
  rate_ = 0;
  before_ = std::exchange(heard_, {});
  return true;
}

double status_board::pace(std::uint64_t worker, std::uint64_t tokens) {
  heard_[worker] = tokens;
  const auto it = before_.find(worker);
  if (it == before_.end() || tokens < it->second || passed_s_ <= 0)
    return 0;
  const auto rate = static_cast<double>(tokens - it->second) / passed_s_;
  rate_ += rate;
  return rate;
}

void status_board::lost(const std::string& name) {
  losses_.push_back({name, looked_ns_});
  if (losses_.size() > losses_max)
    losses_.pop_front();
}

void status_board::pin(cluster_view view) {
  view.version = version_;
  add_throughput(view);
  add_losses(view);
  auto made = std::make_shared<const cluster_view>(std::move(view));
  const std::scoped_lock lock{mutex_};
  pinned_ = std::move(made);
  pinned_ns_ = steady_ns();
}

void status_board::add_throughput(cluster_view& view) {
  history_.push_back(rate_);
  if (history_.size() > history_max)
    history_.pop_front();
  view.history.assign(history_.begin(), history_.end());
  const auto n = std::min(averaged, history_.size());
  view.tokens_per_s =
    std::accumulate(history_.end() - static_cast<std::ptrdiff_t>(n), history_.end(), 0.0)
    / static_cast<double>(n);
}

void status_board::add_losses(cluster_view& view) {
  std::erase_if(losses_, [&](const loss& l) { return looked_ns_ - l.at_ns > loss_shown_ns; });
  for (const auto& l : losses_)
    view.alerts.push_back({true, "Worker " + l.name + " was lost "
                                   + std::to_string((looked_ns_ - l.at_ns) / second_ns)
                                   + " s ago; its chunks run elsewhere."});
}

} // namespace rollcast
