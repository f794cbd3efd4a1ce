// Goal: no responses.jsonl crashes the reader, and what it reads is written and read as the same.
// Method: the input is the file; each record that is taken goes through to_line and from_line.

#include "cli/response_file.hpp"
#include "tests/fuzz/fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  const auto text = fuzz::text_of(data, size);
  const auto path = fuzz::write_scratch("responses.jsonl", text);
  const auto records = cli::read_responses(path);
  if (!records)
    fuzz::check_refusal(records.error());
  else
    for (const auto& record : *records) {
      const auto line = cli::to_line(record);
      fuzz::require(line.find('\n') == line.npos, "a record is one line");
      const auto again = cli::from_line(line, "here");
      fuzz::require(again.has_value(), "what to_line writes is taken");
      fuzz::require(cli::to_line(*again) == line, "a record comes back as it was written");
    }
  const auto first = std::string{text.substr(0, text.find('\n'))};
  if (const auto record = cli::from_line(first, "here"); !record)
    fuzz::check_refusal(record.error());
  return 0;
}
