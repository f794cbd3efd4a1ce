#pragma once

#include "engine/backend/backend.hpp"
#include "engine/base/ids.hpp"
#include "kernels/sampling.hpp"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace rollcast {

/// One token of a draft. A draft is a tree in which every node comes behind its parent; a chain is
/// the tree in which each node's parent is the one before it.
struct draft_token {
  token_id token = 0;
  std::int32_t parent = -1; ///< Index in the draft; -1: follows the response's last token.
  float probability = 0;    ///< The drafter's word: that it is right, given that its parent is.
};

/// A response that decodes in the step being built.
struct draft_seat {
  response_id response;
  std::span<const token_id> tokens; ///< The prompt and all that was generated.
  std::uint32_t room = 0;           ///< Most tokens of one path: what chunk and KV blocks leave.
  /// Where the draft goes; empty before. Of two children the first is the one that needs no block
  /// of its own, so the likelier one should come first.
  std::vector<draft_token>* draft = nullptr;
  /// How the token after `tokens` will be chosen; those after it at the positions that follow. Its
  /// bans hold for the first `banned_for` of them.
  kernels::sample_params noise = {};
  std::uint32_t banned_for = 0;
};

/// What became of one seat.
struct draft_outcome {
  response_id response;
  /// What was verified, perhaps less than was drafted and in another order: what is deeper than
  /// `room`, outside the vocabulary, one row too many or without a block to lie in is left out.
  std::span<const draft_token> draft;
  std::uint32_t accepted = 0;      ///< Length of the path from the root that turned out right.
  std::span<const token_id> fresh; ///< What was generated: the accepted, and one more.
};

/// Rows of a pass that computed positions of a response which stand: of its prompt, or of tokens
/// that it has.
struct seen_rows {
  response_id response;
  std::uint32_t position = 0;          ///< Of the first.
  std::span<const std::uint32_t> rows; ///< Where in the pass, by position.
  /// The token behind each; of a response that has ended its last one.
  std::span<const token_id> next;
};

/// The step that drafts are added to.
struct step_load {
  std::uint32_t rows = 0;      ///< Rows without drafts: one a seat, and those of prompts.
  std::uint32_t rows_free = 0; ///< Most drafted tokens in all.
  std::uint64_t kv_tokens =
    0; ///< Cached positions that responses and prompts attend to, each once.
  std::uint32_t seat_kv_tokens = 0; ///< Mean of the seats: what a drafted row attends to.
};

/// Proposes tokens for the engine to verify. Nothing it does can change a response: a drafted token
/// is kept only if it is the one that would have been chosen without it. It decides how fast that
/// goes, and so how much to draft, zero included. Called by the engine's thread only.
class drafter {
public:
  virtual ~drafter() = default;

  /// The hidden states that `see` is to be told, as a drafter needs that is a model of its own (MTP
  /// layers, EAGLE); empty: it is never called.
  virtual state_wish wants_states() const { return {}; }

  /// False if the pass of the step being built may go without: then it is not told of its rows.
  /// Asked once the step has its drafts. Keeping states takes time.
  virtual bool sees() const { return true; }

  /// Hears of the target's weights, before the first step and at every exchange.
  virtual void use_target(const std::shared_ptr<const device_weights>& /*target*/) {}

  /// Hears of every row of a step that stands, prompts' too, if it `sees`. A position may come
  /// again, with the same state, after its KV was dropped.
  /// @param states  [rows of the pass, width of the wish], valid during the call.
  virtual void see(std::span<const seen_rows> /*seen*/, std::span<const float> /*states*/) {}

  /// A response has ended its chunk and may go on here: its KV stays. `tokens`: as a seat's, by
  /// then.
  virtual void parked(response_id /*response*/, std::span<const token_id> /*tokens*/) {}

  /// A response has ended, or its KV is gone from here. `tokens`: as a seat's, by then.
  virtual void gone(response_id /*response*/, std::span<const token_id> /*tokens*/) {}

  /// Fills the drafts of the seats, at most `load.rows_free` tokens in all. What does not fit is
  /// not verified; nothing that is drafted can do harm.
  virtual void draft(std::span<const draft_seat> seats, const step_load& load) = 0;

  /// Hears what became of a step: of every response that got a token, drafted for or not. `seconds`
  /// is the time of the step, drafting not included.
  virtual void learn(std::span<const draft_outcome> outcomes, const step_load& load,
                     double seconds) = 0;
};

} // namespace rollcast
