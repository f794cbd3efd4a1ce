#include "cluster/batch/client_share.hpp"

namespace rollcast {

result<void> check_share(const batch_book& book, const std::string& client,
                         const client_limits& limits, const wire::submit_batch& more) {
  std::uint64_t batches = 0;
  std::uint64_t groups = 0;
  std::uint64_t kept = 0;
  std::uint64_t responses = 0;
  std::uint64_t tokens = 0;
  for (const auto& [id, batch] : book.batches()) {
    if (batch.client != client || batch.acknowledged_fully())
      continue;
    ++kept;
    responses += batch.size;
    tokens += batch.prompt_tokens + batch.tokens_held;
    if (batch.phase == batch_phase::ended)
      continue;
    ++batches;
    groups += batch.live_groups;
  }
  std::uint64_t wanted = 0;
  for (const auto& group : more.groups)
    wanted += group.group_size;
  struct share {
    const char* what;
    std::uint64_t has;
    std::uint64_t asks;
    std::uint64_t limit;
  };
  for (const auto& [what, has, asks, limit] :
       {share{"unfinished batches", batches, 1, limits.batches},
        share{"unfinished groups", groups, more.groups.size(), limits.groups},
        share{"batches whose end it has not acknowledged", kept, 1, limits.kept},
        share{"responses in batches whose end it has not acknowledged", responses, wanted,
              limits.responses},
        share{"tokens of prompts and of results that it has not acknowledged", tokens,
              prompt_tokens_of(more), limits.tokens}})
    if (has + asks > limit)
      return fail(errc::queue_full,
                  "client " + client + " has " + std::to_string(has) + " " + what + " and asks for "
                    + std::to_string(asks) + " more, its limit is " + std::to_string(limit)
                    + ": wait until some end, acknowledge results, or ask for less");
  return {};
}

} // namespace rollcast
