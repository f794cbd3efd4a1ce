// Goal: any text, also broken UTF-8, goes through every kind of tokenizer and comes back.
// Method: the fixtures of tests/fixtures/tokenizer; exactly the same bytes come back from those
// that change no text. The input's last part is also taken as token ids.

#include "engine/tokenizer/tokenizer.hpp"
#include "tests/fuzz/fuzz.hpp"

#include <vector>

namespace rollcast::fuzz {
namespace {

struct subject {
  std::string name;
  bool exact; ///< decode(encode(x)) is x.
  tokenizer words;
};

const std::vector<subject>& subjects() {
  static const auto all = [] {
    std::vector<subject> loaded;
    for (const auto& [name, exact] :
         {std::pair{"gpt2", false}, std::pair{"llama", true}, std::pair{"collatz", true},
          std::pair{"qwen", false}, std::pair{"strips", false}}) {
      auto words = tokenizer::load(
        source_file("tests/fixtures/tokenizer/" + std::string{name} + ".tokenizer.json"));
      if (!words)
        broken(words.error().detail);
      loaded.push_back({name, exact, std::move(*words)});
    }
    return loaded;
  }();
  return all;
}

void check_ids(const tokenizer& words, std::string_view bytes) {
  std::vector<token_id> ids;
  for (input_reader in{bytes}; !in.empty();)
    ids.push_back(static_cast<token_id>(static_cast<std::int16_t>(in.number(2))));
  if (const auto text = words.decode(ids); !text)
    check_refusal(text.error());
  else
    (void)words.encode(*text);
}

} // namespace
} // namespace rollcast::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  const auto text = fuzz::text_of(data, size);
  for (const auto& [name, exact, words] : fuzz::subjects()) {
    const auto ids = words.encode(text, encode_special::leave_out);
    const auto back = words.decode(ids);
    fuzz::require(back.has_value(), name + ": what encode gives is decoded");
    fuzz::require(!exact || *back == text, name + ": decode(encode(x)) is x");
    fuzz::check_ids(words, text.substr(text.size() - text.size() / 4));
  }
  return 0;
}
