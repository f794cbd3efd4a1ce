// Goal: the rules of the house style that a compiler cannot hold are held.
// Method: read every source of the repository once and apply the rules; then plant each kind of
// break and see that its rule complains, and that what only looks like a break passes.

#include "tests/support/temporary_directory.hpp"
#include "tests/tidy/rules.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace rollcast::tidy {
namespace {

// -- the repository -----------------------------------------------------------

TEST(tidy, every_file_keeps_the_rules) {
  const auto files = files_below(ROLLCAST_SOURCE_DIR);
  EXPECT_GT(files.size(), 50u) << "looked in the wrong place";
  for (const auto& path : files) {
    std::ifstream in{std::string{ROLLCAST_SOURCE_DIR "/"} + path, std::ios::binary};
    const std::string text{std::istreambuf_iterator<char>{in}, {}};
    for (const auto& finding : check_file(path, text))
      ADD_FAILURE() << finding;
  }
}

TEST(tidy, every_folder_has_its_contract) {
  for (const auto& finding : check_readmes(ROLLCAST_SOURCE_DIR))
    ADD_FAILURE() << finding;
}

TEST(tidy, engine_base_stays_small) {
  // A common folder grows; what is here is known to everyone and must deserve it.
  const auto headers =
    std::ranges::count_if(files_below(ROLLCAST_SOURCE_DIR), [](const auto& path) {
      return path.starts_with("engine/base/") && path.ends_with(".hpp");
    });
  EXPECT_LE(headers, 8) << "does it belong to everyone?";
}

// -- the rules, on planted breaks ---------------------------------------------

/// Returns the first finding about one file, or "".
std::string first(const std::string& path, std::string_view text) {
  const auto found = check_file(path, text);
  return found.empty() ? "" : found.front();
}

TEST(tidy_rules, layers_point_down) {
  EXPECT_EQ(first("cluster/policy/x.cpp", "#include \"actors/protocol.hpp\"\n"),
            "cluster/policy/x.cpp:1: cluster/policy may not include actors");
  EXPECT_NE(first("cluster/policy/x.cpp", "#include \"engine/step/engine.hpp\"\n"), "");
  EXPECT_NE(first("kernels/x.cpp", "#include \"engine/base/error.hpp\"\n"), "");
  EXPECT_NE(first("engine/base/x.cpp", "#include \"kernels/gemm.hpp\"\n"), "");
  EXPECT_NE(first("engine/step/x.cpp", "#include \"cluster/batch/batch_book.hpp\"\n"), "");
  EXPECT_NE(first("actors/x.cpp", "#include \"kernels/gemm.hpp\"\n"), "");
  EXPECT_NE(first("cli/x.cpp", "#include \"tests/support/x.hpp\"\n"), "");
  EXPECT_EQ(first("cluster/batch/x.cpp", "#include \"cluster/policy/view.hpp\"\n"), "");
  EXPECT_EQ(first("engine/step/x.cpp", "#include \"kernels/gemm.hpp\"\n"), "");
}

TEST(tidy_rules, includes_start_at_the_root) {
  EXPECT_NE(first("engine/step/x.cpp", "\n#include \"../base/error.hpp\"\n"), "");
  EXPECT_NE(first("engine/step/x.cpp", "#include \"engine.hpp\"\n"), "");
}

TEST(tidy_rules, heavy_headers_stay_where_they_belong) {
  EXPECT_NE(first("cluster/x.cpp", "#include <caf/all.hpp>\n"), "");
  EXPECT_EQ(first("actors/x.cpp", "#include <caf/all.hpp>\n"), "");
  EXPECT_NE(first("actors/x.cpp", "#include \"proto/rollcast.pb.h\"\n"), "");
  EXPECT_NE(first("actors/x.cpp", "#include <rollcast.pb.h>\n"), "");
  EXPECT_EQ(first("cluster/wire/x.cpp", "#include \"proto/rollcast.pb.h\"\n"), "");
}

TEST(tidy_rules, banned_words_name_what_to_use_instead) {
  for (const auto* code :
       {"std::shuffle(a, b, g);", "std::ranges::shuffle(a, g);", "std::random_device d;",
        "std::uniform_int_distribution<int> d;", "std::normal_distribution d;",
        "std::default_random_engine g;", "std::rand();", "request(x, caf::infinite, y);",
        "throw 1;", "} catch (...) { throw; }"})
    EXPECT_NE(first("engine/x.cpp", std::string{code} + "\n"), "") << code;
  EXPECT_EQ(first("tests/x.cpp", "throw 1;\n"), "") << "a fake may throw as a third party does";
  EXPECT_NE(first("tests/x.cpp", "std::random_device d;\n"), "") << "a test is replayed by seed";
  EXPECT_EQ(first("tests/x.cpp", "std::mt19937 g{7};\n"), "") << "the standard fixes its numbers";
}

TEST(tidy_rules, words_in_comments_and_literals_are_no_code) {
  for (const auto* code : {"// throw\n", "/* std::shuffle\n caf::infinite */ int x;\n",
                           "auto s = \"throw\";\n", "auto s = \"\\\"throw\";\n",
                           "auto s = R\"(\" throw \")\";\n", "auto s = R\"x()\" throw)x\";\n",
                           "int rethrow_count = 1'000;\n", "char c = '\"'; // throw\n"})
    EXPECT_EQ(first("engine/x.cpp", code), "") << code;
  EXPECT_NE(first("engine/x.cpp", "auto n = 1'000; throw n;\n"), "") << "1'000 opens no literal";
  EXPECT_NE(first("engine/x.cpp", "auto c = '\\''; throw c;\n"), "");
  EXPECT_NE(first("engine/x.cpp", "auto s = \"//\"; throw s;\n"), "");
}

TEST(tidy_rules, fast_math_is_found_in_build_files) {
  for (const auto* path : {"CMakeLists.txt", "cmake/x.cmake", "CMakePresets.json", "Makefile"})
    EXPECT_NE(first(path, "add(-ffast-math)\n"), "") << path;
  EXPECT_NE(first("deploy/x.sh", "g++ -Ofast x.cpp\n"), "");
}

TEST(tidy_rules, an_open_end_names_its_issue) {
  const std::string word = "TO"
                           "DO";
  for (const auto* path : {"engine/x.cpp", "x/y.py", "x.sh", "x/README.md", "CMakeLists.txt"})
    EXPECT_NE(first(path, "# " + word + " later\n"), "") << path;
  EXPECT_EQ(first("x.py", "# " + word + "(#12): later\n"), "");
}

TEST(tidy_rules, sizes_have_a_wall) {
  EXPECT_EQ(first("x/y.hpp", "#pragma once\n" + std::string(100, 'x') + "\n"), "");
  EXPECT_EQ(first("x/y.hpp", "#pragma once\n" + std::string(101, 'x') + "\n"),
            "x/y.hpp:2: 101 columns, at most 100");
  EXPECT_NE(first("x/y.py", std::string(101, 'x') + "\n"), "");
  EXPECT_EQ(first("x/y.md", std::string(101, 'x') + "\n"), "") << "a table may be wide";
  std::string dashes;
  for (int i = 0; i < 100; ++i)
    dashes += "\u2013";
  EXPECT_EQ(first("x/y.cpp", dashes + "\n"), "") << "columns, not bytes";
  const auto lines = [](std::size_t n) {
    std::string text;
    for (std::size_t i = 0; i < n; ++i)
      text += "x;\n";
    return text;
  };
  EXPECT_EQ(first("x/y.cpp", lines(600)), "");
  EXPECT_NE(first("x/y.cpp", lines(601)), "");
}

TEST(tidy_rules, a_long_function_is_found) {
  const auto function = [](int body, const std::string& head) {
    std::string text = head;
    for (int i = 0; i < body; ++i)
      text += "  x();\n";
    return text + "}\n";
  };
  EXPECT_EQ(first("x/y.cpp", function(68, "void f() {\n")), "");
  EXPECT_NE(first("x/y.cpp", function(69, "void f() {\n")), "");
  EXPECT_NE(first("x/y.cpp", "int a;\n\n" + function(69, "TEST(a, b) {\n")), "");
  EXPECT_EQ(first("x/y.cpp", function(69, "namespace a {\n")), "");
}

TEST(tidy_rules, whitespace_is_plain) {
  EXPECT_NE(first("x/y.md", "a\r\n"), "");
  EXPECT_NE(first("x/y.md", "a \n"), "");
  EXPECT_NE(first("x/y.py", "\ta\n"), "");
  EXPECT_NE(first("x/y.py", "a"), "");
  EXPECT_NE(first("x/y.py", "a\n\n"), "");
  EXPECT_NE(first("x/y.py", ""), "");
  EXPECT_EQ(first("Makefile", "a:\n\tb\n"), "");
}

TEST(tidy_rules, headers_and_tests_open_as_they_should) {
  EXPECT_NE(first("x/y.hpp", "#ifndef X\n"), "");
  EXPECT_EQ(first("x/y-inl.hpp", "#ifndef X\n"), "") << "Highway includes it once a target";
  EXPECT_NE(first("tests/unit/x_test.cpp", "int x;\n"), "");
  EXPECT_NE(first("tests/unit/x_test.cpp", "// Goal: y.\n\n// Method: z.\n"), "");
  EXPECT_EQ(first("tests/unit/x_test.cpp", "// Goal: y.\n// Method: z.\n\nint x;\n"), "");
}

TEST(tidy_rules, generated_files_are_left_alone) {
  EXPECT_FALSE(is_checked("clients/python/rollcast/_wire_pb2.py"));
  EXPECT_FALSE(is_checked("examples/collatz/model/model.safetensors"));
  EXPECT_TRUE(is_checked("clients/python/rollcast/client.py"));
}

TEST(tidy_rules, a_missing_readme_is_found) {
  namespace fs = std::filesystem;
  const temporary_directory directory;
  const fs::path root = directory / "tree";
  fs::create_directories(root / "engine/step");
  fs::create_directories(root / "build/x");
  std::ofstream{root / "engine/step/x.cpp"} << "x;\n";
  std::ofstream{root / "build/x/x.cpp"} << "x;\n";
  EXPECT_EQ(check_readmes(root).size(), 2u) << "not in the front page, and no README.md";
  std::ofstream{root / "README.md"} << "engine/\n";
  std::ofstream{root / "engine/README.md"} << "# engine\n";
  EXPECT_EQ(check_readmes(root), (findings{"engine/README.md:1: does not say what step/ is"}));
  std::ofstream{root / "engine/README.md"} << "`step/` steps\n";
  EXPECT_EQ(check_readmes(root), findings{});
  EXPECT_EQ(files_below(root),
            (std::vector<std::string>{"README.md", "engine/README.md", "engine/step/x.cpp"}));
}

} // namespace
} // namespace rollcast::tidy
