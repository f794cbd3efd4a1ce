#pragma once

namespace rollcast::cli {

/// From now on a process that cannot go on says why in one line on stderr: out of memory (exit code
/// `exit_out_of_memory`), or an exception that nobody caught, which is a bug (it aborts).
void install_last_words();

} // namespace rollcast::cli
