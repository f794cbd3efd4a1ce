#include "engine/draft/speculator.hpp"

#include "engine/base/check.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

namespace rollcast {

namespace {

/// So many tokens of a group wait for the index when more are told of: there they take ten times
/// the memory, which must be counted.
constexpr std::size_t unwritten_max = 4096;
/// What rehearsals may take of the time.
constexpr double rehearsal_share = 0.001;

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

double speculator::seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
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
  rehearsal_.stop();
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

/// Takes in what became of drafts that got no rows.
void speculator::learn_rehearsed(std::span<const draft_outcome> outcomes, double seconds) {
  rehearsal_debt_s_ = std::max(0.0, rehearsal_debt_s_ - rehearsal_share * seconds);
  const auto would = rehearsal_.hear(outcomes);
  if (!would)
    return;
  guard_.rehearsed(would->rows, would->drafted_s, would->plain_s, would->tokens, would->seats);
  for (const auto& p : rehearsal_.parts())
    if (const auto it = followed_.find(p.response); it != followed_.end())
      learn({p.response, p.draft, p.accepted, p.fresh}, groups_.at(it->second.group).seen);
}

void speculator::learn(const draft_outcome& outcome, acceptance& of_group) {
  // Every token that was verified behind right ones only says something.
  std::int32_t parent = -1;
  const auto known = std::min<std::size_t>(outcome.accepted + 1, outcome.fresh.size());
  for (std::size_t place = 0; place < known; ++place) {
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
  else if (!held_) // rehearsals have their own share of the time
    guard_.vain(load.rows, drafting_s_);
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
  if (costs_) {
    judge(load, drafted, tokens, outcomes.size(), seconds);
    learn_rehearsed(outcomes, seconds);
  }
  expire();
  source_ = source::none; // a step without seats asks for no draft
  drafting_s_ = 0;
}

} // namespace rollcast
