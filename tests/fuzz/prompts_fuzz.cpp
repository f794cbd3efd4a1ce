// Goal: no prompts.jsonl crashes the reader, and what is taken can be sent.
// Method: the input is the file, text prompts go through a real tokenizer. What is taken is put in
// a batch; one that the scheduler would take comes back the same from the wire.

#include "cli/prompt_file.hpp"
#include "cluster/wire/codec.hpp"
#include "tests/fuzz/fuzz.hpp"

namespace rollcast::fuzz {
namespace {

const tokenizer& words() {
  static const auto loaded =
    tokenizer::load(source_file("tests/fixtures/tokenizer/collatz.tokenizer.json"));
  if (!loaded)
    broken(loaded.error().detail);
  return *loaded;
}

void send(std::vector<wire::prompt_group> groups, const wire::sampling_params& sampling) {
  wire::submit_batch batch;
  batch.batch_key = "k";
  batch.groups = std::move(groups);
  batch.sampling = sampling;
  if (const auto ok = wire::validate(batch); !ok)
    return check_refusal(ok.error());
  const auto bytes = wire::encode(1, wire::request{batch});
  const auto read = wire::decode_request(bytes_of(bytes));
  require(read.has_value(), "the scheduler takes what validate takes");
  require(std::get<wire::submit_batch>(read->body) == batch, "a prompt is sent as it was read");
}

} // namespace
} // namespace rollcast::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  const auto path = fuzz::write_scratch("prompts.jsonl", fuzz::text_of(data, size));
  cli::prompt_defaults defaults;
  defaults.sampling.max_new_tokens = 16;
  auto groups = cli::read_prompts(path, defaults, &fuzz::words());
  if (!groups) {
    fuzz::check_refusal(groups.error());
    return 0;
  }
  for (const auto& group : *groups)
    fuzz::require(!group.prompt_token_ids.empty() && group.group_size > 0, "there is work to do");
  fuzz::send(std::move(*groups), defaults.sampling);
  return 0;
}
