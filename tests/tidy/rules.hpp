#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace rollcast::tidy {

/// One broken rule, as a person wants to read it: `path:line: what, and what to do instead`.
using findings = std::vector<std::string>;

/// Returns the text of a C++ source with every comment and every literal blanked out, so that words
/// in them are not taken for code. Lines stay where they are.
std::string code_only(std::string_view source);

// Each rule takes the path from the root of the repository and the text of one file.

/// Who may include whom, and how an include is spelled.
findings check_includes(const std::string& path, std::string_view text);

/// Words that the house style bans, each with what to use instead.
findings check_banned(const std::string& path, std::string_view text);

/// Columns, lines of a file, lines of a function.
findings check_sizes(const std::string& path, std::string_view text);

/// Carriage returns, tabs, trailing spaces, end of file.
findings check_whitespace(const std::string& path, std::string_view text);

/// How a header and a test file open.
findings check_opening(const std::string& path, std::string_view text);

/// True for generated files and data, which follow their maker's rules.
bool is_generated(const std::string& path);

/// True for the kinds of file that the rules hold for.
bool is_checked(const std::string& path);

/// All the rules above on one file.
findings check_file(const std::string& path, std::string_view text);

/// Every top folder has a README.md, and it names the code folders below.
/// @param root of the repository
findings check_readmes(const std::string& root);

/// Walks the repository. @returns the paths, from the root, of the files the rules hold for.
std::vector<std::string> files_below(const std::string& root);

} // namespace rollcast::tidy
