"""Wrong kernels that tests must see: `write` makes them, `run` has the tests look at each.

  mutants.py write SOURCE OUT     every changed file, with all its mutants in it, under OUT
  mutants.py run PROGRAM          PROGRAM, which links them, once a mutant

A mutant is a place in the source that must be there exactly once, and what stands there instead
while its number is set: so all mutants of a file are compiled at once, and a change of the source
that takes a place away is noticed. An `@` in the other text stands for "this mutant is set".
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ATTENTION, DRAFTS = "cuda_attention.", "families/cuda_rollout.has_the_same_bits_with_drafts/qwen3"
ROLLOUT = "families/cuda_rollout.has_the_same_bits_however_it_is_scheduled/qwen3"
# (name, file, what is there, what is there instead, the tests that must see it)
MUTANTS = [
    # -- attention
    ("a row does not see its own key", "kernels/cuda/attention_tile.cuh",
     "key <= query.last_key[i / 2]", "key < query.last_key[i / 2] || key == 0",
     ATTENTION + "is_right"),
    ("rows share a maximum", "kernels/cuda/attention_tile.cuh", "mask <= 2", "mask <= 4",
     ATTENTION + "gives_decode_the_bits_of_prefill"),
    ("values behind the last key are taken as they are", "kernels/cuda/attention_tile.cuh",
     "exists && (is_k || tile * key_tile + key < keys.end)", "exists",
     ATTENTION + "gives_decode_the_bits_of_prefill"),
    ("the block table is not read", "kernels/cuda/attention_tile.cuh",
     "keys.blocks[position / keys.block_tokens]", "keys.blocks[0]",
     ATTENTION + "does_not_care_about_neighbours_blocks_or_order"),
    ("weights are read before all have written theirs", "kernels/cuda/attention_tile.cuh",
     "{{a[0], a[1], a[2], a[3]}});\n    simt::sync_block();",
     "{{a[0], a[1], a[2], a[3]}});\n    if (!@) simt::sync_block();",
     ATTENTION + "gives_decode_the_bits_of_prefill"),
    ("a split goes on where the last one ended", "kernels/cuda/attention.cu",
     "(tile + 1) % split_tiles == 0 && tile + 1 < end", "false",
     ATTENTION + "gives_decode_the_bits_of_prefill"),
    ("splits merge from the last", "kernels/cuda/attention.cu",
     "partial_at(args, item, rows, split, row)",
     "partial_at(args, item, rows, item.splits - 1 - split, row)",
     ATTENTION + "merges_splits_from_the_first"),
    ("who comes second merges", "kernels/cuda/attention.cu",
     "if (*arrived + 1 != item.splits)", "if (@ ? *arrived != 1 : *arrived + 1 != item.splits)",
     ATTENTION + "gives_decode_the_bits_of_prefill"),
    ("a counter is left as it is", "kernels/cuda/attention.cu",
     "*counter = 0;", "{}", ATTENTION + "gives_decode_the_bits_of_prefill"),
    ("a tile is not waited for", "kernels/cuda/attention.cu",
     "simt::copy_async_wait<1>();", "simt::copy_async_wait<2>();", ATTENTION + "is_right"),
    ("other threads' part of a tile is not waited for", "kernels/cuda/attention.cu",
     "simt::sync_block();\n    if (works)", "if (!@) simt::sync_block();\n    if (works)",
     ATTENTION + "is_right"),
    # -- products
    ("leaves by the number of rows", "kernels/cuda/gemm.cu",
     "gemm_leaves(args.n, args.k)", "args.rows > 64 ? 1u : gemm_leaves(args.n, args.k)",
     "cuda_gemm.gives_a_row_the_same_bits_in_every_number_of_rows_and_variant"),
    ("leaves are added from the last", "kernels/cuda/gemm.cu",
     "all + from * leaf_stride", "all + (work.leaves - 1 - from) * leaf_stride",
     "cuda_gemm.gives_many_rows_the_bits_of_few"),
    ("who comes second adds the leaves", "kernels/cuda/gemm.cu",
     "if (*arrived + 1 != work.leaves)", "if (@ ? *arrived != 1 : *arrived + 1 != work.leaves)",
     "cuda_gemm.does_not_care_in_which_order_blocks_run"),
    ("a counter of leaves is left as it is", "kernels/cuda/gemm.cu",
     "work.counters[tile] = 0;", "{}", "cuda_gemm.is_right"),
    ("a stage is not waited for", "kernels/cuda/gemm_tile.cuh",
     "simt::copy_async_wait<Stages - 2>();", "simt::copy_async_wait<Stages - 1>();",
     "cuda_gemm.is_right"),
    ("other threads' part of a stage is not waited for", "kernels/cuda/gemm_tile.cuh",
     "simt::sync_block(); // The stage has come",
     "if (!@) simt::sync_block(); // The stage has come",
     "cuda_gemm.is_right"),
    # -- rows and padding
    ("a norm's lanes are folded into one another", "kernels/cuda/rows.cu",
     "high = simt::fused(kept[at + 32], kept[at + 32], high);",
     "low = simt::fused(kept[at + 32], kept[at + 32], low);",
     "cuda_rows.rms_norm_sums_in_the_house_order"),
    ("a norm begins before its row is there", "kernels/cuda/rows.cu",
     "  simt::sync_block();\n  if (simt::warp() == 0) {",
     "  if (!@) simt::sync_block();\n  if (simt::warp() == 0) {",
     "cuda_rows.rms_norm_has_the_cpus_bits"),
    ("rotated by the row's number", "kernels/cuda/rows.cu",
     "std::size_t{place.position} * HeadDim", "row * HeadDim",
     "cuda_rows.qkv_rope_append_has_the_cpus_bits"),
    ("padding writes to a block", "kernels/cuda/rows.cu",
     "const row_place place = args.places[row];",
     "row_place place = args.places[row];\n"
     "  if (@ && place.kv_block == no_block) place.kv_block = 0;",
     "cuda_rows.qkv_rope_append_has_the_cpus_bits:" + ROLLOUT),
    ("silu of another pair", "kernels/cuda/rows.cu",
     "(args.pairs)[at]", "(args.pairs)[@ ? at / 2 : at]",
     "cuda_rows.silu_of_pairs_has_the_cpus_bits_of_what_was_rounded"),
    # -- KV
    ("slots are copied in another order", "kernels/cuda/kv.cu",
     "work.copies[i]", "work.copies[count - 1 - i]", "cuda_kv.copies_slots_in_their_order"),
    ("a copy leaves out its first slot", "kernels/cuda/kv.cu",
     "slot = copy.begin", "slot = copy.begin + (@ ? 1 : 0)", "cuda_kv.copies_slots_in_their_order"),
    ("an image takes a block's first group only", "kernels/cuda/kv.cu",
     "group % work.groups_per_block", "0 * group", "cuda_kv.packs_and_unpacks_images"),
    ("an image takes the first layer only", "kernels/cuda/kv.cu",
     "layer * work.layer_bytes", "0 * layer", "cuda_kv.packs_and_unpacks_images"),
    # -- sampling
    ("of equal tokens the last", "kernels/cuda/sampling.cu",
     "best = t < best ? t : best;", "best = t;", "cuda_sampling.is_the_cpus_for_every_kind_of_row"),
    ("noise by the thread, not by the token", "kernels/cuda/sampling.cu",
     "philox_words(params.seed, quad, params.position)",
     "philox_words(params.seed, simt::thread_x(), params.position)",
     "cuda_sampling.is_the_cpus_for_a_row_of_several_rounds"),
    ("bans are not looked at", "kernels/cuda/sampling_row.cuh",
     "(banned[token / 32] >> token % 32 & 1u) != 0", "false",
     "cuda_sampling.leaves_out_banned_tokens"),
    ("nearest tokens hold all that a filter wants", "kernels/cuda/sampling.cu",
     "static_cast<double>(sum.near) >= target", "true",
     "cuda_sampling.finds_cuts_far_behind_the_best_token"),
    ("top-k keeps one more", "kernels/cuda/sampling_row.cuh",
     "return count_to < count;", "return count_to <= count;",
     "cuda_sampling.is_the_cpus_for_every_kind_of_row"),
    ("a reduction begins before the last was read", "kernels/cuda/sampling_row.cuh",
     "simt::sync_block(); // What the slots held",
     "if (!@) simt::sync_block(); // What the slots held",
     "cuda_sampling.is_the_cpus_for_every_kind_of_row"),
    # -- accept
    ("a drafted token of another parent is accepted", "kernels/cuda/accept.cu",
     "args.parents[at] != path.last", "false",
     "cuda_accept.takes_the_path_that_sampling_would"),
    ("a path does not go on", "kernels/cuda/accept.cu",
     "next = args.sampled[at].token;", "{}", "cuda_accept.takes_the_path_that_sampling_would"),
    # -- the device
    ("padded rows have a block", "engine/backend/cuda_backend.cpp",
     "kernels::row_place{0, gpu::no_block}", "kernels::row_place{0, 0}", ROLLOUT),
    ("slots are not copied", "engine/backend/cuda_backend.cpp",
     "!rows.copies.empty();", "!@ && !rows.copies.empty();", DRAFTS),
    ("graphs keep the weights before", "engine/backend/cuda_backend.cpp",
     "++serial_;", "{}", "cuda_weights.take_turns_and_leave_no_trace_in_passes_or_graphs"),
    ("drafts are not sent", "engine/backend/cuda_backend.cpp",
     "b.draft_parents + how.size());\n  } else",
     "(@ ? b.draft_parents : b.draft_parents + how.size()));\n  } else",
     "cuda_device.follows_drafts_as_the_host_does"),
    ("pieces of an image land in one place", "engine/backend/cuda_kv.cpp",
     "(layer * groups + group) * group_bytes", "layer * groups * group_bytes",
     "cuda_kv.leaves_and_comes_back_between_block_sizes"),
    ("a residual is left out", "engine/backend/cuda_pass.cpp",
     "args.residual != nullptr", "false", "families/cuda_fast.says_*/qwen3"),
    ("a bias is left out", "engine/backend/cuda_pass.cpp",
     "qkv.bias = layer.qkv_bias;", "{}", "families/cuda_rollout.says_what_the_cpu_says*/qwen2"),
]


def is_set(number):
    return f"(::rollcast::test::mutant == {number})"


def instead(number, there, other):
    """What stands in the source for both."""
    if "@" in other:
        return other.replace("@", is_set(number))
    if there.endswith(";"):
        return f"if {is_set(number)} {{ {other} }} else {{ {there} }}"
    return f"({is_set(number)} ? ({other}) : ({there}))"


def write(source, out):
    texts = {}
    for number, (name, file, there, other, _) in enumerate(MUTANTS, 1):
        original = (source / file).read_text()
        if original.count(there) != 1:
            print(f"mutants.py: '{name}': {file} has {original.count(there)} times, not once:\n"
                  f"{there}", file=sys.stderr)
            return 1
        text = texts.get(file, original)
        if text.count(there) != 1:
            # Two mutants of one place: the one before has put its own text around this one's.
            print(f"mutants.py: '{name}': its place overlaps another's in {file}", file=sys.stderr)
            return 1
        texts[file] = text.replace(there, instead(number, there, other))
    for file, text in texts.items():
        # Beside the tree, so that includes find it before the original.
        place = out / (file + ".cpp" if file.endswith(".cu") else file)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("namespace rollcast::test { extern int mutant; }\n" + text
                         if not text.startswith("#pragma once") else text.replace(
                             "#pragma once\n",
                             "#pragma once\nnamespace rollcast::test { extern int mutant; }\n", 1))
    return 0


def run_one(program, number, tests, seconds):
    environment = dict(os.environ, ROLLCAST_MUTANT=str(number))
    try:
        done = subprocess.run([program, f"--gtest_filter={tests}", "--gtest_fail_fast"],
                              env=environment, capture_output=True, text=True, errors="replace",
                              timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "took too long"
    if done.returncode == 0 and "[       OK ]" not in done.stdout:
        return "NO TEST OF THAT NAME"
    return "" if done.returncode == 0 else f"exit code {done.returncode}"


def run(program, seconds):
    everything = ":".join(sorted({test for mutant in MUTANTS for test in mutant[4].split(":")}))
    said = run_one(program, 0, everything, seconds)
    if said:
        print(f"without any mutant the tests fail: {said}")
        return 1
    unseen = []
    for number, (name, file, _, _, tests) in enumerate(MUTANTS, 1):
        for test in tests.split(":"):
            said = run_one(program, number, test, seconds)
            print(f"{'seen  ' if said.startswith(('exit', 'took')) else 'UNSEEN'}  {file}: {name}, "
                  f"by {test}: {said or 'the tests pass'}", flush=True)
            if not said.startswith(("exit", "took")):
                unseen.append(name)
    print(f"{len(MUTANTS)} mutants, {len(unseen)} not seen")
    return 1 if unseen else 0


def main():
    parser = argparse.ArgumentParser(prog="mutants.py")
    commands = parser.add_subparsers(dest="command", required=True)
    writes = commands.add_parser("write")
    writes.add_argument("source", type=Path)
    writes.add_argument("out", type=Path)
    runs = commands.add_parser("run")
    runs.add_argument("program")
    runs.add_argument("--seconds", type=float, default=120,
                      help="for the tests of one mutant; one that takes longer counts as seen")
    arguments = parser.parse_args()
    if arguments.command == "write":
        return write(arguments.source, arguments.out)
    return run(arguments.program, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
