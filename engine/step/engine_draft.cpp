#include "engine/base/check.hpp"
#include "engine/step/engine_state.hpp"

#include <algorithm>
#include <chrono>

namespace rollcast {

// -- what is drafted ----------------------------------------------------------

void engine::state::plan_drafts(std::uint32_t budget) {
  seats_.clear();
  load_ = {limits.rows_max - budget, 0, 0, 0};
  std::uint64_t seat_tokens = 0;
  std::uint32_t choosing = 0;
  for (sequence* seq : stepping_) {
    if (seq->state != sequence_state::running || seq->step_rows == 0)
      continue;
    load_.kv_tokens += seq->cached + seq->step_rows;
    if (seq->step_rows < seq->pending())
      continue; // a prompt that is not through yet
    ++choosing;
    // The last token of a chunk is chosen but never fed, and a draft makes no response grow: what
    // its branches borrow goes back when the step is verified.
    const auto held = static_cast<std::uint32_t>(seq->blocks.size()) * device->shape().block_tokens;
    const auto fed = std::min(seq->chunk_end - 1, held);
    if (fed <= seq->size())
      continue;
    seq->draft_room = fed - seq->size();
    seat_tokens += seq->size();
    const auto least = seq->sampling.min_new_tokens;
    seats_.push_back({seq->id, seq->tokens, seq->draft_room, &seq->draft, noise_of(*seq, 0),
                      least > seq->generated() ? least - seq->generated() : 0});
  }
  load_.rows_free = std::min(budget, device->shape().logit_rows_max - choosing);
  draft_rows_left_ = load_.rows_free;
  drafting_s_ = 0;
  if (seats_.empty() || load_.rows_free == 0)
    return;
  load_.seat_kv_tokens = static_cast<std::uint32_t>(seat_tokens / seats_.size());
  const auto begin = std::chrono::steady_clock::now();
  speculator->draft(seats_, load_);
  drafting_s_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// -- its rows -----------------------------------------------------------------

void engine::state::add_draft(sequence& seq) {
  const device_shape& shape = device->shape();
  const auto held = static_cast<std::uint32_t>(seq.blocks.size());
  // The list must not move: the pass reads it where it is.
  const auto borrowed_max = std::min<std::size_t>(pool_.free(), seq.blocks.capacity() - held);
  tree_.arrange(seq.draft, {seq.draft_room, draft_rows_left_, shape.vocabulary, seq.size(),
                            shape.block_tokens, held, static_cast<std::uint32_t>(borrowed_max)});
  draft_rows_left_ -= static_cast<std::uint32_t>(seq.draft.size());
  // Borrowed until the step is verified.
  seq.blocks_owned = held;
  if (const auto need = tree_.first_spare() + tree_.spares(); tree_.spares() > 0 && need > held)
    ROLLCAST_CHECK(pool_.take(need - held, seq.blocks));
  seq.first_branch = seq.end_branch = static_cast<std::uint32_t>(branches_.size());
  seq.first_spare = tree_.first_spare();
  std::uint32_t spare = seq.first_spare;
  const auto paths = tree_.paths();
  for (std::size_t p = 0; p < paths.size(); ++p) {
    const auto end =
      p + 1 < paths.size() ? paths[p + 1].begin : static_cast<std::uint32_t>(seq.draft.size());
    if (p == 0)
      row_sequences_.back().rows += end;
    else
      spare = add_branch(seq, paths[p], end, spare);
    const std::uint32_t* blocks =
      p == 0 ? seq.blocks.data() : &branch_blocks_[branches_.back().table];
    for (auto i = paths[p].begin; i < end; ++i) {
      const auto position = seq.size() + paths[p].depth - 1 + (i - paths[p].begin);
      row_tokens_.push_back(seq.draft[i].token);
      row_places_.push_back({position, blocks[position / shape.block_tokens]});
      logit_rows_.push_back(static_cast<std::uint32_t>(row_tokens_.size()) - 1);
    }
  }
}

std::uint32_t engine::state::add_branch(sequence& seq, const draft_path& path, std::uint32_t end,
                                        std::uint32_t spare) {
  const std::uint32_t block = device->shape().block_tokens;
  const auto position = seq.size() + path.depth - 1;
  const auto rows = end - path.begin;
  const auto first = position / block;
  const auto last = (position + rows - 1) / block;
  // Before the block of the fork it shares what its parent's path has.
  const branch* over = branch_of(seq, path.parent);
  const auto table = static_cast<std::uint32_t>(branch_blocks_.size());
  branch_blocks_.resize(table + last + 1);
  const std::uint32_t* above = over != nullptr ? &branch_blocks_[over->table] : seq.blocks.data();
  std::copy_n(above, first, &branch_blocks_[table]);
  if (position % block > 0)
    row_copies_.push_back({above[first], seq.blocks[spare], 0, position % block});
  for (auto i = first; i <= last; ++i)
    branch_blocks_[table + i] = seq.blocks[spare++];
  seq.end_branch = static_cast<std::uint32_t>(branches_.size()) + 1;
  branches_.push_back({static_cast<std::uint32_t>(row_sequences_.size()), path.begin, end, table});
  row_sequences_.push_back(
    {nullptr, static_cast<std::uint32_t>(row_tokens_.size()), rows, position});
  return spare;
}

const engine::state::branch* engine::state::branch_of(const sequence& seq,
                                                      std::int32_t node) const {
  if (node < 0)
    return nullptr;
  const auto at = static_cast<std::uint32_t>(node);
  for (auto i = seq.first_branch; i < seq.end_branch; ++i)
    if (at >= branches_[i].begin && at < branches_[i].end)
      return &branches_[i];
  return nullptr;
}

// -- what was right -----------------------------------------------------------

void engine::state::sample_drafts() {
  trees_.clear();
  fed_.clear();
  parents_.clear();
  for (const sequence* seq : choosers_) {
    trees_.push_back(
      {static_cast<std::uint32_t>(fed_.size()), static_cast<std::uint32_t>(seq->draft.size()) + 1});
    fed_.push_back(seq->tokens.back());
    parents_.push_back(0);
    for (const auto& drafted : seq->draft) {
      fed_.push_back(drafted.token);
      parents_.push_back(static_cast<std::uint32_t>(drafted.parent + 1));
    }
  }
  paths_.resize(trees_.size());
  path_nodes_.resize(fed_.size());
  device->sample_drafts(noise_, {trees_, fed_, parents_}, chosen_, {paths_, path_nodes_});
}

std::uint32_t engine::state::take_path(std::size_t chooser) {
  accepted_.clear();
  if (choosers_[chooser]->draft.empty())
    return 0;
  const auto length = paths_[chooser].length;
  for (std::uint32_t i = 1; i <= length; ++i)
    accepted_.push_back(path_nodes_[trees_[chooser].begin + i] - 1); // without the root
  return length;
}

void engine::state::keep_branch(sequence& seq) {
  if (const branch* b =
        accepted_.empty() ? nullptr : branch_of(seq, static_cast<std::int32_t>(accepted_.back()))) {
    const std::uint32_t block = device->shape().block_tokens;
    const auto last = (seq.size() + static_cast<std::uint32_t>(accepted_.size()) - 1) / block;
    for (auto i = (seq.size() - 1) / block; i <= last; ++i) {
      const auto wanted = branch_blocks_[b->table + i];
      if (seq.blocks[i] == wanted)
        continue;
      const auto spare = std::find(seq.blocks.begin() + seq.first_spare, seq.blocks.end(), wanted);
      ROLLCAST_CHECK(spare != seq.blocks.end());
      std::swap(seq.blocks[i], *spare);
    }
  }
  pool_.give_back(seq.blocks, seq.blocks_owned);
}

void engine::state::note_rows(const sequence& seq, std::uint32_t kept) {
  if (!wants_states_)
    return;
  const auto begin = standing_.size(); // its memory is reserved, so that spans into it hold
  for (std::uint32_t i = 0; i < seq.step_rows; ++i)
    standing_.push_back(seq.row_begin + i);
  for (std::uint32_t i = 0; i < kept; ++i)
    standing_.push_back(seq.row_begin + seq.step_rows + accepted_[i]);
  const auto rows = seq.step_rows + kept;
  const auto position = seq.cached - rows;
  seen_.push_back({seq.id, position, std::span{standing_}.subspan(begin),
                   std::span{seq.tokens}.subspan(position + 1, rows)});
}

void engine::state::tell_states() {
  if (keeps_states_)
    speculator->see(seen_, device->states());
  tell_ended();
}

void engine::state::tell_ended() {
  if (speculator)
    for (const auto& seq : ended_)
      speculator->gone(seq->id, seq->tokens);
}

std::size_t engine::state::verify(std::size_t chooser,
                                  std::span<const kernels::sampled_token> chosen) {
  sequence& seq = *choosers_[chooser];
  const auto drafted = seq.draft.size();
  const auto before = seq.size();
  const auto accepted = take_path(chooser);
  if (drafted > 0)
    keep_branch(seq);
  std::uint32_t said = 0; // of the drafted path, before the response's chunk ends
  for (bool goes_on = true; goes_on && said <= accepted; ++said) {
    // The row that chose this token was fed what precedes it, so that much of the KV is right.
    seq.cached = seq.size();
    const std::size_t ahead = said == 0 ? 0 : accepted_[said - 1] + 1;
    if (said == 0)
      keep_experts(seq, seq.cached - seq.step_rows, seq.row_begin, seq.step_rows);
    else
      keep_experts(seq, seq.cached - 1,
                   seq.row_begin + seq.step_rows + static_cast<std::uint32_t>(ahead) - 1, 1);
    goes_on = append(seq, chosen[ahead]);
  }
  note_rows(seq, said - 1);
  const auto right = std::min(said, accepted);
  if (drafted > 0) {
    stats.draft_tokens += drafted;
    stats.accepted_tokens += right;
    ++stats.verifications;
  }
  outcomes_.push_back({seq.id, seq.draft, right, std::span{seq.tokens}.subspan(before)});
  return drafted + 1;
}

} // namespace rollcast
