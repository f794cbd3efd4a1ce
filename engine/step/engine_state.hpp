#pragma once

#include "engine/cache/block_pool.hpp"
#include "engine/step/draft_tree.hpp"
#include "engine/step/engine.hpp"
#include "engine/step/sequence.hpp"

#include <memory>
#include <unordered_map>
#include <vector>

namespace rollcast {

/// Everything inside an engine. Split over engine.cpp (what callers see), engine_step.cpp (one
/// step), engine_draft.cpp (what it drafts and verifies), engine_kv.cpp (images) and
/// engine_score.cpp.
class engine::state {
public:
  state(std::unique_ptr<backend> device, engine_limits limits);

  result<void> admit(chunk_request request);
  std::span<const chunk_report> step();
  std::span<const chunk_report> cut();
  std::span<const chunk_report> cut(response_id response);
  bool release(response_id response);
  void speculate(std::shared_ptr<drafter> by);
  result<kv_manifest> export_kv(response_id response, kv_bytes& image) const;
  result<void> import_kv(const kv_manifest& manifest, std::span<const std::byte> image);
  result<void> use_weights(std::shared_ptr<const device_weights> weights);
  result<void> score(std::span<const score_request> sequences,
                     std::vector<std::vector<float>>& logprobs);
  kv_usage kv() const noexcept;
  bool is_parked(response_id response) const noexcept;

  std::unique_ptr<backend> device;
  engine_limits limits;
  engine_stats stats;
  std::vector<sequence*> running; ///< Ordered by arrival.
  std::vector<sequence*> waiting; ///< Ordered by arrival.
  std::shared_ptr<drafter> speculator;

private:
  /// A path of a draft in blocks of its own, from that of its first node on.
  struct branch {
    std::uint32_t row_sequence; ///< In `row_sequences_`.
    std::uint32_t begin;        ///< Of its nodes.
    std::uint32_t end;
    std::uint32_t table; ///< Where its block table begins in `branch_blocks_`.
  };

  /// A sequence of which scores are still to come.
  struct scored_sequence {
    std::size_t index;         ///< In what was asked for.
    std::uint32_t fed;         ///< Positions to compute; the last token is only scored.
    std::uint32_t wanted_from; ///< The first position whose logits are wanted.
    std::uint32_t begin = 0;   ///< The next position to compute.
    std::uint32_t end = 0;     ///< Behind the positions of the pass being built.
    std::vector<std::uint32_t> blocks = {};
  };

  std::uint32_t blocks_for(std::uint32_t tokens) const noexcept;
  result<void> check_scores(std::span<const score_request> sequences) const;
  void plan_scores(std::span<const score_request> sequences, std::vector<scored_sequence>& active);
  std::unique_ptr<sequence> make_sequence(chunk_request&& request) const;
  void adopt_parked(sequence& fresh);
  void take_ids(sequence& fresh, const sequence& old) const;
  bool erase(response_id response);
  void retire_ended();
  void start_waiting();
  bool evict_parked();
  bool evict_waiting(const sequence& but);
  void forget_kv(sequence& seq);
  bool take_blocks(sequence& seq, std::uint32_t tokens);
  bool make_room(sequence& grower, std::uint32_t tokens);
  void preempt(sequence& victim);
  void plan_rows();
  void plan_drafts(std::uint32_t budget);
  void add_rows(sequence& seq);
  void add_draft(sequence& seq);
  /// @param spare  In the sequence's blocks: the next that is free for a branch. @returns the one
  /// after those it takes.
  std::uint32_t add_branch(sequence& seq, const draft_path& path, std::uint32_t end,
                           std::uint32_t spare);
  /// The branch that a node lies in; null for the first path and the root.
  const branch* branch_of(const sequence& seq, std::int32_t node) const;
  void choose_tokens();
  /// Has the device choose and follow the drafts: `chosen_`, `paths_` and `path_nodes_`.
  void sample_drafts();
  /// Puts the nodes of the path that the device followed into `accepted_`. @returns how many.
  std::uint32_t take_path(std::size_t chooser);
  /// Notes the rows of the pass that computed positions of the response which stand: its own, and
  /// the first `kept` of `accepted_`. Only for a drafter that asks.
  void note_rows(const sequence& seq, std::uint32_t kept);
  /// Keeps the ids of the experts of a response's positions from `position` on, whose rows follow
  /// `row` in the last pass, if they are asked for and not kept already.
  void keep_experts(sequence& seq, std::uint32_t position, std::uint32_t row, std::uint32_t rows);
  /// The same of those whose prompt is not through yet; the others' come with their tokens.
  void keep_prompt_experts();
  /// Tells the drafter their states, and which responses have ended.
  void tell_states();
  void tell_ended();
  /// Puts the blocks of the accepted branch in their place and returns what was borrowed.
  void keep_branch(sequence& seq);
  /// Adds what was chosen, up to the first token that is not in the draft.
  /// @returns the logit rows that the response had.
  std::size_t verify(std::size_t chooser, std::span<const kernels::sampled_token> chosen);
  /// Adds a token to a response. @returns whether its chunk goes on.
  bool append(sequence& seq, const kernels::sampled_token& chosen);
  void end_chunk(sequence& seq, chunk_end why);
  bool stops(const sequence& seq, token_id token) const noexcept;
  kernels::sample_params noise_of(const sequence& seq, std::uint32_t ahead) const noexcept;

  block_pool pool_;
  std::unordered_map<response_id, std::unique_ptr<sequence>> sequences_;
  std::vector<std::unique_ptr<sequence>> ended_; ///< Kept alive for the reports' spans.
  std::vector<chunk_report> reports_;
  std::uint64_t arrivals_ = 0;

  // Rows of the step being built; reserved once.
  std::vector<token_id> row_tokens_;
  std::vector<kernels::row_place> row_places_;
  std::vector<kernels::attention_sequence> row_sequences_;
  std::vector<std::uint32_t> logit_rows_;
  std::vector<sequence*> choosers_; ///< Who has logit rows: one, and one for each drafted token.
  std::vector<kernels::sample_params> noise_;
  std::vector<kernels::sampled_token> chosen_;
  std::vector<sequence*> stepping_; ///< Copy of `running` while it may change.
  std::vector<draft_seat> seats_;
  draft_tree tree_;
  std::vector<branch> branches_;
  std::vector<std::uint32_t> branch_blocks_; ///< Their block tables, one behind the other.
  std::vector<kernels::kv_slots> row_copies_;
  std::vector<kernels::tree_span> trees_; ///< The drafts of a step as the device follows them.
  std::vector<token_id> fed_;
  std::vector<std::uint32_t> parents_;
  std::vector<kernels::accepted_path> paths_;
  std::vector<std::uint32_t> path_nodes_;
  std::vector<std::uint32_t> accepted_; ///< Nodes on the path that is right.
  std::uint32_t draft_rows_left_ = 0;
  bool wants_states_ = false;           ///< The drafter asks for them.
  bool keeps_states_ = false;           ///< In the pass under way.
  bool keeps_experts_ = false;          ///< A response of the step being built asks for them.
  std::vector<std::uint32_t> standing_; ///< Rows of the pass, one response behind the other.
  std::vector<seen_rows> seen_;
  std::vector<draft_outcome> outcomes_;
  step_load load_;
  double drafting_s_ = 0; ///< In the step being built.
};

} // namespace rollcast
