# Run by every build: writes HEADER with the commit of the checkout in SOURCE, and touches it only
# when that changes. A copy without its history, such as in an image, may say it in ROLLCAST_COMMIT.
cmake_minimum_required(VERSION 3.25)
set(commit "$ENV{ROLLCAST_COMMIT}")
if(commit STREQUAL "" AND EXISTS ${SOURCE}/.git)
  execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=12 --exclude=*
                  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT commit MATCHES "^[0-9a-z-]+$")
  set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${HEADER} CONTENT "#define ROLLCAST_COMMIT \"@commit@\"\n" @ONLY)
