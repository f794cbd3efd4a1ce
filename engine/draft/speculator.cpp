#include "engine/draft/speculator.hpp"

#include "engine/base/check.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

namespace rollcast {

namespace {

/// Longest pause after look-ups that did not pay: what changes slowly is asked slowly.
constexpr std::uint32_t pause_max = 16;
/// So many tokens of a group wait for the index when more are told of: there they take ten times
/// the memory, which must be counted.
constexpr std::size_t unwritten_max = 4096;

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
  if (name == "mtp")
    return speculation::mtp;
  if (name == "eagle3")
    return speculation::eagle3;
  if (name == "auto")
    return speculation::auto_;
  return std::nullopt;
}

std::string_view to_string(speculation how) {
  switch (how) {
    case speculation::off: return "off";
    case speculation::self: return "self";
    case speculation::group: return "group";
    case speculation::mtp: return "mtp";
    case speculation::eagle3: return "eagle3";
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

std::uint32_t speculator::open(group_record& g, response_id response) {
  const auto [stream, fresh] = g.streams.try_emplace(response, 0);
  if (fresh) {
    stream->second = g.index.open();
    g.unwritten.emplace_back();
  }
  return stream->second;
}

/// Tokens that a stream has, in the index or not.
std::size_t speculator::known(const group_record& g, std::uint32_t stream) const {
  return g.index.size(stream) + g.unwritten[stream].size();
}

void speculator::write_later(group_record& g, std::uint32_t stream,
                             std::span<const token_id> tokens) {
  auto& unwritten = g.unwritten[stream];
  unwritten.insert(unwritten.end(), tokens.begin(), tokens.end());
  g.unwritten_tokens += tokens.size();
  count_bytes(g);
}

/// Brings the index up to date with what waits for it.
void speculator::index_all(group_record& g) {
  if (g.unwritten_tokens == 0)
    return;
  const auto begin = std::chrono::steady_clock::now();
  for (std::uint32_t stream = 0; g.unwritten_tokens > 0 && stream < g.unwritten.size(); ++stream) {
    const auto tokens = std::exchange(g.unwritten[stream], {});
    g.index.append(stream, tokens);
    g.unwritten_tokens -= tokens.size();
  }
  count_bytes(g);
  overdue_s_ += seconds_since(begin);
}

void speculator::count_bytes(group_record& g) {
  const auto bytes = g.index.bytes() + g.unwritten_tokens * sizeof(token_id);
  figures_.bytes += bytes - g.bytes;
  g.bytes = bytes;
}

/// Brings the index of every group that sits here up to date.
void speculator::catch_up(std::span<const draft_seat> seats) {
  sitting_.clear();
  for (const auto& seat : seats) {
    const auto it = followed_.find(seat.response);
    sitting_.push_back(it == followed_.end() ? nullptr : &it->second);
    if (sitting_.back() == nullptr)
      continue;
    const auto& f = it->second;
    auto& g = groups_.at(f.group);
    index_all(g);
    if (const auto has = g.index.size(f.stream); has < seat.tokens.size())
      g.index.append(f.stream, seat.tokens.subspan(has));
    count_bytes(g);
  }
}

void speculator::expire() {
  // The one used last stays, however large it is.
  while (figures_.bytes > options_.bytes_max && uses_.size() > 1)
    erase(groups_.find(uses_.front()));
  figures_.groups = groups_.size();
}

void speculator::erase(std::unordered_map<group_id, group_record>::iterator it) {
  figures_.bytes -= it->second.bytes;
  for (const auto& [response, stream] : it->second.streams)
    followed_.erase(response);
  uses_.erase(it->second.use);
  groups_.erase(it);
}

void speculator::forget(group_id group) {
  for (auto it = groups_.begin(); it != groups_.end();) {
    const auto here = it++;
    if (here->second.of == group)
      erase(here);
  }
  figures_.groups = groups_.size();
}

void speculator::follow(response_id response, group_id group, bool probe,
                        std::span<const token_id> tokens) {
  // A response that drafts from itself alone is a group of its own.
  const group_id home = options_.how == speculation::self ? group_id{response.value} : group;
  auto& g = touch(home);
  g.of = group;
  const auto stream = open(g, response);
  if (const auto has = known(g, stream); has < tokens.size())
    write_later(g, stream, tokens.subspan(has));
  if (g.unwritten_tokens > unwritten_max)
    index_all(g);
  followed_[response] = {home, stream, probe, {}, {}};
  expire();
}

void speculator::gone(response_id response, std::span<const token_id> tokens) {
  if (model_)
    model_->gone(response, tokens);
  parked(response, tokens);
}

/// Its siblings may draft from all that it has.
void speculator::parked(response_id response, std::span<const token_id> tokens) {
  const auto it = followed_.find(response);
  if (it == followed_.end())
    return;
  auto& g = groups_.at(it->second.group);
  if (const auto has = known(g, it->second.stream); has < tokens.size())
    write_later(g, it->second.stream, tokens.subspan(has));
}

void speculator::forget_all() {
  followed_.clear();
  groups_.clear();
  uses_.clear();
  figures_.bytes = figures_.groups = 0;
}

std::uint32_t speculator::hear(group_id group, response_id sibling, std::uint32_t position,
                               std::span<const token_id> tokens) {
  auto& g = touch(group);
  g.of = group;
  const auto stream = open(g, sibling);
  const auto has = static_cast<std::uint32_t>(known(g, stream));
  if (position > has || position + tokens.size() <= has)
    return has;
  write_later(g, stream, tokens.subspan(has - position));
  if (g.unwritten_tokens > unwritten_max)
    index_all(g);
  expire();
  return static_cast<std::uint32_t>(position + tokens.size());
}

// -- drafts -------------------------------------------------------------------

void speculator::look_up(followed& f, const draft_seat& seat, std::uint32_t number) {
  const auto tokens_max =
    options_.tree_width > 1 ? options_.tokens_max : std::min(options_.tokens_max, seat.room);
  const auto& g = groups_.at(f.group);
  f.draft.clear();
  if (g.index.size(f.stream) != seat.tokens.size())
    return; // it was further already, elsewhere: what follows that is not what comes next here
  g.index.speculate(f.stream, {tokens_max, options_.tree_width, options_.survival_min}, f.draft);
  f.at.assign(f.draft.size(), -1);
  chances_.clear();
  depths_.clear();
  for (std::uint32_t node = 0; node < f.draft.size(); ++node) {
    const auto& given = f.draft[node];
    const auto parent = static_cast<std::size_t>(given.parent);
    const auto depth = given.parent < 0 ? 0 : depths_[parent] + 1;
    const auto above = given.parent < 0 ? 1.0f : chances_[parent];
    const auto survival =
      above
      * (options_.how == speculation::auto_ ? chance(g, depth, given.probability)
                                            : given.probability);
    depths_.push_back(depth);
    chances_.push_back(survival);
    if (survival >= options_.survival_min && depth < seat.room)
      candidates_.push_back({f.probe ? survival * probe_worth : survival, survival, number, node});
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
  return choose_budget(survivals_, static_cast<std::uint32_t>(seats), load, *costs_);
}

/// Looks up what the groups would draft, and how much of it pays.
void speculator::plan_group(std::span<const draft_seat> seats, const step_load& load) {
  candidates_.clear();
  chosen_ = 0;
  promised_ = 0;
  overdue_s_ = 0;
  const bool held = options_.how == speculation::auto_ && !guard_.admits(load.rows);
  if (held || pause_left_ > 0) {
    pause_left_ -= pause_left_ > 0 ? 1 : 0;
    ++figures_.skipped;
    looked_ = false;
    return;
  }
  const auto begin = std::chrono::steady_clock::now();
  catch_up(seats);
  if (!looked_)
    overdue_s_ = seconds_since(begin);
  looked_ = true;
  for (std::uint32_t seat = 0; seat < seats.size(); ++seat)
    if (sitting_[seat] != nullptr)
      look_up(*sitting_[seat], seats[seat], seat);
  // No token is worth more than its parent, which has the lower number, so in this order every
  // prefix is made of whole trees. Ties by seat: no address decides.
  std::sort(candidates_.begin(), candidates_.end(), [](const candidate& a, const candidate& b) {
    if (a.worth != b.worth)
      return a.worth > b.worth;
    return a.seat != b.seat ? a.seat < b.seat : a.node < b.node;
  });
  chosen_ = budget(load, seats.size());
  for (std::size_t i = 0; i < chosen_; ++i)
    promised_ += static_cast<double>(candidates_[i].survival);
  if (options_.how != speculation::auto_)
    return;
  // Nothing found is found out cheaply; what does not pay now will not at the next step either.
  pause_ = chosen_ > 0 || candidates_.empty() ? 0 : std::min(2 * pause_ + 1, pause_max);
  pause_left_ = pause_;
}

void speculator::commit_group(std::span<const draft_seat> seats) {
  for (std::size_t i = 0; i < chosen_; ++i) {
    auto& f = *sitting_[candidates_[i].seat];
    auto& draft = *seats[candidates_[i].seat].draft;
    const auto& node = f.draft[candidates_[i].node];
    figures_.drafts += draft.empty() ? 1 : 0;
    f.at[candidates_[i].node] = static_cast<std::int32_t>(draft.size());
    draft.push_back({node.token, node.parent < 0 ? -1 : f.at[static_cast<std::size_t>(node.parent)],
                     node.probability});
  }
}

void speculator::draft(std::span<const draft_seat> seats, const step_load& load) {
  const auto begin = std::chrono::steady_clock::now();
  plan_group(seats, load);
  source_ = chosen_ > 0 ? source::group : source::none;
  if (model_ && draft_with_model(seats, load))
    source_ = source::model;
  if (source_ == source::group)
    commit_group(seats);
  const auto spent = seconds_since(begin);
  figures_.draft_seconds += spent;
  drafting_s_ = spent - overdue_s_;
}

float speculator::chance(const group_record& g, std::size_t place, float said) const {
  // What holds for a group is learnt from it; until then from all; until then it is the drafter's
  // word.
  return g.seen.chance(place, said, acceptance_.chance(place, said, said));
}

void speculator::learn(const draft_outcome& outcome, acceptance& of_group) {
  // Every token that was verified behind right ones only says something.
  std::int32_t parent = -1;
  for (std::size_t place = 0; place <= outcome.accepted; ++place) {
    const auto above = parent;
    for (std::size_t i = static_cast<std::size_t>(above + 1); i < outcome.draft.size(); ++i) {
      const auto& node = outcome.draft[i];
      if (node.parent != above)
        continue;
      const bool right = place < outcome.accepted && node.token == outcome.fresh[place];
      acceptance_.observe(place, node.probability, right);
      of_group.observe(place, node.probability, right);
      if (right)
        parent = static_cast<std::int32_t>(i);
    }
  }
}

void speculator::judge(const step_load& load, std::size_t drafted, std::size_t tokens,
                       std::size_t seats, double seconds) {
  const auto plain = costs_->first_seconds({load.rows, load.kv_tokens});
  // A model that proposed nothing worth a row has cost its time all the same.
  if (source_ == source::model)
    model_guard_.drafted(load.rows, seconds + drafting_s_, plain, tokens, seats);
  else if (drafted > 0)
    guard_.drafted(load.rows, seconds + drafting_s_, plain, tokens, seats);
  if (source_ != source::model && drafted == 0)
    for (auto* guard : {&guard_, &model_guard_})
      guard->plain(load.rows, seconds, plain);
  costs_->observe({load.rows + static_cast<std::uint32_t>(drafted), load.kv_tokens,
                   drafted * load.seat_kv_tokens},
                  seconds);
}

void speculator::learn(std::span<const draft_outcome> outcomes, const step_load& load,
                       double seconds) {
  std::size_t drafted = 0, tokens = 0;
  for (const auto& o : outcomes) {
    drafted += o.draft.size();
    tokens += o.fresh.size();
    if (const auto it = followed_.find(o.response);
        source_ != source::model && !o.draft.empty() && it != followed_.end())
      learn(o, groups_.at(it->second.group).seen);
  }
  if (source_ == source::model)
    model_->learn(outcomes, load, seconds);
  if (costs_)
    judge(load, drafted, tokens, outcomes.size(), seconds);
  expire();
  source_ = source::none; // a step without seats asks for no draft
  drafting_s_ = 0;
}

} // namespace rollcast
