"""Where each promise about compatibility is tested: a map from what programs depend on to tests.

`HAZARDS` has the things that public programs are known to rely on in `multiprocessing.Pool`, by
the numbers they have in the project's list; `DECISIONS` what was decided where pairpool had a
choice. Each names the tests that hold it, or says why there is none. The tests below see to it
that every number is there and that every test exists.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

CONSTRUCTION = "test_compat_construction"
RESULTS = "test_compat_results"
LIFECYCLE = "test_compat_lifecycle"
PROGRAMS = "test_programs"


@dataclass(frozen=True)
class Untested:
    """Says why something has no test."""

    reason: str


@dataclass(frozen=True)
class Program:
    """Names a program in tests/programs, run for each start method by `test_programs`."""

    name: str


Evidence = str | Program | Untested

HAZARDS: dict[int, tuple[str, list[Evidence]]] = {
    1: (
        "Pool is a class by one name and a bound method by another; positions of arguments",
        [
            f"{CONSTRUCTION}.test_our_pools_are_pools_of_the_library_by_class",
            f"{CONSTRUCTION}.test_arguments_stand_where_they_stand_in_the_library",
            f"{CONSTRUCTION}.test_a_pool_can_be_subclassed",
            f"{CONSTRUCTION}.test_while_installed_every_way_to_a_pool_leads_to_ours",
            f"{CONSTRUCTION}.test_uninstall_gives_the_library_its_own_back",
            f"{CONSTRUCTION}.test_what_was_taken_before_install_still_works",
            f"{CONSTRUCTION}.test_a_manager_makes_our_pools_while_installed",
        ],
    ),
    2: (
        "types and words of errors",
        [
            f"{CONSTRUCTION}.test_a_wrong_argument_of_the_constructor_is_refused_in_the_words_of_the_library",
            f"{CONSTRUCTION}.test_a_wrong_call_is_refused_in_the_words_of_the_library",
            f"{CONSTRUCTION}.test_an_unknown_start_method_is_refused_in_the_words_of_the_library",
            f"{CONSTRUCTION}.test_what_is_not_ready_is_neither_successful_nor_to_be_had",
        ],
    ),
    3: (
        "globals of __main__ that an initializer sets; functions redefined after the pool",
        [Program("initializer_global"), Program("defined_later")],
    ),
    4: (
        "locks, queues, sockets, lambdas and huge arrays in initargs",
        [
            Program("shared_initargs"),
            f"{LIFECYCLE}.test_a_forked_worker_inherits_what_cannot_be_pickled",
        ],
    ),
    5: (
        "the memory that a later worker sees",
        [f"{LIFECYCLE}.test_a_later_worker_sees_the_memory_of_when_the_pool_was_made"],
    ),
    6: (
        "names, identities, the daemon flag, parent_process() and active_children()",
        [
            f"{LIFECYCLE}.test_a_worker_is_called_and_numbered_as_in_the_library",
            f"{LIFECYCLE}.test_numbers_go_on_from_pool_to_pool",
            f"{LIFECYCLE}.test_no_child_is_active_after_join",
            f"{LIFECYCLE}.test_a_worker_may_have_children_though_it_reads_daemon",
            Program("own_numbers"),
            Program("nested"),
        ],
    ),
    7: (
        "_pool, _processes, _cache and _state",
        [
            f"{CONSTRUCTION}.test_worker_handles_tell_of_their_processes",
            f"{CONSTRUCTION}.test_a_worker_that_is_ended_by_its_handle_is_replaced",
            f"{CONSTRUCTION}.test_the_cache_is_as_long_as_there_are_pending_results",
            f"{CONSTRUCTION}.test_the_state_is_a_string_that_follows_the_life_of_the_pool",
            Untested(
                "the hooks that subclasses override in the library's machinery (Process, "
                "_repopulate_pool, _inqueue) are not called: there is no such machinery"
            ),
        ],
    ),
    8: (
        "stdin of workers, flushed streams, finalizers and exit hooks",
        [
            f"{PROGRAMS}.test_streams_and_exit_hooks_of_workers_are_those_of_the_library",
            f"{LIFECYCLE}.test_finalizers_of_a_worker_run_when_it_ends",
        ],
    ),
    9: (
        "imap: who reads the iterable and when, next(timeout), going on after an error",
        [
            f"{RESULTS}.test_the_iterable_is_read_from_the_call_on_by_another_thread",
            f"{RESULTS}.test_iteration_goes_on_after_the_error_of_an_item",
            f"{RESULTS}.test_next_takes_a_timeout_and_may_be_asked_again",
            f"{RESULTS}.test_in_chunks_the_iterator_is_a_plain_generator",
            f"{RESULTS}.test_unordered_results_come_as_they_are_ready",
            "test_differential.test_every_fault_ends_alike",
        ],
    ),
    10: (
        "map: unsized and empty input, the default chunksize, errors within a chunk",
        [
            f"{RESULTS}.test_map_reads_an_unsized_iterable_before_it_returns",
            f"{RESULTS}.test_a_map_over_nothing_is_ready_at_once",
            f"{RESULTS}.test_default_chunks_have_the_size_that_programs_compute",
            f"{RESULTS}.test_the_first_error_of_a_chunk_skips_its_rest",
            f"{RESULTS}.test_an_iterable_that_is_shorter_than_it_says_hangs_nobody",
        ],
    ),
    11: (
        "a map with an error waits for all its chunks",
        [f"{RESULTS}.test_a_map_with_an_error_is_ready_only_when_all_its_chunks_are"],
    ),
    12: (
        "callbacks: one thread, before get() returns, free to submit more",
        [
            f"{RESULTS}.test_callbacks_are_called_before_the_result_is_there",
            f"{RESULTS}.test_callbacks_share_one_thread_which_is_not_the_callers",
            f"{RESULTS}.test_a_callback_may_submit_more",
            f"{RESULTS}.test_callbacks_are_called_before_join_returns",
            f"{RESULTS}.test_a_callback_that_raises_gives_its_error_to_the_result",
        ],
    ),
    13: (
        "classes of results, the same error each time, TimeoutError by its names",
        [
            f"{RESULTS}.test_results_are_of_the_classes_of_the_library",
            f"{RESULTS}.test_get_raises_the_same_error_each_time",
            f"{RESULTS}.test_get_returns_the_same_value_each_time",
            f"{CONSTRUCTION}.test_a_timeout_is_caught_by_every_name_it_goes_by",
        ],
    ),
    14: (
        "maxtasksperchild counts chunks; replacements are initialized",
        [
            f"{LIFECYCLE}.test_maxtasksperchild_counts_chunks",
            f"{LIFECYCLE}.test_a_replacement_runs_the_initializer",
        ],
    ),
    15: (
        "arguments that do not pickle, or change after the call",
        [
            f"{RESULTS}.test_an_argument_that_does_not_pickle_harms_only_its_own_result",
            f"{RESULTS}.test_an_argument_is_what_it_was_at_the_call",
        ],
    ),
    16: (
        "results that do not pickle",
        [f"{RESULTS}.test_a_result_that_does_not_pickle_is_a_maybe_encoding_error"],
    ),
    17: (
        "RemoteTraceback as the cause of a task's error, and none in a thread pool",
        [
            f"{RESULTS}.test_an_error_shows_where_in_the_worker_it_was_raised",
            f"{RESULTS}.test_an_error_keeps_the_frames_and_the_cause_that_it_had",
            f"{CONSTRUCTION}.test_a_thread_pool_raises_the_tasks_own_error",
        ],
    ),
    18: (
        "with Pool() ends in terminate(), and what is pending then",
        [f"{RESULTS}.test_leaving_the_context_terminates_and_fails_what_is_pending"],
    ),
    19: (
        "close() keeps replacing workers; terminate() sends SIGTERM",
        [
            f"{LIFECYCLE}.test_close_lets_workers_be_replaced_until_all_is_done",
            f"{LIFECYCLE}.test_terminate_reaches_the_handlers_of_busy_workers",
            f"{LIFECYCLE}.test_a_pool_may_be_ended_twice",
        ],
    ),
    20: (
        "forgotten pools, and pools in a child that the user forked",
        [
            f"{PROGRAMS}.test_a_forgotten_pool_ends_with_its_program",
            f"{LIFECYCLE}.test_a_forked_child_has_a_pool_that_is_inert",
            Program("forked_child"),
        ],
    ),
    21: (
        "ResourceWarning and repr",
        [
            f"{CONSTRUCTION}.test_a_pool_that_is_dropped_while_it_runs_warns",
            f"{CONSTRUCTION}.test_a_pool_that_was_ended_is_dropped_in_silence",
            f"{CONSTRUCTION}.test_the_state_is_a_string_that_follows_the_life_of_the_pool",
        ],
    ),
    22: (
        "random state, environment, directory and signal handlers are inherited",
        [
            f"{LIFECYCLE}.test_a_forked_worker_inherits_the_surroundings",
            f"{LIFECYCLE}.test_terminate_reaches_the_handlers_of_busy_workers",
        ],
    ),
    23: (
        "which start method",
        [
            f"{CONSTRUCTION}.test_without_a_context_the_start_method_is_the_default",
            f"{CONSTRUCTION}.test_an_explicit_context_is_honoured",
        ],
    ),
    24: (
        "many threads, and threads that are not the main one",
        [
            f"{CONSTRUCTION}.test_a_pool_serves_many_threads_at_once",
            f"{CONSTRUCTION}.test_a_pool_may_be_made_in_any_thread_and_outlives_it",
        ],
    ),
    25: (
        "ThreadPool has the same face",
        [
            f"{CONSTRUCTION}.test_a_thread_pool_runs_tasks_in_threads_of_the_caller",
            "test_cpython_pool.ThreadsTestPool",
        ],
    ),
    26: (
        "the default size",
        [f"{CONSTRUCTION}.test_the_default_size_fits_the_processors_we_may_use"],
    ),
    27: (
        "any idle worker takes the next task",
        [f"{LIFECYCLE}.test_a_slow_task_strands_nobody", Program("barrier")],
    ),
}

# What was decided, by the hazards it belongs to; each is held by the tests of those above, and
# by these where it goes further.
DECISIONS: dict[str, tuple[tuple[int, ...], list[Evidence]]] = {
    "later workers see the memory of the moment of Pool()": ((4, 5), []),
    "names as in the library; children allowed; no active children after join()": ((6,), []),
    "live views of the private attributes, _state can be set": (
        (7,),
        ["test_cpython_pool.ForkProcessesTestPool"],
    ),
    "iterators, chunks and lifetimes kept as they are": ((9, 10, 14), []),
    "errors of maps kept for the face of Pool": ((11,), []),
    "one TimeoutError for every except clause": ((13,), []),
    "arguments are pickled at the call, errors come out of get()": ((15,), []),
    "RemoteTraceback, real frames, MaybeEncodingError of the library's own class": ((16, 17), []),
    "what is pending at terminate() fails": ((18,), []),
    "random state is inherited by default": (
        (22,),
        [Untested("the option that seeds each worker anew is not part of the pool yet")],
    ),
    "context=None means what the library's pool would use": ((23,), []),
    "the default size respects affinity, quota and PAIRPOOL_WORKERS": (
        (26,),
        [
            "test_size.test_the_quota_is_that_of_the_cgroup_in_whole_processors",
            "test_size.test_the_quota_bounds_the_default_size",
        ],
    ),
}

_TESTS = Path(__file__).parent


def _names_of(module: str) -> set[str]:
    """Return the names of tests in a module: functions, and classes by the pieces of their names."""
    tree = ast.parse((_TESTS / f"{module}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def _all_evidence() -> list[Evidence]:
    lists = [evidence for _, evidence in (*HAZARDS.values(), *DECISIONS.values())]
    return [each for evidence in lists for each in evidence]


def test_every_hazard_has_a_test_or_a_reason() -> None:
    """The map is complete, and an entry that is not tested at all says why."""
    assert sorted(HAZARDS) == list(range(1, 28))
    assert all(evidence for _, evidence in HAZARDS.values())


def test_every_decision_rests_on_hazards_that_are_tested() -> None:
    """No decision hangs in the air."""
    for decision, (hazards, _) in DECISIONS.items():
        assert set(hazards) <= set(HAZARDS), decision


@pytest.mark.parametrize("name", sorted({each for each in _all_evidence() if isinstance(each, str)}))
def test_the_tests_that_are_named_exist(name: str) -> None:
    """A test that is renamed or removed is missed here."""
    module, _, test = name.partition(".")
    if re.match(r"[A-Z]", test):  # a class that is made from CPython's tests
        assert test in vars(__import__(module))
    else:
        assert test in _names_of(module)


def test_the_programs_that_are_named_are_run() -> None:
    """Each program of the map exists and is in the list of those that are run."""
    source = (_TESTS / f"{PROGRAMS}.py").read_text()
    for program in {each for each in _all_evidence() if isinstance(each, Program)}:
        assert (_TESTS / "programs" / f"{program.name}.py").exists()
        assert f'"{program.name}.py"' in source
