# SPDX-License-Identifier: Apache-2.0
"""A bundle whose lamp_unet is one resnet and one transformer block of the LAMP UNet, small enough to compile
in a test. Motions: `a`, `b`; `gates` is `a` with the gate biases of `b`; `full` shares nothing."""

from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.torch import save
from torch import Tensor, nn

from lamp_trt.engine.bundle.manifest import Manifest, MotionEntry, NetworkEntry
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.writer import BundleWriter
from lamp_trt.engine.networks import IOTensor, is_motion_tensor
from lamp_trt.export.lamp.lean_unet import make_lean
from lamp_trt.export.lamp.unet import LampUNetConfig, ResnetBlock3D, Transformer3DModel
from lamp_trt.export.networks import LampUnetNetwork

Arrays = dict[str, np.ndarray]
State = dict[str, Tensor]

INPUTS = (
    IOTensor("sample", (2, 32, 4, 8, 8), "float32"),
    IOTensor("time_embedding", (2, 128), "float32"),
    IOTensor("encoder_hidden_states", (2, 7, 32), "float32"),
)
OUTPUTS = (IOTensor("noise_pred", (2, 64, 4, 8, 8), "float32"),)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = LampUNetConfig(
            block_out_channels=(32, 64, 64, 64),
            norm_num_groups=8,
            cross_attention_dim=32,
            attention_head_dim=4,
        )
        self.resnet = ResnetBlock3D(32, 64, config)
        self.transformer = Transformer3DModel(64, 4, config)

    def forward(self, x: Tensor, time_embedding: Tensor, text: Tensor) -> Tensor:
        out: Tensor = self.transformer(self.resnet(x, time_embedding), text)
        return out


def network() -> nn.Module:
    """The block as export/networks.py would wrap it: lean, as `model`."""
    return LampUnetNetwork(make_lean(Block()).eval())  # type: ignore[arg-type]


def random_state(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.2
        for name, tensor in Block().state_dict().items()
    }


def motion_states() -> dict[str, State]:
    """The whole state with each motion."""
    a, b = random_state(0), random_state(1)
    return {
        "a": a,
        "b": {name: b[name] if is_motion_tensor(name) else a[name] for name in a},
        "gates": {name: b[name] if name.endswith("conv_gate.bias") else a[name] for name in a},
        "full": random_state(2),
    }


def write_bundle(folder: Path) -> Bundle:
    states = motion_states()
    contents = {
        "lamp_unet.onnx": _graph().SerializeToString(),
        "weights/unet.safetensors": save(
            {name: value for name, value in states["a"].items() if not is_motion_tensor(name)}
        ),
    }
    for motion, state in states.items():
        kept = {name: value for name, value in state.items() if motion == "full" or is_motion_tensor(name)}
        contents[f"motions/{motion}.safetensors"] = save(kept)
    with BundleWriter(folder) as writer:
        for relative, data in contents.items():
            with writer.create(relative, relative) as file:
                file.write(data)
        motions = {
            name: MotionEntry(f"motions/{name}.safetensors", "full" if name == "full" else "motion", "0" * 64)
            for name in states
        }
        writer.commit(
            Manifest(
                networks={"lamp_unet": NetworkEntry("lamp_unet.onnx", "unet", "fp32", INPUTS, OUTPUTS)},
                sizes={"num_frames": 4},
                scheduler={},
                scaling_factors={},
                motions=motions,
                default_motion="a",
                files=writer.files,
            )
        )
    return Bundle.open(folder)


def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {tensor.name: rng.standard_normal(tensor.shape).astype(np.float32) for tensor in INPUTS}


def expected(motion: str) -> np.ndarray:
    """The block's output for `arrays()` in eager PyTorch, official formulation."""
    block = Block().eval()
    block.load_state_dict(motion_states()[motion])
    with torch.inference_mode():
        output: np.ndarray = block(*map(torch.from_numpy, arrays().values())).numpy()
    return output


def _graph() -> onnx.ModelProto:
    """Stands for the block's graph: it is hashed, and never run."""
    make = onnx.helper.make_tensor_value_info
    inputs, outputs = (
        [make(tensor.name, onnx.TensorProto.FLOAT, tensor.shape) for tensor in tensors]
        for tensors in (INPUTS, OUTPUTS)
    )
    node = onnx.helper.make_node("Identity", [INPUTS[0].name], [OUTPUTS[0].name])
    return onnx.helper.make_model(onnx.helper.make_graph([node], "block", inputs, outputs))
