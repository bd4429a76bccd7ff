# SPDX-License-Identifier: Apache-2.0
"""Description of a bundle, as `lamp-trt inspect` prints it: text or JSON."""

from collections.abc import Mapping
from typing import Any

from lamp_trt.engine.bundle.reader import Bundle


def bundle_summary(bundle: Bundle) -> dict[str, Any]:
    """The bundle's contents as JSON values; sizes in bytes."""
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "digest": bundle.digest,
        "sizes": manifest.sizes,
        "networks": {
            name: {
                "precision": network.precision,
                "graph_bytes": manifest.files[network.graph].size,
                "inputs": {tensor.name: [tensor.dtype, *tensor.shape] for tensor in network.inputs},
                "outputs": {tensor.name: [tensor.dtype, *tensor.shape] for tensor in network.outputs},
            }
            for name, network in manifest.networks.items()
        },
        "motions": {
            name: {
                "kind": motion.kind,
                "default": name == manifest.default_motion,
                "bytes": manifest.files[motion.file].size,
            }
            for name, motion in manifest.motions.items()
        },
        "safety": None
        if manifest.safety is None
        else {
            "concepts": len(manifest.safety.concept_thresholds),
            "special_care": len(manifest.safety.special_care_thresholds),
        },
        "previews": {vae: entry.r_squared for vae, entry in manifest.previews.items()},
        "files": {path: entry.size for path, entry in manifest.files.items()},
    }


def safety_text(safety: Mapping[str, int] | None) -> str:
    """Whether a bundle filters, from `bundle_summary`'s entry."""
    if safety is None:
        return "no safety checker: nothing is filtered"
    return f"safety checker of {safety['concepts']} concepts and {safety['special_care']} special-care ones"


def previews_text(previews: Mapping[str, float]) -> str:
    """The VAEs that have a preview map, from `bundle_summary`'s entry."""
    if not previews:
        return "none, as an older lamp-trt made this bundle: repeat its build"
    return ", ".join(f"{vae} (R² {share:.3f})" for vae, share in previews.items())


def summary_text(summary: dict[str, Any], checked: str) -> str:
    """`bundle_summary` as lines. `checked` says how the files were checked."""
    sizes = summary["sizes"]
    lines = [
        f"{summary['path']}",
        f"  video     {sizes['width']}x{sizes['height']}, {sizes['num_frames']} frames",
        f"  digest    {summary['digest']}",
        f"  files     {len(summary['files'])}, {sum(summary['files'].values()) / 1e6:,.1f} MB, {checked}",
        f"  safety    {safety_text(summary['safety'])}",
        f"  previews  {previews_text(summary['previews'])}",
        "  networks",
    ]
    for name, network in summary["networks"].items():
        lines.append(f"    {name:16} {network['precision']}, graph {network['graph_bytes'] / 1e3:,.0f} kB")
        for direction in ("inputs", "outputs"):
            for tensor, (dtype, *shape) in network[direction].items():
                arrow = "→" if direction == "outputs" else " "
                lines.append(f"      {arrow} {tensor:22} {dtype:8} {'x'.join(map(str, shape))}")
    lines.append("  motions")
    for name, motion in summary["motions"].items():
        default = ", default" * motion["default"]
        lines.append(f"    {name:16} {motion['bytes'] / 1e6:,.1f} MB, {motion['kind']}{default}")
    return "\n".join(lines)
