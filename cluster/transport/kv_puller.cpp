#include "cluster/transport/kv_exchange_loop.hpp"
#include "engine/base/memory_guard.hpp"

#include <algorithm>
#include <cstring>

namespace rollcast {

void kv_exchange::loop::on(pull_command& c) {
  if (pulls_.size() >= options_.pulls_max) {
    ++counts.pulls_failed;
    return c.done(fail(errc::queue_full, "already pulling the KV of "
                                           + std::to_string(pulls_.size()) + " responses"));
  }
  auto& p = pulls_[c.id];
  p.endpoint = std::move(c.endpoint);
  p.request = c.request;
  p.tokens = std::move(c.tokens);
  p.done = std::move(c.done);
  p.bytes = options_.image_bytes(static_cast<std::uint32_t>(p.tokens.size()));
  pulls_waiting_.push_back(c.id);
}

void kv_exchange::loop::start_pulls() {
  while (!pulls_waiting_.empty() && pulls_started_ < options_.pulls_active) {
    const auto id = pulls_waiting_.front();
    const auto it = pulls_.find(id);
    if (it != pulls_.end() && *pulled_bytes_ > 0
        && *pulled_bytes_ + it->second.bytes > options_.images_bytes_max)
      return; // until an image that came has been taken over, or one under way has ended
    pulls_waiting_.pop_front();
    if (it != pulls_.end())
      start_pull(id, it->second);
  }
}

result<void> kv_exchange::loop::check_shunned(const pull& p) const {
  const auto it = shunned_.find({p.endpoint, p.request.holder});
  if (it == shunned_.end() || it->second <= clock::now())
    return {};
  const auto left =
    std::chrono::duration_cast<std::chrono::milliseconds>(it->second - clock::now());
  return fail(errc::timed_out, "no word came from " + p.endpoint + ", it is asked again in "
                                 + std::to_string(left.count()) + " ms");
}

void kv_exchange::loop::start_pull(std::uint64_t id, pull& p) {
  if (auto open = check_shunned(p); !open)
    return end_pull(id, fail(open));
  if (auto connected = connect(p.endpoint); !connected)
    return end_pull(id, fail(connected));
  p.started = true;
  p.deadline = soon();
  ++pulls_started_;
  *pulled_bytes_ += p.bytes;
  ++peers_.at(p.endpoint).pulls;
  kv_frame frame{.kind = kv_message::open, .pull = id};
  frame.holder = p.request.holder;
  frame.response = p.request.response;
  frame.tokens = static_cast<std::uint32_t>(p.tokens.size());
  if (!tell_holder(p, frame))
    end_pull(id, fail(errc::peer_lost, "the queue to " + p.endpoint + " is full"));
}

result<void> kv_exchange::loop::connect(const std::string& name) {
  if (peers_.contains(name))
    return {};
  try {
    peer fresh;
    fresh.socket = zmq::socket_t{context_, zmq::socket_type::dealer};
    fresh.socket.set(zmq::sockopt::linger, 0);
    fresh.socket.set(zmq::sockopt::maxmsgsize, std::int64_t{options_.part_bytes} * 16 + 1024);
    dial_within(fresh.socket, options_.keys);
    fresh.socket.connect(name);
    fresh.heard = clock::now();
    peers_.emplace(name, std::move(fresh));
  } catch (const zmq::error_t& e) {
    return fail(errc::peer_lost, "cannot connect to the worker at " + name + ": " + e.what());
  }
  return {};
}

void kv_exchange::loop::on(const cancel_command& c) {
  const auto it = pulls_.find(c.id);
  if (it == pulls_.end())
    return;
  if (it->second.started)
    tell_holder(it->second, {.kind = kv_message::close, .pull = c.id});
  end_pull(c.id, fail(errc::cancelled, "the transfer was cancelled"));
}

void kv_exchange::loop::hear_holder(const std::string& name) {
  // A bounded number of messages a turn, so that one fast holder cannot starve the others.
  for (int turn = 0; turn < 16; ++turn) {
    const auto at = peers_.find(name);
    if (at == peers_.end())
      return;
    auto& socket = at->second.socket;
    zmq::message_t head;
    zmq::message_t payload;
    try {
      if (!socket.recv(head, zmq::recv_flags::dontwait))
        return;
      if (head.more() && !socket.recv(payload, zmq::recv_flags::dontwait))
        return;
      for (bool more = payload.more(); more;) {
        zmq::message_t extra;
        more = socket.recv(extra, zmq::recv_flags::dontwait) && extra.more();
      }
    } catch (const zmq::error_t& e) {
      return end_pulls_from(name, {errc::peer_lost, "lost " + name + ": " + e.what(), {}});
    }
    at->second.heard = clock::now();
    const auto frame = decode_kv_frame({head.data<std::byte>(), head.size()});
    if (!frame) {
      ++counts.frames_rejected;
      continue;
    }
    const auto it = pulls_.find(frame->pull);
    if (it == pulls_.end() || it->second.endpoint != name)
      continue; // old news: the pull has ended
    auto& p = it->second;
    p.deadline = soon();
    if (frame->kind == kv_message::manifest)
      take_manifest(frame->pull, p, *frame);
    else if (frame->kind == kv_message::part)
      take_part(frame->pull, p, *frame, payload);
    else if (frame->kind == kv_message::refused)
      end_pull(frame->pull,
               fail(frame->code == errc::ok ? errc::frame_malformed : frame->code,
                    "the worker at " + name + " refused: " + payload.to_string().substr(0, 200)));
    else if (frame->kind != kv_message::wait) // which only moves the deadline
      ++counts.frames_rejected;
  }
}

void kv_exchange::loop::take_manifest(std::uint64_t id, pull& p, const kv_frame& frame) {
  if (p.parts != 0)
    return; // a doubled manifest
  const auto parts = frame.part_bytes == 0
                       ? std::uint64_t{0}
                       : (frame.bytes + frame.part_bytes - 1) / frame.part_bytes;
  const auto what = "KV image of response " + std::to_string(p.request.response.value) + " from "
                    + p.endpoint + ": ";
  const auto give_up = [&](errc code, const std::string& why) {
    tell_holder(p, {.kind = kv_message::close, .pull = id});
    end_pull(id, fail(code, what + why));
  };
  if (frame.bytes > options_.image_bytes_max)
    return give_up(errc::frame_too_large, std::to_string(frame.bytes) + " bytes, limit "
                                            + std::to_string(options_.image_bytes_max));
  if (frame.response != p.request.response || frame.tokens == 0 || frame.tokens > p.tokens.size()
      || parts == 0 || parts > UINT32_MAX || frame.part_bytes > options_.part_bytes * 16)
    return give_up(errc::frame_malformed, std::to_string(frame.tokens) + " tokens of "
                                            + std::to_string(p.tokens.size()) + ", "
                                            + std::to_string(frame.bytes) + " bytes in parts of "
                                            + std::to_string(frame.part_bytes));
  if (const auto expected = options_.image_bytes(frame.tokens);
      expected != 0 && frame.bytes != expected)
    return give_up(errc::frame_malformed, std::to_string(frame.bytes) + " bytes for "
                                            + std::to_string(frame.tokens) + " tokens, expected "
                                            + std::to_string(expected));
  if (hash_of(std::span<const token_id>{p.tokens}.first(frame.tokens)) != frame.prefix)
    return give_up(errc::frame_malformed, "it belongs to other tokens than ours (prefix hash of "
                                            + std::to_string(frame.tokens) + " tokens differs)");
  p.image.manifest = {frame.response, frame.tokens,  frame.bytes,
                      frame.prefix,   frame.content, frame.weights};
  if (const auto room = make_room(p); !room)
    return give_up(room.error().code, room.error().detail);
  p.part_bytes = frame.part_bytes;
  p.parts = static_cast<std::uint32_t>(parts);
  if (options_.carrier)
    p.carried_to = options_.carrier->reaches(p.request.holder);
  if (p.carried_to != worker_id{})
    carry(id, p);
  else
    want_parts(id, p);
}

result<void> kv_exchange::loop::make_room(pull& p) {
  return unless_memory_lacks(std::to_string(p.image.manifest.bytes) + " bytes", [&] {
    p.image.bytes.resize(p.image.manifest.bytes);
    return result<void>{};
  });
}

/// Has the carrier fetch the image, into memory that is its own until it is done with it.
void kv_exchange::loop::carry(std::uint64_t id, pull& p) {
  const auto bytes = std::make_shared<kv_bytes>(std::move(p.image.bytes));
  options_.carrier->fetch(id, bytes, [to = inbox_, id, bytes](result<void> how) {
    put(*to, carried_command{id, bytes, std::move(how)});
  });
  p.carry_until = clock::now() + options_.carry_ms_max;
  ask_to_carry(id, p); // behind `fetch`: what is asked for here may come at once
}

bool kv_exchange::loop::ask_to_carry(std::uint64_t id, pull& p) {
  p.deadline = clock::now() + options_.idle_ms_max / 4;
  return tell_holder(p, {.kind = kv_message::carry, .pull = id, .holder = p.carried_to});
}

void kv_exchange::loop::on(carried_command& c) {
  const auto it = pulls_.find(c.id);
  if (it == pulls_.end())
    return; // cancelled meanwhile
  auto& p = it->second;
  if (p.carried_to == worker_id{})
    return; // too late: it is fetched without the carrier
  if (c.how && hash_bytes(*c.bytes) == p.image.manifest.content) {
    p.carried_to = {};
    p.deadline = soon();
    p.image.bytes = std::move(*c.bytes);
    p.image.carried = true;
    ++counts.carried;
    counts.bytes_in += p.image.bytes.size();
    return finish(c.id, p);
  }
  fall_back(c.id, p);
}

void kv_exchange::loop::fall_back(std::uint64_t id, pull& p) {
  p.carried_to = {};
  p.deadline = soon();
  p.image.fell_back = true;
  if (const auto room = make_room(p); !room) {
    tell_holder(p, {.kind = kv_message::close, .pull = id});
    return end_pull(id, fail(room));
  }
  want_parts(id, p);
}

void kv_exchange::loop::want_parts(std::uint64_t id, pull& p) {
  while (p.parts_wanted < p.parts && p.parts_wanted - p.parts_here < options_.parts_in_flight) {
    if (!tell_holder(p, {.kind = kv_message::want, .pull = id, .part = p.parts_wanted}))
      return; // the deadline ends it
    ++p.parts_wanted;
  }
}

void kv_exchange::loop::take_part(std::uint64_t id, pull& p, const kv_frame& frame,
                                  const zmq::message_t& payload) {
  const auto at = std::uint64_t{frame.part} * p.part_bytes;
  const auto size = at < p.image.bytes.size()
                      ? std::min<std::uint64_t>(p.part_bytes, p.image.bytes.size() - at)
                      : 0;
  if (p.parts == 0 || frame.part != p.parts_here || payload.size() != size) {
    tell_holder(p, {.kind = kv_message::close, .pull = id});
    return end_pull(id, fail(errc::frame_malformed,
                             "part " + std::to_string(frame.part) + " of "
                               + std::to_string(payload.size()) + " bytes from " + p.endpoint
                               + ", expected part " + std::to_string(p.parts_here) + " of "
                               + std::to_string(size)));
  }
  std::memcpy(p.image.bytes.data() + at, payload.data(), payload.size());
  counts.bytes_in += payload.size();
  ++p.parts_here;
  if (p.parts_here == p.parts)
    finish(id, p);
  else
    want_parts(id, p);
}

void kv_exchange::loop::finish(std::uint64_t id, pull& p) {
  tell_holder(p, {.kind = kv_message::close, .pull = id});
  if (!p.image.carried && hash_bytes(p.image.bytes) != p.image.manifest.content)
    return end_pull(id, fail(errc::frame_malformed,
                             "KV image of response " + std::to_string(p.request.response.value)
                               + " from " + p.endpoint + ": content hash of "
                               + std::to_string(p.image.bytes.size())
                               + " bytes differs; the response is computed again"));
  auto image = std::move(p.image);
  end_pull(id, std::move(image));
}

void kv_exchange::loop::end_pull(std::uint64_t id, result<kv_image> how) {
  const auto it = pulls_.find(id);
  const auto done = std::move(it->second.done);
  if (it->second.started) {
    --pulls_started_;
    if (how)
      how->claim = {pulled_bytes_.get(),
                    [sum = pulled_bytes_, bytes = it->second.bytes](void*) { *sum -= bytes; }};
    else
      *pulled_bytes_ -= it->second.bytes;
    auto& from = peers_.at(it->second.endpoint);
    --from.pulls;
    from.idle_since = clock::now();
  }
  pulls_.erase(it);
  ++(how ? counts.pulls_done : counts.pulls_failed);
  done(std::move(how));
}

void kv_exchange::loop::end_pulls_from(const std::string& name, const error& why) {
  std::vector<std::uint64_t> orphans;
  for (const auto& [id, p] : pulls_)
    if (p.endpoint == name)
      orphans.push_back(id);
  for (const auto id : orphans)
    end_pull(id, tl::unexpected(why));
  peers_.erase(name); // a fresh connection next time: this one may be half open
}

bool kv_exchange::loop::tell_holder(const pull& p, const kv_frame& frame) {
  const auto at = peers_.find(p.endpoint);
  if (at == peers_.end())
    return false;
  const auto bytes = encode(frame);
  try {
    return at->second.socket.send(zmq::buffer(bytes), zmq::send_flags::dontwait).has_value();
  } catch (const zmq::error_t&) {
    return false;
  }
}

} // namespace rollcast
