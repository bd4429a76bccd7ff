# SPDX-License-Identifier: Apache-2.0
"""The faults that mutate_product.py seeds: one in each of the 30 largest modules of the product, and some in
graphs whose operations and hoisted parts are counted.

A new one takes the place of one in the same module, or comes with a module that has outgrown the others.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """`old` of `file`, which occurs once, becomes `new`. tests: files or node ids, of which one must fail."""

    file: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "export/lamp/unet.py",
        "off by one: the causal convolution sees the next frame",
        "self.conv1d(pixels)[..., :f]",
        "self.conv1d(pixels)[..., 1 : f + 1]",
        ("tests/export/lamp/test_unet.py",),
    ),
    Mutation(
        "engine/backends/aotinductor/engine.py",
        "after a motion with shared tensors of its own the base's are not attached again",
        "not self._attached or self._weights.is_full(self._motion) or",
        "not self._attached or",
        (
            "tests/engine/backends/test_aotinductor.py::test_a_motion_that_shares_nothing_leaves_nothing_behind",
        ),
    ),
    Mutation(
        "engine/bundle/writer.py",
        "skipped cleanup: a file that cannot be put in place leaves its temporary one",
        "            except BaseException:\n                remove(temporary)\n                raise",
        "            except BaseException:\n                raise",
        ("tests/engine/bundle/test_bundle.py", "tests/engine/bundle/test_crashes.py"),
    ),
    Mutation(
        "export/lamp/reference.py",
        "flipped comparison: one early step too many",
        'early = adain == "schedule" and step < early_steps',
        'early = adain == "schedule" and step <= early_steps',
        ("tests/export/lamp/test_reference.py",),
    ),
    Mutation(
        "export/recipe.py",
        "dropped sorting: a key depends on the order of a config's fields",
        "json.dumps(inputs, sort_keys=True, default=list)",
        "json.dumps(inputs, default=list)",
        ("tests/export/test_recipe.py",),
    ),
    Mutation(
        "export/networks.py",
        "wrong axis: the end of a text is looked for among the prompts",
        "(ids == eos_token_id).to(torch.int32).argmax(dim=-1)",
        "(ids == eos_token_id).to(torch.int32).argmax(dim=0)",
        ("tests/export/test_onnx.py::test_an_end_token_need_not_be_the_largest_id",),
    ),
    Mutation(
        "runtime/cuda/device.py",
        "wrong unit: CUDA's milliseconds are taken for microseconds",
        "return float(milliseconds) / 1e3",
        "return float(milliseconds) / 1e6",
        ("tests/runtime/cuda/test_device.py",),
    ),
    Mutation(
        "runtime/pipeline.py",
        "lost check: a motion's file may be replaced while it is loaded",
        "        self.bundle.check_unchanged(own)  # it could be replaced in between\n",
        "",
        (
            "tests/engine/bundle/test_replaced_motions.py::test_a_motion_replaced_during_the_switch_is_not_taken",
        ),
    ),
    Mutation(
        "runtime/algorithm/config.py",
        "lost check: a truth value is taken for a number",
        "number = None if isinstance(scalar, bool) else operator.index(scalar)",
        "number = operator.index(scalar)",
        (
            "tests/runtime/algorithm/test_config.py",
            "tests/runtime/test_plain_settings.py::test_what_is_no_integer_is_refused",
        ),
    ),
    Mutation(
        "engine/backends/compiled.py",
        "dropped sorting: the latest engine is the last by name",
        "    sidecars.sort(key=lambda sidecar: sidecar.built_at)\n",
        "",
        ("tests/engine/backends/test_compiled.py",),
    ),
    Mutation(
        "runtime/jobs.py",
        "off by one: lines are counted from 0 in messages",
        "enumerate(text_lines(text), 1)",
        "enumerate(text_lines(text), 0)",
        ("tests/engine/files/test_text.py",),
    ),
    Mutation(
        "runtime/media/image_files.py",
        "skipped cleanup: a switch of Pillow's that belongs to the process stays",
        "        finally:\n            ImageFile.LOAD_TRUNCATED_IMAGES = accepted\n",
        "        finally:\n            pass\n",
        ("tests/runtime/media/test_image_variants.py",),
    ),
    Mutation(
        "runtime/algorithm/latents.py",
        "lost check: a log-variance that is not finite is clamped",
        "np.isfinite(log_variance), np.exp",
        "np.ones_like(log_variance, bool), np.exp",
        ("tests/runtime/algorithm/test_latents.py",),
    ),
    Mutation(
        "engine/bundle/reader.py",
        "lost check: a bundle is opened across a commit",
        "if not os.path.lexists(folder / PENDING) and _identity(folder / MANIFEST) == identity:",
        "if not os.path.lexists(folder / PENDING):",
        ("tests/engine/bundle/test_bundle.py", "tests/engine/bundle/test_crashes.py"),
    ),
    Mutation(
        "engine/backends/tensorrt/build.py",
        "the thread that compiles uses the default GPU",
        'cuda("cudaSetDevice", options.device)  # the current device is per thread',
        "pass",
        (
            "tests/engine/backends/tensorrt/test_build.py::"
            "test_the_thread_that_compiles_is_on_the_gpu_that_was_asked_for",
        ),
    ),
    Mutation(
        "benchmarks/verify/checks/bundle.py",
        "constants that only the bundle has are not compared",
        "for key in sorted(stored.keys() | published.keys())",
        "for key in sorted(published.keys())",
        ("tests/benchmarks/verify/test_constants.py",),
    ),
    Mutation(
        "benchmarks/report/tables.py",
        "dropped sorting: what became slower is not shown first",
        "for c in sorted(result.changes, key=lambda c: order[c.verdict])",
        "for c in result.changes",
        ("tests/benchmarks/test_report.py",),
    ),
    Mutation(
        "benchmarks/bench/harness.py",
        "off by one turn: the last one ends after the deadline",
        "clock.now() + calls * row.typical_s > deadline",
        "clock.now() > deadline",
        ("tests/benchmarks/bench/test_harness.py",),
    ),
    Mutation(
        "runtime/media/video.py",
        "lost check: an odd width is left to the encoder",
        "(height % 2 or width % 2)",
        "(height % 2)",
        ("tests/runtime/media/test_video.py",),
    ),
    Mutation(
        "export/published.py",
        "a tensor of the VAE's old layout has a name that no file has",
        '"to_out.0": "proj_attn"',
        '"to_out": "proj_attn"',
        ("tests/export/checkpoints/test_full_size.py::test_published_layouts_pass_the_reader",),
    ),
    Mutation(
        "export/lamp/precomputed_unets.py",
        "odd sizes are doubled on the way up",
        "size = skips[-1].shape[2:] if skips else None",
        "size = None",
        ("tests/export/lamp/test_precomputed_unets.py",),
    ),
    Mutation(
        "export/aotinductor.py",
        "the compiler that is asked for is not the one that is looked for",
        'os.environ.get("CXX") or "g++"',
        '"g++"',
        (
            "tests/engine/backends/test_aotinductor.py::test_without_a_compiler_it_is_named_before_anything_is_compiled",
        ),
    ),
    Mutation(
        "benchmarks/verify/reference/traces.py",
        "off by one: a forced step starts where it should end",
        "torch.from_numpy(starts[step - 1])",
        "torch.from_numpy(starts[step])",
        ("tests/benchmarks/verify/test_traces.py",),
    ),
    Mutation(
        "runtime/stages.py",
        "without guidance the prompt is replaced by zeros",
        "job.zero_negative and job.guidance_scale > 1",
        "job.zero_negative",
        ("tests/runtime/test_stages.py::test_zeros_stand_for_no_negative_prompt_where_there_is_guidance",),
    ),
    Mutation(
        "engine/backends/backend.py",
        "one network of a precision that it runs is enough",
        "return all(network.precision in self.precisions",
        "return any(network.precision in self.precisions",
        ("tests/engine/backends/test_registry.py",),
    ),
    Mutation(
        "engine/families.py",
        "lost check: a network of a known name takes the other's place",
        "        | specs.keys() & NETWORKS.keys()\n",
        "",
        ("tests/engine/test_families.py",),
    ),
    Mutation(
        "engine/backends/tensorrt/engine.py",
        "lost state: a capture right after a switch",
        "self._motion, self._warm = motion, False",
        "self._motion = motion",
        ("tests/engine/backends/tensorrt/test_motions.py::test_after_a_switch_a_capture_needs_a_run_again",),
    ),
    Mutation(
        "export/checkpoints/scheduler.py",
        "the noise schedule that is checked is not the one that is asked for",
        'power = 2 if config["beta_schedule"] == "scaled_linear" else 1',
        "power = 1",
        ("tests/export/checkpoints/test_scheduler.py",),
    ),
    Mutation(
        "engine/files/tokenizer.py",
        "ids are sorted as texts",
        "sorted(listed.items(), key=lambda item: int(item[0]))",
        "sorted(listed.items(), key=lambda item: str(item[0]))",
        ("tests/engine/files/test_tokenizer_files.py", "tests/runtime/media/test_tokenizer.py"),
    ),
    Mutation(
        "engine/bundle/manifest.py",
        "dropped sorting: equal manifests have different bytes",
        "json.dumps(document, sort_keys=True, indent=2, allow_nan=False)",
        "json.dumps(document, indent=2, allow_nan=False)",
        ("tests/engine/bundle/test_bundle.py", "tests/engine/bundle/test_replaced_motions.py"),
    ),
    # --- graphs: operations, hoisted parts, precisions
    Mutation(
        "benchmarks/bench/flops.py",
        "a product by a transposed weight is none by a weight",
        '_FOLLOWED = ("Transpose", "Cast", *VIEWS)',
        '_FOLLOWED = ("Cast", *VIEWS)',
        ("tests/benchmarks/bench/test_flops.py",),
    ),
    Mutation(
        "export/candidates/convolutions.py",
        "frames are convolved to be dropped",
        "F.conv2d(F.pad(y, (0, 0, 2, 0)), weight, bias)",
        "F.conv2d(F.pad(y, (0, 0, 2, 2)), weight, bias)[:, :, : y.shape[2]]",
        ("tests/benchmarks/bench/test_flops.py",),
    ),
    Mutation(
        "export/lamp/precomputed_unets.py",
        "the prefix is computed twice",
        'self._videos = 1 if "prefix" in hoist else None',
        "self._videos = None",
        ("tests/benchmarks/bench/test_hoisted_flops.py",),
    ),
    Mutation(
        "benchmarks/bench/flops.py",
        "a transposed weight is read twice",
        "                    if node.op_type not in _FOLLOWED\n",
        "",
        ("tests/benchmarks/bench/test_flops.py",),
    ),
    Mutation(
        "engine/backends/onnxruntime/cpu_graph.py",
        "keys and values that a graph is given are exchanged",
        "taken = list(node.input[1:3]) if graph",
        "taken = list(node.input[2:0:-1]) if graph",
        ("tests/export/lamp/test_precomputed_unets.py", "tests/export/test_hoisted_build.py"),
    ),
)
