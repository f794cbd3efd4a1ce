#pragma once

#include "engine/backend/backend.hpp"
#include "engine/cache/block_pool.hpp"
#include "engine/draft/draft_budget.hpp"
#include "engine/draft/draft_choice.hpp"
#include "engine/draft/drafter.hpp"

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace rollcast {

/// A drafter's model on a device, and what it takes from its target.
struct drafting_model {
  std::shared_ptr<backend> device;
  state_wish wants;                 ///< Of the target's rows.
  std::size_t width = 0;            ///< Of these states.
  state_wish own;                   ///< What it takes in place of them when it goes on by itself.
  std::size_t own_width = 0;        ///< Of those.
  std::vector<token_id> target_ids; ///< The target's token of each of its own; empty: the same.
  std::string layer_prefix;         ///< Of its tensors' names.
};

/// The shape of a model's drafts; names, meanings and rules as in SGLang.
struct model_draft_options {
  std::uint32_t steps = 3;  ///< Tokens of one path at most; each but the first costs a pass.
  std::uint32_t topk = 1;   ///< Tokens tried in one place, and paths that grow at once.
  std::uint32_t tokens = 4; ///< Verified for one response, its last token counted.
  draft_noise noise = draft_noise::shared;
  float survival_min = 0.05f; ///< Chance of being kept below which nothing is drafted.
};

/// Returns why a shape is none: "" if it is one. One path has steps + 1 tokens, and a tree no more
/// than grow in it.
std::string check_shape_of(const model_draft_options& options);

/// Running totals, for metrics.
struct model_draft_figures {
  std::uint64_t drafts = 0; ///< Responses that something was drafted for, over all steps.
  std::uint64_t tokens = 0; ///< Drafted and verified.
  std::uint64_t accepted = 0;
  std::uint64_t passes = 0; ///< Of the drafter's model.
  std::uint64_t rows = 0;
  /// Contexts that began anew: the model's own was full, or states were missed.
  std::uint64_t restarts = 0;
  std::uint64_t starved = 0; ///< Contexts given up for want of KV blocks.
  double seconds = 0;        ///< Drafting.
  std::uint64_t contexts = 0;
};

/// Drafts with a model of one layer that takes in its target's hidden states: an EAGLE-3 head or an
/// MTP layer. It has KV of its own for every response, from the first row that it was shown; what
/// came before, such as of a response that came with its KV from elsewhere, it does not attend to.
/// All responses of a step share its passes. Belongs to the engine's thread.
class model_drafter final : public drafter {
public:
  /// @pre `check_shape_of(options)` is empty, and the device has a position more than `steps`.
  model_drafter(drafting_model model, const model_draft_options& options);
  ~model_drafter() override;

  state_wish wants_states() const override { return model_.wants; }
  void use_target(const std::shared_ptr<const device_weights>& target) override;
  void see(std::span<const seen_rows> seen, std::span<const float> states) override;
  void gone(response_id response, std::span<const token_id> tokens) override;
  void draft(std::span<const draft_seat> seats, const step_load& load) override;
  void learn(std::span<const draft_outcome> outcomes, const step_load& load,
             double seconds) override;

  /// As `draft`, but verifies no more than pays by these costs, and no deeper than `steps`.
  void draft(std::span<const draft_seat> seats, const step_load& load, std::uint32_t steps,
             const step_costs* costs);
  /// In place of `draft` in a step that has none of its: keeps the latest states only.
  void rest();
  /// Leaves each context the last states that a resting model needs to begin again.
  void trim();
  /// Gives up all contexts: it will not see for a while.
  void forget();
  /// Mean chance, as learnt, that the token at a place (0: the first) is right if those before are.
  float chance(std::size_t place) const;

  const model_draft_options& options() const noexcept { return options_; }
  const model_draft_figures& figures() const noexcept { return figures_; }
  const backend& device() const noexcept { return *model_.device; }
  drafting_model& model() noexcept { return model_; }

private:
  /// What the model knows of a response. Its positions count from `begin`: rotation only tells
  /// distances.
  struct context {
    std::uint32_t begin = 0; ///< Position in the response of its first row.
    std::uint32_t rows = 0;  ///< In its KV.
    std::vector<std::uint32_t> blocks;
    std::vector<float> states;  ///< [pending, width], not in its KV yet.
    std::vector<token_id> next; ///< [pending], the token behind each.

    std::uint32_t pending() const noexcept { return static_cast<std::uint32_t>(next.size()); }
    std::uint32_t end() const noexcept { return begin + rows + pending(); }
  };
  struct node {
    draft_token given;
    std::uint32_t depth = 0;
    float survival = 0;
    std::uint32_t beam = 0;  ///< That it comes from.
    std::uint32_t state = 0; ///< Row of `own_states_` that comes in with it.
    bool kept = false;
  };
  /// A path that grows: the node at its end, and the state that comes in with it.
  struct beam {
    std::uint32_t node = 0;
    std::uint32_t parent = 0; ///< The beam of the depth before that it goes on from.
    std::uint32_t state = 0;  ///< Row of `own_states_`.
  };
  /// A seat whose draft is being made.
  struct grower {
    const draft_seat* seat = nullptr;
    context* of = nullptr;
    std::vector<node> nodes;
    std::vector<beam> beams;
    std::vector<std::uint32_t> blocks; ///< Trees: [2][topk][path_blocks], in turn.
    std::uint32_t path_blocks = 0;
  };
  struct rank {
    float survival;
    std::uint32_t grower;
    std::uint32_t node;
  };
  /// The rows of a pass being built.
  struct pass_rows {
    std::vector<token_id> tokens;
    std::vector<kernels::row_place> places;
    std::vector<kernels::attention_sequence> sequences;
    std::vector<std::uint32_t> logit_rows;
    std::vector<kernels::kv_slots> copies;
    std::vector<float> taken;
    std::vector<std::vector<std::uint32_t>> tables; ///< Of sequences that need one of their own.
    void clear();
  };

  // model_drafter.cpp: contexts
  void restart(context& c, std::uint32_t kept);
  bool make_room(context& c);
  void extend(std::span<const draft_seat> seats);
  std::uint32_t add_pending(context& c, std::uint32_t from);
  void run_pass(bool own);
  // model_drafter_grow.cpp: drafts
  kernels::sample_params noise_at(const draft_seat& seat, std::uint32_t ahead) const;
  void add_children(grower& g, std::int32_t parent, std::uint32_t parent_beam,
                    std::size_t logit_row, std::uint32_t state);
  void choose_beams(grower& g, std::size_t first_child);
  void begin_draft(grower& g, std::size_t logit_row, std::size_t row);
  bool take_path_blocks(grower& g);
  const std::uint32_t* path_table(grower& g, std::size_t beam, std::uint32_t depth);
  void add_path_rows(grower& g, std::uint32_t depth);
  bool grow(std::uint32_t depth);
  void keep_best(std::size_t seats, const step_load& load, const step_costs* costs);
  void write();

  drafting_model model_;
  model_draft_options options_;
  block_pool pool_;
  draft_chooser chooser_;
  acceptance acceptance_;
  std::vector<float> mean_; ///< By place, a moving mean of right and wrong.
  std::unordered_map<response_id, context> contexts_;
  std::unordered_set<response_id> drafted_; ///< In the step under way.
  bool resting_ = false;                    ///< In that step.
  // Of the step being drafted.
  pass_rows pass_;
  std::vector<grower> growers_;
  std::size_t growing_ = 0;
  std::vector<float> own_states_, next_states_;
  std::vector<proposed_token> proposed_;
  std::vector<rank> ranked_; ///< What may be verified, best first.
  std::vector<float> survivals_;
  std::vector<std::int32_t> places_; ///< By node: where in the seat's draft it went.
  model_draft_figures figures_;
};

} // namespace rollcast
