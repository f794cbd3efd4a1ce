// Goal: no trace file crashes the simulator's reader, and what it reads is written and read as the
// same.
// Method: the input is the file; a workload that is taken is written, read and compared.

#include "cluster/sim/trace.hpp"
#include "tests/fuzz/fuzz.hpp"

#include <sstream>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  const auto path = fuzz::write_scratch("trace.csv", fuzz::text_of(data, size));
  const auto workload = sim::read_trace(path);
  if (!workload) {
    fuzz::check_refusal(workload.error());
    return 0;
  }
  for (const auto& r : workload->responses)
    fuzz::require(r.prompt_tokens > 0 && r.output_tokens > 0
                    && r.output_tokens <= workload->tokens_max,
                  "a response has tokens, within the limit");
  std::ostringstream out;
  sim::write_trace(out, workload->responses);
  const auto again = sim::read_trace(fuzz::write_scratch("trace.csv", out.str()));
  fuzz::require(again.has_value(), "what write_trace writes is taken");
  fuzz::require(again->responses == workload->responses, "a trace comes back as it was written");
  return 0;
}
