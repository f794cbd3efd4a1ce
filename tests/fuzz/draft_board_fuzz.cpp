// Goal: no sequence of draft frames from any workers crashes the draft server's book, makes it grow
// past its bound, or makes it say what a worker would not take.
// Method: the input is a list of (worker, time that passes, frame); the bounds are small, so that
// what makes room is reached.

#include "cluster/drafts/draft_board.hpp"
#include "tests/fuzz/fuzz.hpp"

namespace rollcast::fuzz {
namespace {

constexpr draft_board_limits small{
  .bytes_max = 1u << 14, .streams_max = 8, .peers_max = 4, .replay_tokens_max = 512};

void check_letters(draft_board& board) {
  for (const auto& letter : board.outbox) {
    require(!letter.to.empty(), "a letter has a reader");
    const auto bytes = encode(letter.frame);
    const auto read = decode_draft_frame(std::as_bytes(std::span{bytes}));
    require(read.has_value() && *read == letter.frame, "a worker takes what the server says");
  }
  board.outbox.clear();
}

} // namespace
} // namespace rollcast::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  fuzz::input_reader input{fuzz::text_of(data, size)};
  draft_board board{fuzz::small, 7};
  draft_board::time now{};
  while (!input.empty()) {
    const auto worker = input.number(1);
    now += std::chrono::milliseconds{input.number(1) << (worker >> 4)};
    const auto peer = std::string(1, static_cast<char>('a' + worker % 8));
    const auto length = input.number(2);
    if (worker == 0xff)
      board.forget(peer);
    else if (const auto frame = decode_draft_frame(fuzz::bytes_of(input.take(length))))
      board.take(peer, *frame, now);
    else
      board.expire(now);
    fuzz::check_letters(board);
    fuzz::require(board.figures().bytes <= fuzz::small.bytes_max, "the board keeps to its bound");
  }
  return 0;
}
