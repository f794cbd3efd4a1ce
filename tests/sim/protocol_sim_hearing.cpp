#include "tests/sim/protocol_sim_client.hpp"

#include <algorithm>
#include <utility>

namespace rollcast::sim {

void sim_client::hear(const wire::event_envelope& what) {
  if (what.request_id == 0)
    return push(what.body);
  const auto it = asked_.find(what.request_id);
  if (it == asked_.end())
    return fail_with("request " + std::to_string(what.request_id) + " is answered twice");
  const auto asked = std::move(it->second);
  asked_.erase(it);
  take_answer(asked, what.body);
}

void sim_client::take_answer(const wire::request& asked, const wire::event& answer) {
  const auto* refused = std::get_if<wire::request_failed>(&answer);
  std::string key;
  if (const auto* submitted = std::get_if<wire::submit_batch>(&asked))
    key = submitted->batch_key;
  else if (const auto* resumed = std::get_if<wire::resume_results>(&asked))
    key = resumed->batch_key;
  if (!key.empty()) {
    auto& b = *find(key);
    b.asking = false;
    if (const auto* accepted = std::get_if<wire::batch_accepted>(&answer))
      return take(b, *accepted);
    return refused ? take_refusal(b, asked, *refused) : fail_with("odd answer to a submission");
  }
  if (const auto* ack = std::get_if<wire::ack_results>(&asked)) {
    auto& b = *find(ack->batch_key);
    if (!refused)
      b.acknowledged = std::max(b.acknowledged, ack->sequence);
    else if (!b.failure || refused->code != errc::unknown_batch)
      return fail_with("an acknowledgement is refused: " + refused->message);
    else
      b.acknowledged = b.size + 1; // it was forgotten with the first one
    return;
  }
  if (std::holds_alternative<wire::resume>(asked))
    paused_ = false;
  if (const auto* s = std::get_if<wire::score>(&asked)) {
    const auto* rows = std::get_if<wire::scored>(&answer);
    ++(rows ? counts.scored : counts.unscored);
    if (auto bad = rows ? truth_.check(*s, *rows) : std::string{}; !bad.empty())
      fail_with(bad);
    if (!rows && refused->code != errc::stale_epoch && refused->code != errc::peer_lost)
      fail_with("a request for scores is refused: " + refused->message);
    return;
  }
  if (const auto* begun = std::get_if<wire::weights_begun>(&answer))
    return take_begun(*begun);
  if (const auto* served = std::get_if<wire::weights_served>(&answer))
    return take_served(asked, *served);
  if (refused)
    take_unserved(asked, *refused);
}

void sim_client::take(batch& b, const wire::batch_accepted& a) {
  if (a.responses != b.size)
    return fail_with("batch '" + b.spec.batch_key + "' is taken with " + std::to_string(a.responses)
                     + " responses of " + std::to_string(b.size));
  if (a.first_sequence > b.have + 1 && !b.over)
    return fail_with("batch '" + b.spec.batch_key + "' goes on at "
                     + std::to_string(a.first_sequence) + ", all up to " + std::to_string(b.have)
                     + " came: results are lost");
  b.next = a.first_sequence;
  b.accepted = true;
}

void sim_client::take_refusal(batch& b, const wire::request& asked,
                              const wire::request_failed& why) {
  if (why.code == errc::queue_full)
    return; // it tries again
  if (why.code == errc::stale_epoch && b.spec.required_weight_version && b.have == 0
      && std::holds_alternative<wire::submit_batch>(asked)) {
    b.refused = !b.over;
    return;
  }
  if (why.code == errc::unknown_batch && b.failure)
    return;
  fail_with("batch '" + b.spec.batch_key + "' is refused: " + why.message);
}

void sim_client::push(const wire::event& what) {
  if (const auto* r = std::get_if<wire::response_ready>(&what))
    return take_result(*r);
  if (const auto* d = std::get_if<wire::batch_done>(&what)) {
    if (const auto* b = find(d->batch_key); b && d->summary.responses != b->size)
      fail_with("the summary of batch '" + d->batch_key + "' counts other responses");
    return take_end(d->batch_key, d->sequence, {});
  }
  if (const auto* f = std::get_if<wire::request_failed>(&what))
    if (const auto* b = find(f->batch_key))
      return take_end(f->batch_key, b->size + 1, f->code);
  fail_with("something is pushed that nobody waits for");
}

void sim_client::take_result(const wire::response_ready& r) {
  auto* b = find(r.batch_key);
  if (b && b->next != 0 && r.sequence <= b->acknowledging + 1)
    b->next = std::max(b->next, r.sequence);
  if (!b || b->next == 0 || r.sequence != b->next || r.sequence > b->size)
    return fail_with("result " + std::to_string(r.sequence) + " of batch '" + r.batch_key + "', "
                     + std::to_string(b ? b->next : 0) + " was due");
  ++b->next;
  if (r.sequence <= b->have) {
    ++counts.repeated;
    if (!(b->results[r.sequence - 1] == r))
      fail_with("result " + std::to_string(r.sequence) + " of batch '" + r.batch_key
                + "' came again, with another content");
    return;
  }
  if (r.sequence != b->have + 1)
    return fail_with("a result of batch '" + r.batch_key + "' is left out");
  for (std::uint64_t i = 0; i < b->have; ++i)
    if (b->results[i].group == r.group && b->results[i].index == r.index)
      return fail_with("a response of batch '" + r.batch_key + "' is delivered twice");
  b->results[b->have++] = r;
  ++counts.results;
  counts.several_epochs += r.weight_versions.size() > 1;
  counts.cancelled += r.reason == wire::finish_reason::cancelled;
  if (auto bad = truth_.check(b->spec, r); !bad.empty())
    fail_with(bad);
}

void sim_client::take_end(const std::string& key, std::uint64_t sequence,
                          std::optional<errc> failure) {
  auto* b = find(key);
  if (b && b->next != 0 && b->acknowledging >= b->size)
    b->next = std::max(b->next, sequence);
  if (!b || sequence != b->size + 1 || b->next != sequence || b->have != b->size)
    return fail_with("batch '" + key + "' ends at " + std::to_string(sequence) + ", "
                     + std::to_string(b ? b->have : 0) + " results came");
  ++b->next;
  if (b->over && b->failure != failure)
    return fail_with("batch '" + key + "' ends twice, in two ways");
  counts.failed += failure && !b->over;
  b->over = true;
  b->failure = failure;
  const bool cancelled = std::any_of(b->results.begin(), b->results.end(), [](const auto& r) {
    return r.reason == wire::finish_reason::cancelled;
  });
  if (cancelled && !b->cancelling && !failure)
    fail_with("batch '" + key + "' has cancelled responses that nobody cancelled");
  if (failure && (*failure != errc::stale_epoch || !b->spec.required_weight_version))
    fail_with("batch '" + key + "' cannot go on: " + std::string{to_string(*failure)});
}

} // namespace rollcast::sim
