#include "cluster/drafts/draft_ledger.hpp"

#include <algorithm>
#include <utility>

namespace rollcast {

// -- what this worker does ----------------------------------------------------

void draft_ledger::follow(group_id group, draft_group name, response_id response,
                          std::span<const token_id> tokens, time now) {
  auto& g = groups_[name];
  g.group = group;
  g.used = now;
  if (g.streams.size() >= draft_frame_ends_max && !g.streams.contains(response))
    return;
  auto& s = g.streams[response];
  if (!std::exchange(s.running, true))
    ++g.running;
  extend(g, s, tokens.subspan(std::min(tokens.size(), s.written.size())));
  note_unsent(name, response, s, now);
  make_room(name);
}

void draft_ledger::extend(group_record& g, stream& s, std::span<const token_id> more) {
  s.written.insert(s.written.end(), more.begin(), more.end());
  g.tokens += more.size();
  tokens_ += more.size();
  s.known = std::max(s.known, static_cast<std::uint32_t>(s.written.size()));
}

void draft_ledger::wrote(draft_group name, response_id response, std::uint32_t position,
                         std::span<const token_id> tokens, time now) {
  const auto it = groups_.find(name);
  if (it == groups_.end())
    return;
  auto& g = it->second;
  const auto found = g.streams.find(response);
  if (found == g.streams.end())
    return;
  auto& s = found->second;
  g.used = now;
  if (position > s.written.size() || position + tokens.size() <= s.written.size())
    return;
  extend(g, s, tokens.subspan(s.written.size() - position));
  note_unsent(name, response, s, now);
  make_room(name);
}

void draft_ledger::leave(draft_group name, response_id response, time now) {
  const auto it = groups_.find(name);
  if (it == groups_.end())
    return;
  const auto s = it->second.streams.find(response);
  if (s == it->second.streams.end() || !std::exchange(s->second.running, false))
    return;
  --it->second.running;
  it->second.used = now;
}

void draft_ledger::lost(draft_group name, response_id response, std::uint32_t position, time now) {
  const auto it = groups_.find(name);
  if (it == groups_.end())
    return;
  if (const auto s = it->second.streams.find(response); s != it->second.streams.end()) {
    s->second.known = std::min(s->second.known, position); // a later `follow` frame says so
    s->second.deaf_until = now + limits_.lost_pause;
  }
}

void draft_ledger::note_unsent(draft_group name, response_id response, stream& s, time now) {
  if (s.server < s.written.size() && unsent_.emplace(name, response).second)
    s.unsent_since = now;
}

void draft_ledger::forget(std::map<draft_group, group_record>::iterator it) {
  tokens_ -= it->second.tokens;
  for (const auto& [response, s] : it->second.streams)
    unsent_.erase({it->first, response});
  unfollowed_.push_back(it->first);
  groups_.erase(it);
}

void draft_ledger::make_room(draft_group keep) {
  while (tokens_ > limits_.tokens_max && groups_.size() > 1) {
    auto oldest = groups_.end();
    for (auto it = groups_.begin(); it != groups_.end(); ++it)
      if (it->first != keep && (oldest == groups_.end() || it->second.used < oldest->second.used))
        oldest = it;
    forget(oldest);
  }
}

// -- what the server does -----------------------------------------------------

void draft_ledger::meet(std::uint64_t incarnation) {
  if (incarnation == incarnation_)
    return;
  // A server that was started again knows nothing: all is told and sent anew.
  const bool first = incarnation_ == 0;
  incarnation_ = incarnation;
  if (first)
    return;
  for (auto& [name, g] : groups_) {
    g.follow_at = {};
    for (auto& [response, s] : g.streams) {
      s.server = 0;
      s.replay = true;
      note_unsent(name, response, s, {});
    }
  }
}

void draft_ledger::take(const draft_frame& frame, time now, const send_function& send,
                        const hand_function& hand) {
  meet(frame.incarnation);
  const auto it = groups_.find(frame.group);
  if (it == groups_.end())
    return;
  if (frame.kind == draft_message::tokens)
    take_tokens(it->second, frame, now, send, hand);
  else if (frame.kind == draft_message::want)
    take_want(it->second, frame, now);
}

void draft_ledger::take_tokens(group_record& g, const draft_frame& frame, time now,
                               const send_function& send, const hand_function& hand) {
  if (limits_.vocabulary != 0
      && std::any_of(frame.tokens.begin(), frame.tokens.end(), [this](token_id token) {
           return static_cast<std::uint32_t>(token) >= limits_.vocabulary;
         })) {
    ++figures_.rejected; // would be fed to the model
    return;
  }
  if (g.streams.size() >= draft_frame_ends_max && !g.streams.contains(frame.response))
    return;
  auto& s = g.streams[frame.response];
  const auto end = frame.position + static_cast<std::uint32_t>(frame.tokens.size());
  s.server = std::max(s.server, end);
  if (now < s.deaf_until)
    return;
  if (frame.position > s.known) {
    s.wanted = true;
    if (now - s.wanted_at < limits_.want_pause)
      return;
    s.wanted_at = now;
    draft_frame want{.kind = draft_message::want, .group = frame.group, .response = frame.response};
    want.position = s.known;
    (void)send(want); // if not, the next frame finds the same gap
    return;
  }
  if (end <= s.known)
    return;
  const auto fresh = std::span{frame.tokens}.subspan(s.known - frame.position);
  heard_tokens heard{
    g.group, frame.group, frame.response, s.known, {fresh.begin(), fresh.end()}, frame.age_us, now};
  if (!hand(std::move(heard))) {
    s.deaf_until = now + limits_.full_pause;
    return;
  }
  s.known = end;
  figures_.heard_tokens += fresh.size();
  if (std::exchange(s.wanted, false))
    ++figures_.gaps_repaired;
}

void draft_ledger::take_want(group_record& g, const draft_frame& frame, time now) {
  const auto found = g.streams.find(frame.response);
  if (found == g.streams.end() || frame.position >= found->second.written.size())
    return;
  auto& s = found->second;
  s.server = frame.position;
  s.replay = true;
  note_unsent(frame.group, frame.response, s, now);
}

// -- sending ------------------------------------------------------------------

bool draft_ledger::send_follow(draft_group name, const group_record& g, time now,
                               const send_function& send) const {
  draft_frame frame{.kind = draft_message::follow, .group = name};
  for (const auto& [response, s] : g.streams)
    // Who does not listen now says that he knows everything, so that nothing is sent in vain.
    frame.ends.push_back({response, now < s.deaf_until ? draft_position_max : s.known,
                          std::min(s.server, static_cast<std::uint32_t>(s.written.size()))});
  return send(frame);
}

bool draft_ledger::send_stream(draft_group name, response_id response, stream& s, time now,
                               const send_function& send) {
  while (s.server < s.written.size()) {
    draft_frame frame{.kind = draft_message::tokens, .group = name, .response = response};
    frame.position = s.server;
    const auto age = std::chrono::duration_cast<std::chrono::microseconds>(now - s.unsent_since);
    frame.age_us = s.replay ? draft_age_replayed
                            : static_cast<std::uint32_t>(std::min<std::int64_t>(
                              age.count(), draft_age_replayed - std::int64_t{1}));
    const auto rest = std::span{s.written}.subspan(s.server);
    const auto part = rest.first(std::min(rest.size(), draft_frame_tokens_max));
    frame.tokens.assign(part.begin(), part.end());
    if (!send(frame))
      return false;
    s.server += static_cast<std::uint32_t>(part.size());
    figures_.written_tokens += part.size();
  }
  s.replay = false;
  return true;
}

bool draft_ledger::flush(time now, const send_function& send) {
  bool taken = true;
  for (auto it = groups_.begin(); it != groups_.end();) {
    const auto here = it++;
    auto& g = here->second;
    if (g.running == 0 && now - g.used > limits_.idle_max) {
      forget(here); // also while nothing can be sent
    } else if (taken && g.follow_at <= now) {
      taken = send_follow(here->first, g, now, send);
      if (taken)
        g.follow_at = now + limits_.follow_every;
    }
  }
  for (const auto name : std::exchange(unfollowed_, {}))
    if (taken && !groups_.contains(name))
      taken = send({.kind = draft_message::unfollow, .group = name});
  if (!taken)
    return false;
  const auto patience = std::max<std::chrono::microseconds>(
    limits_.flush_after, limits_.frame_pause * static_cast<std::int64_t>(unsent_.size()));
  for (auto it = unsent_.begin(); it != unsent_.end();) {
    auto& s = groups_.at(it->first).streams.at(it->second);
    const auto left = s.written.size() - std::min<std::size_t>(s.server, s.written.size());
    const bool due = s.replay || left >= limits_.flush_tokens || now - s.unsent_since >= patience;
    if (left > 0 && !due) {
      ++it;
      continue;
    }
    if (!send_stream(it->first, it->second, s, now, send))
      return false; // the transport is full or the server is away: later
    it = unsent_.erase(it);
  }
  return true;
}

} // namespace rollcast
