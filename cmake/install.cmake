# `cmake --install BUILD --prefix DIR`: what runs a cluster, in the usual folders. The package for
# Python is pip's: `pip install clients/python`.
include(GNUInstallDirs)
set(ours ${CMAKE_INSTALL_DATADIR}/rollcast)
install(TARGETS rollcast RUNTIME)
install(TARGETS rollcast_kernels_capi LIBRARY)
install(FILES clients/kernels/rollcast_kernels.h TYPE INCLUDE)
install(FILES LICENSE CHANGELOG.md TYPE DOC)
install(DIRECTORY dashboards DESTINATION ${ours})
install(DIRECTORY examples/collatz DESTINATION ${ours}/examples
        PATTERN __pycache__ EXCLUDE PATTERN *.png EXCLUDE)
