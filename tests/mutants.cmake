# tests/fence_litmus.c against the real ring.c and readers.c (no fault may show) and against mutants that lack one fence each
# (a fault must show). Sanitizers slow the halves down until they no longer meet, so mutants are for plain builds.
find_package(Threads REQUIRED)

function(weir_litmus name)
  add_executable(${name} ${CMAKE_CURRENT_SOURCE_DIR}/fence_litmus.c
    ${PROJECT_SOURCE_DIR}/shm/segment.c ${PROJECT_SOURCE_DIR}/shm/ring.c ${PROJECT_SOURCE_DIR}/shm/readers.c
    ${PROJECT_SOURCE_DIR}/shm/span.c ${PROJECT_SOURCE_DIR}/shm/status.c)
  target_link_libraries(${name} PRIVATE weir_options Threads::Threads)
  target_compile_definitions(${name} PRIVATE ${ARGN})
endfunction()

function(weir_litmus_run test program mode expected)
  add_test(NAME ${test} COMMAND ${program} ${mode} ${expected})
  # Both threads want a processor of their own; ./dev runs nothing beside what has this label.
  set_tests_properties(${test} PROPERTIES TIMEOUT ${HANG_SECONDS} SKIP_RETURN_CODE 77 RUN_SERIAL TRUE LABELS alone)
endfunction()

# What is out of bounds is found by the tests of these modules, so that this sanitizer would look on in vain.
if(NOT WEIR_SANITIZE MATCHES "address")
  weir_litmus(fence_litmus)
  foreach(mode doorbell wanted enter ring)
    weir_litmus_run(fence_${mode} fence_litmus ${mode} clean)
  endforeach()
endif()

if(NOT WEIR_SANITIZE)
  foreach(mutant sleep:doorbell wake:doorbell enter:enter reclaim:enter)
    string(REPLACE ":" ";" parts ${mutant})
    list(GET parts 0 fence)
    list(GET parts 1 mode)
    string(TOUPPER ${fence} upper)
    weir_litmus(fence_mutant_${fence} WEIR_MUTANT_${upper}_FENCE)
    weir_litmus_run(fence_mutant_${fence}_is_noticed fence_mutant_${fence} ${mode} faulty)
  endforeach()
  # The doorbell's fences order two things each.
  foreach(fence sleep wake)
    weir_litmus_run(fence_mutant_${fence}_is_noticed_by_what_is_wanted fence_mutant_${fence} wanted faulty)
  endforeach()
  weir_litmus(fence_mutant_ring WEIR_MUTANT_RING_RESERVED)
  weir_litmus_run(fence_mutant_ring_is_noticed fence_mutant_ring ring faulty)
endif()
