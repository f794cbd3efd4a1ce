#include "cluster/drafts/draft_board.hpp"

#include <algorithm>
#include <utility>

namespace rollcast {
namespace {

// What the containers take for each entry, rounded up: nodes, headers and the allocator's share.
constexpr std::uint64_t group_bytes = 320;
constexpr std::uint64_t stream_bytes = 128;
constexpr std::uint64_t follower_bytes = 128;

} // namespace

draft_board::draft_board(draft_board_limits limits, std::uint64_t incarnation)
  : limits_(limits), incarnation_(incarnation) {}

void draft_board::take(const std::string& peer, const draft_frame& frame, time now) {
  switch (frame.kind) {
    case draft_message::follow: return take_follow(peer, frame, now);
    case draft_message::unfollow: return take_unfollow(peer, frame);
    case draft_message::tokens: return take_tokens(peer, frame, now);
    case draft_message::want: return take_want(peer, frame);
    case draft_message::unknown: return; // only servers say so
  }
}

// -- what workers say ---------------------------------------------------------

void draft_board::take_follow(const std::string& peer, const draft_frame& frame, time now) {
  auto it = groups_.find(frame.group);
  if (it == groups_.end()) {
    if (!make_room(frame.group, group_bytes)) {
      ++figures_.refused;
      return;
    }
    it = groups_.try_emplace(frame.group).first;
    it->second.use = uses_.insert(uses_.end(), frame.group);
    charge(it->second, group_bytes);
    figures_.groups = groups_.size();
  }
  auto& g = it->second;
  if (!g.followers.contains(peer)) {
    if (g.followers.size() >= limits_.peers_max || !make_room(frame.group, follower_bytes)) {
      ++figures_.refused;
      return;
    }
    charge(g, follower_bytes);
    ++figures_.followers;
  }
  g.followers[peer] = now;
  g.followed_at = now;
  std::size_t left = limits_.replay_tokens_max;
  for (const auto& e : frame.ends) {
    const auto s = g.streams.find(e.response);
    const auto here = s == g.streams.end() ? 0 : s->second.tokens.size();
    if (e.known < here)
      left -= replay(peer, frame.group, e.response, s->second, e.known, left);
    else if (e.written > here)
      if (auto* missing = open(frame.group, g, e.response))
        want(peer, frame, e.response, *missing, now);
  }
  std::vector<response_id> told;
  for (const auto& e : frame.ends)
    told.push_back(e.response);
  std::sort(told.begin(), told.end());
  for (const auto& [response, s] : g.streams)
    if (!std::binary_search(told.begin(), told.end(), response))
      left -= replay(peer, frame.group, response, s, 0, left);
}

void draft_board::take_unfollow(const std::string& peer, const draft_frame& frame) {
  const auto it = groups_.find(frame.group);
  if (it != groups_.end())
    drop_followers(it->second, it->second.followers.erase(peer));
}

void draft_board::take_tokens(const std::string& peer, const draft_frame& frame, time now) {
  const auto it = groups_.find(frame.group);
  if (it == groups_.end()) {
    draft_frame reply{.kind = draft_message::unknown, .group = frame.group};
    reply.incarnation = incarnation_;
    outbox.push_back({{peer}, std::move(reply)});
    return;
  }
  auto& g = it->second;
  auto* const found = open(frame.group, g, frame.response);
  if (found == nullptr)
    return;
  auto& s = *found;
  const auto here = s.tokens.size();
  if (frame.position > here)
    return want(peer, frame, frame.response, s, now);
  const auto shared = std::min(frame.tokens.size(), here - frame.position);
  const auto fresh = std::span{frame.tokens}.subspan(shared);
  if (!std::equal(frame.tokens.begin(), frame.tokens.begin() + static_cast<std::ptrdiff_t>(shared),
                  s.tokens.begin() + frame.position)) {
    // A response writes the same tokens wherever it runs, so this is another one that got its
    // number. The later is believed, but not asked for at once: two clusters that number alike
    // would have all sent again and again.
    ++figures_.conflicts;
    figures_.bytes -= s.tokens.capacity() * sizeof(token_id);
    g.bytes -= s.tokens.capacity() * sizeof(token_id);
    s = {};
    s.wanted_at = now + limits_.conflict_pause;
    return;
  }
  if (fresh.empty())
    return;
  if (!append(frame.group, g, s, fresh)) {
    ++figures_.refused;
    return;
  }
  uses_.splice(uses_.end(), uses_, g.use);
  if (std::exchange(s.wanted, false))
    ++figures_.gaps_repaired;
  draft_frame news{.kind = draft_message::tokens,
                   .incarnation = incarnation_,
                   .group = frame.group,
                   .response = frame.response};
  news.position = static_cast<std::uint32_t>(here);
  news.age_us = frame.age_us;
  news.tokens.assign(fresh.begin(), fresh.end());
  relay(peer, g, std::move(news));
}

void draft_board::take_want(const std::string& peer, const draft_frame& frame) {
  const auto it = groups_.find(frame.group);
  if (it == groups_.end())
    return;
  const auto s = it->second.streams.find(frame.response);
  if (s != it->second.streams.end())
    replay(peer, frame.group, frame.response, s->second, frame.position, limits_.replay_tokens_max);
}

// -- what the server says -----------------------------------------------------

void draft_board::want(const std::string& peer, const draft_frame& about, response_id response,
                       stream& s, time now) {
  s.wanted = true;
  if (now - s.wanted_at < limits_.want_pause)
    return;
  s.wanted_at = now;
  draft_frame frame{.kind = draft_message::want,
                    .incarnation = incarnation_,
                    .group = about.group,
                    .response = response};
  frame.position = static_cast<std::uint32_t>(s.tokens.size());
  outbox.push_back({{peer}, std::move(frame)});
}

std::size_t draft_board::replay(const std::string& peer, draft_group group, response_id response,
                                const stream& s, std::size_t from, std::size_t most) {
  const auto end = std::min(s.tokens.size(), from + most);
  for (auto at = from; at < end; at += draft_frame_tokens_max) {
    draft_frame frame{.kind = draft_message::tokens,
                      .incarnation = incarnation_,
                      .group = group,
                      .response = response};
    frame.position = static_cast<std::uint32_t>(at);
    frame.age_us = draft_age_replayed;
    const auto part = std::span{s.tokens}.subspan(at, std::min(end - at, draft_frame_tokens_max));
    frame.tokens.assign(part.begin(), part.end());
    outbox.push_back({{peer}, std::move(frame)});
  }
  const auto sent = end > from ? end - from : 0;
  figures_.relayed_tokens += sent;
  return sent;
}

void draft_board::relay(const std::string& from, const group_record& g, draft_frame frame) {
  letter news;
  for (const auto& [peer, heard] : g.followers)
    if (peer != from)
      news.to.push_back(peer);
  if (news.to.empty())
    return;
  figures_.relayed_tokens += frame.tokens.size() * news.to.size();
  news.frame = std::move(frame);
  outbox.push_back(std::move(news));
}

// -- memory -------------------------------------------------------------------

void draft_board::charge(group_record& g, std::uint64_t bytes) {
  g.bytes += bytes;
  figures_.bytes += bytes;
}

/// Finds a stream or begins it; null if there is no room for one more.
draft_board::stream* draft_board::open(draft_group name, group_record& g, response_id response) {
  if (const auto it = g.streams.find(response); it != g.streams.end())
    return &it->second;
  if (g.streams.size() >= limits_.streams_max || !make_room(name, stream_bytes)) {
    ++figures_.refused;
    return nullptr;
  }
  charge(g, stream_bytes);
  return &g.streams[response];
}

bool draft_board::append(draft_group name, group_record& g, stream& s,
                         std::span<const token_id> tokens) {
  const auto had = s.tokens.capacity();
  const auto need = s.tokens.size() + tokens.size();
  if (need > had) {
    const auto next = std::max(need, had + had / 2);
    if (!make_room(name, (next - had) * sizeof(token_id)))
      return false;
    s.tokens.reserve(next);
    charge(g, (s.tokens.capacity() - had) * sizeof(token_id));
  }
  s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.end());
  return true;
}

/// Forgets groups until so many bytes more fit, but never `keep`.
bool draft_board::make_room(draft_group keep, std::uint64_t bytes) {
  auto next = uses_.begin();
  while (figures_.bytes + bytes > limits_.bytes_max && next != uses_.end()) {
    const auto victim = next++;
    if (*victim == keep)
      continue;
    ++figures_.expired_groups;
    drop(groups_.find(*victim));
  }
  return figures_.bytes + bytes <= limits_.bytes_max;
}

void draft_board::drop_followers(group_record& g, std::size_t count) {
  figures_.followers -= count;
  figures_.bytes -= count * follower_bytes;
  g.bytes -= count * follower_bytes;
}

void draft_board::drop(group_map::iterator it) {
  figures_.bytes -= it->second.bytes;
  figures_.followers -= it->second.followers.size();
  uses_.erase(it->second.use);
  groups_.erase(it);
  figures_.groups = groups_.size();
}

void draft_board::forget(const std::string& peer) {
  for (auto& [name, g] : groups_)
    drop_followers(g, g.followers.erase(peer));
}

void draft_board::expire(time now) {
  for (auto it = groups_.begin(); it != groups_.end();) {
    auto& g = it->second;
    drop_followers(g, std::erase_if(g.followers, [&](const auto& follower) {
                     return now - follower.second > limits_.follower_silent_max;
                   }));
    const auto here = it++;
    if (g.followers.empty() && now - g.followed_at > limits_.group_linger)
      drop(here);
  }
}

} // namespace rollcast
