# SPDX-License-Identifier: Apache-2.0
"""Forms of the temporal attention: q, k, v (b, f, L, c) and the number of heads to (b, f, L, c).

Every pixel of every head attends over its f frames. d is c / heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pixels_as_batch(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention with the batch b*L, which no view of (b, f, L, c) has: q, k, v and the result are copied."""
    b = q.shape[0]
    q, k, v = (torch.unflatten(t, 3, (heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1) for t in (q, k, v))
    attended = torch.unflatten(F.scaled_dot_product_attention(q, k, v), 0, (b, -1))
    return attended.permute(0, 3, 1, 2, 4).flatten(3)


def pixels_as_heads(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention with L*heads heads, which is a view of (b, f, L, c), as is the result. GPU kernels launch at
    most 65535 heads."""
    shape = q.shape
    q, k, v = (torch.unflatten(t, 3, (heads, -1)).flatten(2, 3).transpose(1, 2) for t in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v)  # (b, L*heads, f, d)
    return attended.transpose(1, 2).reshape(shape)


def one_video_at_once(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention with the batch L for each video: q, k and v are views."""
    videos = []
    for video in zip(q, k, v, strict=True):
        one_q, one_k, one_v = (torch.unflatten(t, 2, (heads, -1)).permute(1, 2, 0, 3) for t in video)
        videos.append(F.scaled_dot_product_attention(one_q, one_k, one_v).permute(2, 0, 1, 3).flatten(2))
    return torch.stack(videos)


def small_matrices(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The f x f scores of every pixel by products and sums in fp32, without an attention kernel."""
    q, k, v = (torch.unflatten(t, 3, (heads, -1)) for t in (q, k, v))  # (b, f, L, heads, d)
    scores = (q[:, :, None].float() * k[:, None].float()).sum(-1) * q.shape[-1] ** -0.5
    shares = scores.softmax(2)  # (b, f, f, L, heads)
    out: Tensor = (shares[..., None] * v[:, None].float()).sum(2)
    return out.to(v.dtype).flatten(3)
