// Goal: no frames of a peer crash a KV exchange, make it take memory for an image that it did not
// ask for, or hand on an image that is not proved; every transfer ends.
// Method: a real exchange on loopback. The input is what a peer says: as the holder of an image
// that the exchange pulls, and as a puller of what it holds. Fields that a random number would
// never meet (the transfer's number, hashes) are put right when the input says so.

#include "cluster/transport/kv_exchange.hpp"
#include "cluster/transport/kv_frame.hpp"
#include "tests/fuzz/fuzz.hpp"

#include <zmq.hpp>

#include <cerrno>
#include <future>
#include <optional>

namespace rollcast::fuzz {
namespace {

constexpr std::uint32_t token_bytes = 32;
constexpr std::chrono::milliseconds patience{3'000};

const std::vector<token_id>& tokens() {
  static const std::vector<token_id> ids{5, 6, 7, 8, 9, 10, 11, 12};
  return ids;
}

kv_bytes true_image(std::uint32_t count) {
  return kv_bytes(count * token_bytes, std::byte{0x33});
}

/// One exchange and one peer for the whole process: sockets are slow to make.
class stage {
public:
  stage() {
    holder_.set(zmq::sockopt::linger, 0);
    holder_.set(zmq::sockopt::rcvtimeo, static_cast<int>(patience.count()));
    holder_.bind("tcp://127.0.0.1:*");
    kv_exchange_options options;
    options.image_bytes_max = 1u << 16;
    options.group_bytes = token_bytes;
    options.part_bytes = 64;
    options.idle_ms_max = std::chrono::milliseconds{250};
    auto opened = kv_exchange::open(
      options, [this](const kv_request& what, const kv_ticket& to) { serve(what, to); });
    require(opened.has_value(), "an exchange opens on loopback");
    exchange_ = std::move(*opened);
    puller_.set(zmq::sockopt::linger, 0);
    puller_.set(zmq::sockopt::rcvtimeo, static_cast<int>(patience.count()));
    puller_.connect(exchange_->endpoint());
  }

  void run(input_reader in) {
    const auto asks = in.number(1) % 4;
    for (std::uint64_t i = 0; i < asks; ++i)
      ask(in);
    hold(in);
  }

private:
  void serve(const kv_request& what, const kv_ticket& to) {
    if (what.response.value % 2 == 0)
      return exchange_->answer(to, fail(errc::stale_epoch, "not here"));
    auto image = std::make_shared<kv_image>();
    image->bytes = true_image(2);
    image->manifest.tokens = 2;
    image->manifest.response = what.response;
    exchange_->answer(to, std::shared_ptr<const kv_image>{image});
  }

  /// Says one thing as a peer that wants something.
  void ask(input_reader& in) {
    const auto how = in.number(1);
    auto bytes = std::string{in.take(in.number(1) % 128)};
    if (how % 2 == 0) {
      kv_frame frame{.kind = static_cast<kv_message>(how % 8), .pull = in.number(1)};
      frame.response.value = in.number(1);
      frame.tokens = static_cast<std::uint32_t>(in.number(1));
      frame.part = static_cast<std::uint32_t>(in.number(1));
      const auto made = encode(frame);
      bytes = {reinterpret_cast<const char*>(made.data()), made.size()};
    }
    puller_.send(zmq::buffer(bytes), zmq::send_flags::dontwait);
    for (zmq::message_t drop; puller_.recv(drop, zmq::recv_flags::dontwait);)
      continue;
  }

  /// False if nothing came in time. libFuzzer's clock interrupts whoever waits.
  bool receive(zmq::message_t& into) {
    for (;;)
      try {
        return holder_.recv(into).has_value();
      } catch (const zmq::error_t& e) {
        require(e.num() == EINTR, "a socket is whole");
      }
  }

  /// Is asked for an image and says what the input says, then that it has none.
  void hold(input_reader& in) {
    std::promise<result<kv_image>> told;
    auto ended = told.get_future();
    exchange_->pull(holder_.get(zmq::sockopt::last_endpoint), {worker_id{1}, response_id{2}},
                    tokens(), [&](result<kv_image> how) { told.set_value(std::move(how)); });
    zmq::message_t who;
    std::optional<kv_frame> open;
    while (!open || open->kind != kv_message::open) { // what is left of the transfer before
      zmq::message_t body;
      require(receive(who) && receive(body), "a pull is opened");
      if (const auto frame = decode_kv_frame({body.data<std::byte>(), body.size()}))
        open = *frame;
    }
    while (!in.empty())
      say(in, who, open->pull);
    send(who, {.kind = kv_message::refused, .code = errc::stale_epoch, .pull = open->pull}, "no\n");
    require(ended.wait_for(patience) == std::future_status::ready, "a transfer ends");
    check_end(ended.get());
  }

  void say(input_reader& in, zmq::message_t& who, std::uint64_t pull) {
    const auto how = in.number(1);
    if (how % 8 == 0)
      return send_bytes(who, in.take(in.number(1)), {});
    kv_frame frame{.kind = static_cast<kv_message>(how % 8), .pull = pull};
    frame.part = static_cast<std::uint32_t>(in.number(1));
    if (frame.kind == kv_message::manifest) {
      frame.response.value = how & 8 ? in.number(8) : 2;
      frame.tokens = static_cast<std::uint32_t>(in.number(1));
      frame.bytes = how & 16 ? in.number(8) : std::uint64_t{frame.tokens} * token_bytes;
      frame.part_bytes = static_cast<std::uint32_t>(in.number(how & 32 ? 4 : 1));
      const auto known = std::min<std::size_t>(frame.tokens, tokens().size());
      frame.prefix = hash_of(std::span<const token_id>{tokens()}.first(known));
      frame.content = hash_bytes(true_image(static_cast<std::uint32_t>(known)));
    }
    const auto length = in.number(1);
    send(who, frame, how & 64 ? in.take(length) : std::string_view{image_text().substr(0, length)});
  }

  static std::string_view image_text() {
    static const std::string text(256, '\x33');
    return text;
  }

  void send(zmq::message_t& who, const kv_frame& frame, std::string_view payload) {
    const auto head = encode(frame);
    send_bytes(who, {reinterpret_cast<const char*>(head.data()), head.size()}, payload);
  }

  void send_bytes(zmq::message_t& who, std::string_view head, std::string_view payload) {
    holder_.send(zmq::buffer(who.data(), who.size()), zmq::send_flags::sndmore);
    holder_.send(zmq::buffer(head),
                 payload.empty() ? zmq::send_flags::none : zmq::send_flags::sndmore);
    if (!payload.empty())
      holder_.send(zmq::buffer(payload), zmq::send_flags::none);
  }

  static void check_end(const result<kv_image>& how) {
    if (!how)
      return check_refusal(how.error());
    require(how->manifest.tokens > 0 && how->manifest.tokens <= tokens().size(),
            "an image is of our tokens");
    require(how->bytes == true_image(how->manifest.tokens), "an image is proved");
  }

  zmq::context_t context_{1};
  zmq::socket_t holder_{context_, zmq::socket_type::router};
  zmq::socket_t puller_{context_, zmq::socket_type::dealer};
  std::unique_ptr<kv_exchange> exchange_;
};

} // namespace
} // namespace rollcast::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  static fuzz::stage stage;
  stage.run(fuzz::input_reader{fuzz::text_of(data, size)});
  return 0;
}
