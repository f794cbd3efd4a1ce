// Goal: no tokenizer.json crashes the reader, and one that is taken encodes and decodes any text.
// Method: the input is the file, in which byte 1 stands for the 256 byte tokens that every file
// must have: they would be most of each input. What is taken encodes two texts with all kinds of
// characters.

#include "engine/tokenizer/tokenizer.hpp"
#include "tests/fuzz/fuzz.hpp"

namespace rollcast::fuzz {
namespace {

void check_text(const tokenizer& words, std::string_view text) {
  for (const auto special : {encode_special::add, encode_special::leave_out}) {
    const auto ids = words.encode(text, special);
    for (const auto id : ids)
      require(id >= 0 && static_cast<std::size_t>(id) < words.vocabulary(), "ids are in the file");
    require(words.decode(ids).has_value(), "what encode gives is decoded");
    require(words.decode(ids, decode_special::skip).has_value(), "with special tokens skipped too");
  }
}

/// The 256 tokens `"!": 33, ...` in the printable alphabet of bytes that the files use.
const std::string& byte_tokens() {
  static const auto made = [] {
    std::string text;
    unsigned next = 0x100; // bytes that cannot be printed get characters from here on
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool printed = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
      const auto c = printed ? byte : next++;
      text += byte == 0 ? "\"" : ",\"";
      if (c == '"' || c == '\\')
        text += '\\';
      if (c < 0x80) {
        text += static_cast<char>(c);
      } else {
        text += static_cast<char>(0xc0 | (c >> 6));
        text += static_cast<char>(0x80 | (c & 0x3f));
      }
      text += "\":" + std::to_string(byte);
    }
    return text;
  }();
  return made;
}

std::string file_of(std::string_view input) {
  std::string text{input};
  if (const auto at = text.find('\x01'); at != std::string::npos)
    text.replace(at, 1, byte_tokens());
  return text;
}

} // namespace
} // namespace rollcast::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace rollcast;
  const auto path = fuzz::write_scratch("tokenizer.json", fuzz::file_of(fuzz::text_of(data, size)));
  const auto words = tokenizer::load(path);
  if (!words) {
    fuzz::check_refusal(words.error());
    return 0;
  }
  fuzz::check_text(*words, "");
  fuzz::check_text(*words,
                   "The 27 dogs' caf\u00e9s,  \t\r\n e\u0301 \u4f60\u597d <|x|>\xff\xc3 end ");
  return 0;
}
