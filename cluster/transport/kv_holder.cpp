#include "cluster/transport/kv_exchange_loop.hpp"
#include "cluster/transport/send_to_peer.hpp"
#include "engine/base/memory_guard.hpp"
#include "engine/memory/block_recycler.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <span>
#include <utility>

namespace rollcast {

namespace {

/// Parts given to ZeroMQ, which returns their memory from a thread of its own. That this comes
/// after they were written is said here in our own terms, because a sanitizer does not see
/// ZeroMQ's. One for all, which costs no object for each part.
std::atomic<std::uint64_t> lent{0};

void put_back(void* block, void*) {
  (void)lent.load(std::memory_order_acquire);
  block_recycler::process().put_back(block);
}

/// A copy, because a puller that does not read must not hold on to the image.
result<zmq::message_t> copied(std::span<const std::byte> part) {
  return unless_memory_lacks("a part of " + std::to_string(part.size()) + " bytes", [&] {
    const auto block = block_recycler::process().take(part.size());
    std::memcpy(block, part.data(), part.size());
    lent.fetch_add(1, std::memory_order_release);
    try {
      return result<zmq::message_t>{zmq::message_t{block, part.size(), put_back}};
    } catch (const zmq::error_t& e) {
      put_back(block, nullptr);
      return result<zmq::message_t>{fail(errc::queue_full, e.what())};
    }
  });
}

} // namespace

void kv_exchange::loop::hear_pullers() {
  for (int turn = 0; turn < 64; ++turn) {
    zmq::message_t name;
    zmq::message_t body;
    try {
      if (!router_.recv(name, zmq::recv_flags::dontwait))
        return;
      bool more = name.more() && router_.recv(body, zmq::recv_flags::dontwait) && body.more();
      while (more) { // no message of ours has a third frame
        zmq::message_t extra;
        more = router_.recv(extra, zmq::recv_flags::dontwait) && extra.more();
        ++counts.frames_rejected;
      }
    } catch (const zmq::error_t&) {
      return;
    }
    if (door_ && !door_->who_sent(body))
      continue; // its key was taken from the list
    hear_puller(name.to_string(), body);
  }
}

void kv_exchange::loop::hear_puller(const std::string& name, const zmq::message_t& body) {
  const auto frame = decode_kv_frame({body.data<std::byte>(), body.size()});
  if (!frame) {
    ++counts.frames_rejected;
    return;
  }
  const kv_ticket ticket{name, frame->pull};
  if (frame->kind == kv_message::open) {
    if (offers_.contains(ticket))
      return; // a doubled request
    if (offers_.size() >= options_.offers_max)
      return refuse(ticket, errc::queue_full,
                    "already offering " + std::to_string(offers_.size()) + " KV images");
    offers_.emplace(ticket, offer{{frame->holder, frame->response},
                                  options_.image_bytes(frame->tokens),
                                  false,
                                  false,
                                  nullptr,
                                  clock::now() + options_.idle_ms_max / 4});
    return offers_waiting_.push_back(ticket);
  }
  const auto it = offers_.find(ticket);
  if (frame->kind == kv_message::close)
    return end_offer(ticket);
  if (frame->kind == kv_message::carry) {
    if (it == offers_.end() || !it->second.image || !options_.carrier)
      return; // the puller's carrier tells it that nothing comes
    it->second.deadline = soon();
    if (!std::exchange(it->second.given, true))
      options_.carrier->give(frame->holder, frame->pull, it->second.image);
    return;
  }
  if (frame->kind != kv_message::want) {
    ++counts.frames_rejected;
    return;
  }
  if (it == offers_.end() || !it->second.image)
    return refuse(ticket, errc::timed_out, "the offer has expired or was never made");
  send_part(ticket, it->second, *frame);
}

void kv_exchange::loop::start_offers() {
  while (!offers_waiting_.empty()) {
    const auto ticket = offers_waiting_.front();
    const auto it = offers_.find(ticket);
    if (it != offers_.end()) {
      auto& o = it->second;
      if (offered_bytes_ > 0 && offered_bytes_ + o.bytes > options_.images_bytes_max)
        return; // an export is a copy: those that are out must end first
      offered_bytes_ += o.bytes;
      o.asked = true;
      o.deadline = soon();
      serve_(o.what, ticket);
    }
    offers_waiting_.pop_front();
  }
}

void kv_exchange::loop::end_offer(const kv_ticket& ticket) {
  const auto it = offers_.find(ticket);
  if (it == offers_.end())
    return;
  if (it->second.asked)
    offered_bytes_ -= it->second.bytes;
  offers_.erase(it);
}

void kv_exchange::loop::expire_offers(clock::time_point now) {
  std::vector<kv_ticket> over;
  for (auto& [ticket, o] : offers_) {
    if (o.deadline > now)
      continue;
    o.deadline = now + options_.idle_ms_max / 4;
    if (o.asked || !tell_puller(ticket.peer, {.kind = kv_message::wait, .pull = ticket.pull}))
      over.push_back(ticket);
  }
  for (const auto& ticket : over)
    end_offer(ticket);
}

void kv_exchange::loop::on(const answer_command& c) {
  const auto it = offers_.find(c.ticket);
  if (it == offers_.end())
    return; // the peer gave up
  if (!c.image) {
    refuse(c.ticket, c.image.error().code, c.image.error().detail);
    return end_offer(c.ticket);
  }
  const auto& image = **c.image;
  if (image.bytes.empty() || image.bytes.size() > options_.image_bytes_max) {
    refuse(c.ticket, errc::frame_too_large,
           "KV image of " + std::to_string(image.bytes.size()) + " bytes, limit "
             + std::to_string(options_.image_bytes_max));
    return end_offer(c.ticket);
  }
  kv_frame frame{.kind = kv_message::manifest, .pull = c.ticket.pull};
  frame.response = image.manifest.response;
  frame.tokens = image.manifest.tokens;
  frame.bytes = image.bytes.size();
  frame.part_bytes = options_.part_bytes;
  frame.prefix = image.manifest.prefix;
  frame.content = image.manifest.content;
  frame.weights = image.manifest.weights;
  if (!tell_puller(c.ticket.peer, frame))
    return end_offer(c.ticket);
  it->second.image = *c.image;
  it->second.deadline = soon();
}

void kv_exchange::loop::send_part(const kv_ticket& to, offer& o, const kv_frame& frame) {
  const auto at = std::uint64_t{frame.part} * options_.part_bytes;
  if (at >= o.image->bytes.size()) {
    ++counts.frames_rejected;
    return refuse(to, errc::frame_malformed, "no part " + std::to_string(frame.part));
  }
  const auto size = std::min<std::uint64_t>(options_.part_bytes, o.image->bytes.size() - at);
  const kv_frame head{.kind = kv_message::part, .pull = to.pull, .part = frame.part};
  auto part = copied({o.image->bytes.data() + at, size});
  if (!part) {
    refuse(to, part.error().code, part.error().detail);
    return end_offer(to);
  }
  if (!tell_puller(to.peer, head, &*part))
    return end_offer(to); // the puller is gone or does not read
  counts.bytes_out += size;
  o.deadline = soon();
}

void kv_exchange::loop::refuse(const kv_ticket& to, errc code, std::string_view why) {
  const kv_frame frame{.kind = kv_message::refused, .code = code, .pull = to.pull};
  try {
    zmq::message_t text{why.data(), why.size()};
    tell_puller(to.peer, frame, &text);
  } catch (const zmq::error_t&) { // no memory for a line: the puller's time runs out
  }
}

bool kv_exchange::loop::tell_puller(const std::string& name, const kv_frame& frame,
                                    zmq::message_t* payload) {
  const auto head = encode(frame);
  return send_to_peer(router_, name, zmq::buffer(head), payload);
}

} // namespace rollcast
