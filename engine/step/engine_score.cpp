#include "engine/base/check.hpp"
#include "engine/step/engine_state.hpp"
#include "engine/step/validate.hpp"

#include <algorithm>
#include <string>

namespace rollcast {

result<void> engine::state::check_scores(std::span<const score_request> sequences) const {
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const auto& s = sequences[i];
    const std::string which = sequences.size() == 1 ? std::string{}
                                                    : "sequence " + std::to_string(i) + " of "
                                                        + std::to_string(sequences.size()) + ": ";
    if (auto ok = validate_tokens(s.tokens, device->shape().vocabulary, limits.context_max + 1);
        !ok)
      return fail(ok.error().code, which + ok.error().detail);
    if (s.prompt_tokens == 0 || s.prompt_tokens > s.tokens.size())
      return fail(errc::bad_prompt, which + "prompt of " + std::to_string(s.prompt_tokens) + " in "
                                      + std::to_string(s.tokens.size()) + " tokens");
    const auto need = blocks_for(static_cast<std::uint32_t>(s.tokens.size() - 1));
    if (need > pool_.free())
      return fail(errc::out_of_kv_blocks, which + "scoring " + std::to_string(s.tokens.size())
                                            + " tokens needs " + std::to_string(need)
                                            + " KV blocks, free " + std::to_string(pool_.free()));
  }
  return {};
}

/// Builds a pass: the first sequence gives as many rows as it has, then the next.
void engine::state::plan_scores(std::span<const score_request> sequences,
                                std::vector<scored_sequence>& active) {
  const device_shape& shape = device->shape();
  row_tokens_.clear();
  row_places_.clear();
  row_sequences_.clear();
  logit_rows_.clear();
  for (auto& s : active) {
    const auto rows_left = limits.rows_max - static_cast<std::uint32_t>(row_tokens_.size());
    const auto logits_left = shape.logit_rows_max - static_cast<std::uint32_t>(logit_rows_.size());
    const auto unscored = s.wanted_from > s.begin ? s.wanted_from - s.begin : 0;
    const auto rows = std::min({rows_left, s.fed - s.begin, unscored + logits_left});
    s.end = s.begin + rows;
    if (rows == 0)
      continue;
    const auto first = static_cast<std::uint32_t>(row_tokens_.size());
    row_sequences_.push_back({s.blocks.data(), first, rows, s.begin});
    for (auto at = s.begin; at < s.end; ++at) {
      row_tokens_.push_back(sequences[s.index].tokens[at]);
      row_places_.push_back({at, s.blocks[at / shape.block_tokens]});
      if (at >= s.wanted_from)
        logit_rows_.push_back(first + at - s.begin);
    }
  }
}

result<void> engine::state::score(std::span<const score_request> sequences,
                                  std::vector<std::vector<float>>& logprobs) {
  if (auto ok = check_scores(sequences); !ok)
    return ok;
  logprobs.resize(sequences.size());
  for (std::size_t i = 0; i < sequences.size(); ++i)
    logprobs[i].clear();
  std::vector<scored_sequence> active;
  std::vector<float> temperatures;
  std::vector<token_id> targets;
  std::vector<float> scored;
  for (std::size_t next = 0; next < sequences.size() || !active.empty();) {
    while (next < sequences.size() && active.size() < limits.rows_max) {
      const auto& s = sequences[next];
      scored_sequence fresh{next, static_cast<std::uint32_t>(s.tokens.size() - 1),
                            s.prompt_tokens - 1};
      if (s.tokens.size() > s.prompt_tokens) {
        if (!pool_.take(blocks_for(fresh.fed), fresh.blocks))
          break;
        active.push_back(std::move(fresh));
      }
      ++next;
    }
    if (active.empty())
      break; // what was left had nothing to score
    plan_scores(sequences, active);
    temperatures.clear();
    targets.clear();
    for (const auto& s : active)
      for (auto at = std::max(s.begin, s.wanted_from); at < s.end; ++at) {
        temperatures.push_back(sequences[s.index].temperature);
        targets.push_back(sequences[s.index].tokens[at + 1]);
      }
    scored.resize(targets.size());
    device->forward({row_tokens_, row_places_, row_sequences_, logit_rows_});
    if (!targets.empty())
      device->score(temperatures, targets, scored);
    auto from = scored.begin();
    for (auto& s : active) {
      const auto count = s.end - std::min(s.end, std::max(s.begin, s.wanted_from));
      auto& to = logprobs[s.index];
      to.insert(to.end(), from, from + count);
      from += count;
      s.begin = s.end;
      if (s.begin == s.fed)
        pool_.give_back(s.blocks);
    }
    std::erase_if(active, [](const scored_sequence& s) { return s.begin == s.fed; });
  }
  return {};
}

} // namespace rollcast
