#include "engine/draft/model_drafter.hpp"

#include "engine/base/check.hpp"

#include <algorithm>
#include <utility>

namespace rollcast {

namespace {

/// States of a response that are kept while nothing is drafted: what a context begins with when it
/// is wanted again.
constexpr std::uint32_t resting_states = 16;

/// What a place is worth before anything was learnt, and how fast that is.
constexpr float mean_prior = 0.5f;
constexpr float mean_refresh = 1.0f / 64;
/// And how fast it is forgotten while nothing is drafted.
constexpr float mean_forgetting = 1.0f / 2048;

} // namespace

std::string check_shape_of(const model_draft_options& options) {
  const auto& [steps, topk, tokens, noise, survival] = options;
  if (steps == 0 || topk == 0 || tokens < 2)
    return "speculative-num-steps, eagle-topk and num-draft-tokens are " + std::to_string(steps)
           + ", " + std::to_string(topk) + " and " + std::to_string(tokens)
           + ": at least 1, 1 and 2 are needed";
  if (topk == 1 && tokens != steps + 1)
    return "speculative-num-draft-tokens is " + std::to_string(tokens)
           + ": with speculative-eagle-topk 1 it is speculative-num-steps + 1 = "
           + std::to_string(steps + 1);
  const std::uint64_t most = 1 + topk + std::uint64_t{steps - 1} * topk * topk;
  if (tokens > most)
    return "speculative-num-draft-tokens is " + std::to_string(tokens) + ": no more than "
           + std::to_string(most) + " grow in " + std::to_string(steps) + " steps of "
           + std::to_string(topk);
  return {};
}

void model_drafter::pass_rows::clear() {
  tokens.clear();
  places.clear();
  sequences.clear();
  logit_rows.clear();
  copies.clear();
  taken.clear();
  tables.clear();
}

model_drafter::model_drafter(drafting_model model, const model_draft_options& options)
  : model_(std::move(model)), options_(options), pool_(model_.device->shape().kv_blocks),
    chooser_(model_.target_ids, options.noise), mean_(options.steps, mean_prior) {
  ROLLCAST_CHECK(check_shape_of(options).empty());
  ROLLCAST_CHECK(model_.device->shape().positions_max > options.steps);
  ROLLCAST_CHECK(model_.device->keep_states(model_.own));
}

model_drafter::~model_drafter() = default;

// -- contexts -----------------------------------------------------------------

void model_drafter::use_target(const std::shared_ptr<const device_weights>& target) {
  model_.device->borrow(target);
  forget(); // what contexts hold is of other weights
}

void model_drafter::forget() {
  while (!contexts_.empty())
    gone(contexts_.begin()->first, {});
}

void model_drafter::gone(response_id response, std::span<const token_id> /*tokens*/) {
  const auto it = contexts_.find(response);
  if (it == contexts_.end())
    return;
  pool_.give_back(it->second.blocks);
  contexts_.erase(it);
  figures_.contexts = contexts_.size();
}

/// Forgets what is in the KV, and all that is pending but the last `kept`, with which it goes on.
void model_drafter::restart(context& c, std::uint32_t kept) {
  const auto dropped = c.pending() - kept;
  figures_.restarts += c.rows > 0 || (dropped > 0 && !resting_) ? 1 : 0;
  pool_.give_back(c.blocks);
  c.begin += c.rows + dropped;
  c.rows = 0;
  c.states.erase(c.states.begin(),
                 c.states.begin() + static_cast<std::ptrdiff_t>(dropped * model_.width));
  c.next.erase(c.next.begin(), c.next.begin() + static_cast<std::ptrdiff_t>(dropped));
}

void model_drafter::see(std::span<const seen_rows> seen, std::span<const float> states) {
  for (const auto& s : seen) {
    auto& c = contexts_[s.response];
    if (c.rows + c.pending() == 0)
      c.begin = s.position;
    if (s.position > c.end()) { // states between were missed
      restart(c, 0);
      c.begin = s.position;
    }
    for (std::size_t i = c.end() - s.position; i < s.rows.size(); ++i) {
      const auto row = states.subspan(s.rows[i] * model_.width, model_.width);
      c.states.insert(c.states.end(), row.begin(), row.end());
      c.next.push_back(s.next[i]);
    }
  }
  figures_.contexts = contexts_.size();
  // Steps without a seat, such as those of a long prompt, ask for no draft.
  std::size_t waiting = 0;
  for (const auto& [response, c] : contexts_)
    waiting += c.pending();
  if (waiting <= 2 * model_.device->shape().rows_max)
    return;
  if (resting_)
    trim();
  else
    extend({});
}

void model_drafter::rest() {
  resting_ = true;
  drafted_.clear();
  for (auto& mean : mean_) // what was learnt long ago may be wrong by now
    mean += mean_forgetting * (mean_prior - mean);
  trim();
}

void model_drafter::trim() {
  for (auto& [response, c] : contexts_)
    if (c.pending() > 2 * resting_states)
      restart(c, resting_states);
}

/// Takes the blocks for what is pending and a draft behind it. A context that its model is too
/// short for begins anew. @returns false if there are none.
bool model_drafter::make_room(context& c) {
  const auto& shape = model_.device->shape();
  const auto held = shape.positions_max - options_.steps;
  if (c.rows + c.pending() > held)
    restart(c, std::min(c.pending(), std::max(1u, held / 2)));
  const auto wanted = c.rows + c.pending() + options_.steps;
  const auto need = (wanted + shape.block_tokens - 1) / shape.block_tokens;
  const auto has = static_cast<std::uint32_t>(c.blocks.size());
  return need <= has || pool_.take(need - has, c.blocks);
}

/// Adds rows of a context to the pass, from its `from`th pending one on, as many as fit. @returns
/// how many.
std::uint32_t model_drafter::add_pending(context& c, std::uint32_t from) {
  const auto& shape = model_.device->shape();
  const auto begin = static_cast<std::uint32_t>(pass_.tokens.size());
  const auto rows = std::min(c.pending() - from, shape.rows_max - begin);
  if (rows == 0)
    return 0;
  pass_.sequences.push_back({c.blocks.data(), begin, rows, c.rows + from});
  for (auto i = from; i < from + rows; ++i) {
    const auto position = c.rows + i;
    pass_.tokens.push_back(c.next[i]);
    pass_.places.push_back({position, c.blocks[position / shape.block_tokens]});
  }
  const auto first = c.states.begin() + static_cast<std::ptrdiff_t>(from * model_.width);
  pass_.taken.insert(pass_.taken.end(), first,
                     first + static_cast<std::ptrdiff_t>(rows * model_.width));
  return rows;
}

void model_drafter::run_pass(bool own) {
  forward_rows rows{pass_.tokens, pass_.places, pass_.sequences, pass_.logit_rows, pass_.copies};
  rows.keep_states = true;
  rows.taken = pass_.taken;
  rows.own_states = own;
  model_.device->forward(rows);
  ++figures_.passes;
  figures_.rows += pass_.tokens.size();
}

/// Brings every context up to date. Those of seats whose every state was seen begin their drafts.
void model_drafter::extend(std::span<const draft_seat> seats) {
  std::unordered_map<response_id, const draft_seat*> seated;
  for (const auto& seat : seats)
    if (seat.room > 0)
      seated.emplace(seat.response, &seat);
  struct ending {
    context* of;
    const draft_seat* seat;
    std::size_t logit_row, row;
  };
  std::vector<ending> endings;
  std::vector<std::pair<context*, std::uint32_t>> done;
  const auto flush = [&] {
    if (pass_.tokens.empty())
      return;
    run_pass(false);
    for (const auto& e : endings) {
      auto& g = growers_[growing_++];
      g.seat = e.seat;
      g.of = e.of;
      begin_draft(g, e.logit_row, e.row);
    }
    pass_.clear();
    endings.clear();
  };
  pass_.clear();
  const auto logits_max = model_.device->shape().logit_rows_max;
  for (auto& [response, c] : contexts_) {
    if (c.pending() == 0)
      continue;
    if (!make_room(c)) {
      ++figures_.starved;
      restart(c, 0);
      continue;
    }
    const auto it = seated.find(response);
    const bool sits = it != seated.end() && c.end() + 1 == it->second->tokens.size();
    if (sits && pass_.logit_rows.size() == logits_max)
      flush();
    for (std::uint32_t from = 0; from < c.pending();) {
      const auto added = add_pending(c, from);
      from += added;
      if (from < c.pending())
        flush();
    }
    if (sits) {
      pass_.logit_rows.push_back(static_cast<std::uint32_t>(pass_.tokens.size()) - 1);
      endings.push_back({&c, it->second, pass_.logit_rows.size() - 1, pass_.tokens.size() - 1});
    }
    done.emplace_back(&c, c.pending());
  }
  flush();
  for (const auto& [c, rows] : done) {
    c->rows += rows;
    if (c->states.capacity() > 2 * resting_states * model_.width)
      c->states = {}; // a prompt's are many, and are not needed again
    c->states.clear();
    c->next.clear();
  }
}

// -- what became of drafts ----------------------------------------------------

float model_drafter::chance(std::size_t place) const {
  return mean_[std::min(place, mean_.size() - 1)];
}

void model_drafter::learn(std::span<const draft_outcome> outcomes, const step_load&, double) {
  for (const auto& o : outcomes) {
    if (o.draft.empty() || !drafted_.contains(o.response))
      continue;
    figures_.tokens += o.draft.size();
    figures_.accepted += o.accepted;
    std::int32_t parent = -1;
    for (std::size_t place = 0; place <= o.accepted && place < mean_.size(); ++place) {
      const auto above = parent;
      bool tried = false, right = false;
      for (auto i = static_cast<std::size_t>(above + 1); i < o.draft.size(); ++i) {
        if (o.draft[i].parent != above)
          continue;
        const bool hit = place < o.accepted && o.draft[i].token == o.fresh[place];
        acceptance_.observe(place, o.draft[i].probability, hit);
        tried = true;
        right = right || hit;
        if (hit)
          parent = static_cast<std::int32_t>(i);
      }
      if (tried)
        mean_[place] += mean_refresh * ((right ? 1.0f : 0.0f) - mean_[place]);
    }
  }
}

} // namespace rollcast
