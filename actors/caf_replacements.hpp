#pragma once

/// Functions of CAF 0.17.6 that this program defines anew, because the library's own are wrong. The
/// dynamic linker prefers a program's definitions to a library's, so naming them is enough; a
/// program that calls what is declared here has them.
namespace rollcast {

/// Makes room for the numbers that accepted connections get (caf_replacements.cpp says why they get
/// any). The kernel holds up whoever needs the room first by tens of milliseconds if there are
/// other threads, so that is not to be the thread that accepts. Does nothing where no process may
/// have so many files.
void reserve_connection_numbers() noexcept;

} // namespace rollcast
