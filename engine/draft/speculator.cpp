#include "engine/draft/speculator.hpp"

#include "engine/base/check.hpp"

#include <algorithm>
#include <chrono>

namespace rollcast {

namespace {

/// A probe's drafted token counts so much more when rows are given out: its group waits for it.
constexpr float probe_worth = 1.5f;
/// Longest pause after look-ups that did not pay: what changes slowly is asked slowly.
constexpr std::uint32_t pause_max = 16;

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

} // namespace

std::optional<speculation> find_speculation(std::string_view name) {
  if (name == "off")
    return speculation::off;
  if (name == "self")
    return speculation::self;
  if (name == "group")
    return speculation::group;
  if (name == "auto")
    return speculation::auto_;
  return std::nullopt;
}

std::string_view to_string(speculation how) {
  switch (how) {
    case speculation::off: return "off";
    case speculation::self: return "self";
    case speculation::group: return "group";
    case speculation::auto_: return "auto";
  }
  return "off";
}

speculator::speculator(const speculation_options& options, std::optional<step_costs> costs)
  : options_(options), costs_(std::move(costs)) {
  ROLLCAST_CHECK(options.how != speculation::auto_ || costs_);
}

// -- what was written ---------------------------------------------------------

speculator::group_record& speculator::touch(group_id group) {
  const auto [it, fresh] = groups_.try_emplace(group);
  auto& g = it->second;
  if (fresh)
    g.use = uses_.insert(uses_.end(), group);
  else
    uses_.splice(uses_.end(), uses_, g.use);
  return g;
}

void speculator::write(group_record& g, std::uint32_t stream, std::span<const token_id> tokens) {
  g.index.append(stream, tokens);
  const auto bytes = g.index.bytes();
  figures_.bytes += bytes - g.bytes;
  g.bytes = bytes;
}

void speculator::expire() {
  // The one used last stays, however large it is.
  while (figures_.bytes > options_.bytes_max && uses_.size() > 1) {
    const auto it = groups_.find(uses_.front());
    figures_.bytes -= it->second.bytes;
    for (const auto& [response, stream] : it->second.streams)
      followed_.erase(response);
    groups_.erase(it);
    uses_.pop_front();
  }
  figures_.groups = groups_.size();
}

void speculator::follow(response_id response, group_id group, bool probe,
                        std::span<const token_id> tokens) {
  // A response that drafts from itself alone is a group of its own.
  const group_id home = options_.how == speculation::self ? group_id{response.value} : group;
  auto& g = touch(home);
  auto [stream, fresh] = g.streams.try_emplace(response, 0);
  if (fresh)
    stream->second = g.index.open();
  const auto known = g.index.size(stream->second);
  if (known < tokens.size())
    write(g, stream->second, tokens.subspan(known));
  followed_[response] = {home, stream->second, probe, {}};
  expire();
}

std::uint32_t speculator::hear(group_id group, response_id sibling, std::uint32_t position,
                               std::span<const token_id> tokens) {
  auto& g = touch(group);
  auto [stream, fresh] = g.streams.try_emplace(sibling, 0);
  if (fresh)
    stream->second = g.index.open();
  const auto known = static_cast<std::uint32_t>(g.index.size(stream->second));
  if (position > known || position + tokens.size() <= known)
    return known;
  write(g, stream->second, tokens.subspan(known - position));
  expire();
  return static_cast<std::uint32_t>(position + tokens.size());
}

// -- drafts -------------------------------------------------------------------

void speculator::look_up(std::span<const draft_seat> seats) {
  candidates_.clear();
  for (std::uint32_t i = 0; i < seats.size(); ++i) {
    const auto it = followed_.find(seats[i].response);
    if (it == followed_.end())
      continue;
    auto& f = it->second;
    f.draft.clear();
    const auto room = std::min(options_.tokens_max, seats[i].room);
    groups_.at(f.group).index.speculate(f.stream, {room, 1, options_.survival_min}, f.draft);
    float survival = 1;
    for (std::uint32_t place = 0; place < f.draft.size(); ++place) {
      const auto said = f.draft[place].probability;
      survival *= options_.how == speculation::auto_ ? acceptance_.chance(place, said) : said;
      if (survival < options_.survival_min)
        break;
      candidates_.push_back({f.probe ? survival * probe_worth : survival, survival, i, place});
    }
  }
}

std::size_t speculator::budget(const step_load& load, std::size_t seats) {
  const auto most = std::min<std::size_t>(candidates_.size(), load.rows_free);
  if (options_.how != speculation::auto_)
    return most;
  survivals_.clear();
  for (std::size_t i = 0; i < most; ++i)
    survivals_.push_back(candidates_[i].survival);
  std::sort(survivals_.begin(), survivals_.end(), std::greater<>{});
  return choose_budget(survivals_, static_cast<std::uint32_t>(seats), load.rows, load.kv_tokens,
                       *costs_);
}

void speculator::draft(std::span<const draft_seat> seats, const step_load& load) {
  if (pause_left_ > 0) {
    --pause_left_;
    ++figures_.skipped;
    return;
  }
  const auto begin = std::chrono::steady_clock::now();
  look_up(seats);
  // The worth of a draft's tokens falls from place to place, so a prefix of this order is a prefix
  // of every draft. Ties by seat: no address decides.
  std::sort(candidates_.begin(), candidates_.end(), [](const candidate& a, const candidate& b) {
    if (a.worth != b.worth)
      return a.worth > b.worth;
    return a.seat != b.seat ? a.seat < b.seat : a.place < b.place;
  });
  const auto chosen = budget(load, seats.size());
  lengths_.assign(seats.size(), 0);
  for (std::size_t i = 0; i < chosen; ++i)
    ++lengths_[candidates_[i].seat];
  for (std::size_t i = 0; i < seats.size(); ++i) {
    if (lengths_[i] == 0)
      continue;
    ++figures_.drafts;
    const auto& draft = followed_.at(seats[i].response).draft;
    for (std::uint32_t place = 0; place < lengths_[i]; ++place)
      seats[i].draft->push_back(draft[place].token);
  }
  if (options_.how == speculation::auto_) {
    // Nothing found is found out cheaply; what does not pay now will not at the next step either.
    pause_ = chosen > 0 || candidates_.empty() ? 0 : std::min(2 * pause_ + 1, pause_max);
    pause_left_ = pause_;
  }
  figures_.draft_seconds += seconds_since(begin);
}

void speculator::learn(std::span<const draft_outcome> outcomes, const step_load& load,
                       double seconds) {
  auto rows = load.rows;
  for (const auto& o : outcomes) {
    rows += o.drafted;
    const auto it = followed_.find(o.response);
    if (it == followed_.end())
      continue;
    auto& f = it->second;
    for (std::uint32_t place = 0; place < std::min(o.drafted, o.accepted + 1); ++place)
      acceptance_.observe(place, f.draft[place].probability, place < o.accepted);
    write(groups_.at(f.group), f.stream, o.fresh);
  }
  if (costs_)
    costs_->observe(rows, load.kv_tokens, seconds);
  expire();
}

} // namespace rollcast
