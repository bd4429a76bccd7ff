# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 in PyTorch: schedule, noise, AdaIN regimes, presets, inversion; and the runtime's agrees."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lamp_trt.engine.errors import InputError
from lamp_trt.export.lamp import reference
from lamp_trt.runtime.algorithm import ddim as runtime_ddim
from lamp_trt.runtime.algorithm import latents as runtime_latents
from tests.tolerances import REFERENCE_EXACT_FP64, REFERENCE_STATISTICS_RTOL, RUNTIME_LOOP_REL_L2

F, H, W = 4, 4, 6
TEXT = torch.stack([torch.zeros(7, 3), torch.ones(7, 3)])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FIRST, NOISE, BASE = draw(1, 4, 1, H, W, seed=1) * 2 + 1, draw(1, 4, F, H, W), draw(1, 4, 1, H, W, seed=3)


def predictor(sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    """A stand-in for the UNet: smooth in the sample and the time, different for each text, mixing frames."""
    context = text.mean((1, 2)).reshape(-1, 1, 1, 1, 1).to(sample.dtype)
    return torch.tanh(sample + 0.3 * sample.roll(1, 2) + 0.2 * context + float(timestep) / 2000)


def statistics(latents: Tensor, frame: int) -> Tensor:
    mean, std = reference.channel_statistics(latents[:, :, frame])
    return torch.cat([mean, std])


def follows(latents: Tensor, frame: int, leader: int) -> bool:
    """Whether a frame has the leader's mean and deviation in every channel."""
    a, b = statistics(latents, frame), statistics(latents, leader)
    return torch.allclose(a, b, rtol=REFERENCE_STATISTICS_RTOL, atol=REFERENCE_STATISTICS_RTOL)


def run(**settings: Any) -> tuple[Tensor, list[Tensor]]:
    after: list[Tensor] = []
    noise = settings.pop("noise", NOISE)
    final = reference.denoise(
        predictor, FIRST, noise, TEXT, callback=lambda step, latents: after.append(latents), **settings
    )
    return final, after


@pytest.mark.parametrize(
    ("n", "first", "second"), [(50, 981, 961), (10, 901, 801), (3, 667, 334), (1, 1, None)]
)
def test_timesteps_fall_to_1_in_equal_strides(n: int, first: int, second: int | None) -> None:
    timesteps, _, alpha_prev = reference.ddim_tables(n)
    assert timesteps[0] == first
    assert timesteps[-1] == 1
    assert second is None or timesteps[1] == second
    assert alpha_prev[-1] == reference.alphas_cumprod()[0] < 1


def test_a_scheduler_may_end_without_noise() -> None:
    assert reference.ddim_tables(10, {"set_alpha_to_one": True})[2][-1] == 1


@pytest.mark.parametrize("n", [1, 7, 10, 50, 333, 999])
@pytest.mark.parametrize(
    "config", [None, {"beta_schedule": "linear"}, {"beta_end": 0.02, "set_alpha_to_one": True}]
)
def test_the_runtimes_schedule_is_the_same(n: int, config: dict[str, Any] | None) -> None:
    schedule = runtime_ddim.ddim_schedule(n, config)
    timesteps, alpha_t, alpha_prev = reference.ddim_tables(n, config)
    assert timesteps.tolist() == schedule.timesteps.tolist()
    np.testing.assert_array_max_ulp(alpha_t.numpy(), schedule.alpha_t, 2)
    np.testing.assert_array_max_ulp(alpha_prev.numpy(), schedule.alpha_prev, 2)


@pytest.mark.parametrize("n", [0, -1, 1000])
def test_impossible_step_counts_are_refused(n: int) -> None:
    with pytest.raises(InputError, match=f"num_inference_steps is {n}, expected 1 to 999"):
        reference.ddim_tables(n)


@pytest.mark.parametrize(
    "config", [{"prediction_type": "v_prediction"}, {"beta_schedule": "cosine"}, {"trained_betas": [0.1]}]
)
def test_other_schedulers_are_refused_by_field(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(config))):
        reference.alphas_cumprod(config)


def test_a_step_with_the_true_noise_moves_along_the_same_sample() -> None:
    x0, noise = FIRST.double(), BASE.double()
    table = reference.alphas_cumprod().double()
    at = [table[t].sqrt() * x0 + (1 - table[t]).sqrt() * noise for t in (981, 961)]
    torch.testing.assert_close(
        reference.ddim_step(at[0], noise, table[981], table[961]), at[1], **REFERENCE_EXACT_FP64
    )


def test_frames_share_a_fifth_of_frame_0s_noise() -> None:
    mixed = reference.mix_noise(NOISE)
    torch.testing.assert_close(mixed[:, :, 2], 0.2 * NOISE[:, :, 0] + 0.8 * NOISE[:, :, 2])
    torch.testing.assert_close(mixed[:, :, 0], NOISE[:, :, 0])
    assert abs(reference.mix_noise(draw(1, 4, 2, 200, 200))[:, :, 1].var().item() - 0.68) < 0.01


def test_the_papers_base_noise_is_a_draw_of_its_own() -> None:
    start = reference.initial_latents(FIRST, NOISE, base_noise=BASE)
    torch.testing.assert_close(start[:, :, 1], 0.2 * BASE[:, :, 0] + 0.8 * NOISE[:, :, 1])
    assert torch.equal(start[:, :, :1], FIRST)


def test_adain_gives_the_styles_statistics_and_keeps_the_pattern() -> None:
    content, style = draw(1, 4, H, W), draw(1, 4, H, W, seed=2) * 3 - 1
    out = reference.adain(content, style)
    for got, want in zip(reference.channel_statistics(out), reference.channel_statistics(style), strict=True):
        torch.testing.assert_close(got, want)
    assert torch.corrcoef(torch.stack([out[0, 0].flatten(), content[0, 0].flatten()]))[0, 1] > 0.9999


def test_a_single_pixel_has_no_statistics() -> None:
    with pytest.raises(InputError, match="at least 2 latent pixels"):
        reference.adain(torch.ones(1, 4, 1, 1), torch.ones(1, 4, 1, 1))


def test_early_steps_follow_frame_1_and_late_steps_frame_0() -> None:
    final, after = run(num_inference_steps=50)
    assert len(after) == 50
    for step, latents in enumerate(after):
        assert torch.equal(latents[:, :, :1], FIRST)
        assert follows(latents, 2, 1)
        assert follows(latents, 3, 1)
        assert follows(latents, 1, 0) == (step >= 31)
    torch.testing.assert_close(final, after[-1])


@pytest.mark.parametrize(("preset", "default"), [("official", 31), ("paper", 29)])
@pytest.mark.parametrize("switch", [None, 0, 30, 1000])
def test_the_switch_step_counts_early_steps(
    preset: reference.Preset, default: int, switch: int | None
) -> None:
    _, after = run(preset=preset, adain_switch_step=switch)
    early = sum(not follows(latents, 1, 0) for latents in after)
    assert early == min(default if switch is None else switch, 50)


def test_few_steps_are_matched_to_frame_0_only_at_the_end_and_only_officially() -> None:
    final, after = run(num_inference_steps=5)
    assert not follows(after[-1], 1, 0)
    assert all(follows(final, frame, 0) for frame in range(1, F))
    final, after = run(num_inference_steps=5, preset="paper")
    assert final is after[-1]
    assert not follows(final, 1, 0)


def test_adain_can_be_left_out_or_always_use_the_first_frame() -> None:
    final, after = run(num_inference_steps=5, adain="none")
    assert final is after[-1]
    assert not any(follows(latents, 2, 1) or follows(latents, 1, 0) for latents in after)
    _, after = run(num_inference_steps=5, adain="first_frame")
    assert all(follows(latents, frame, 0) for latents in after for frame in range(1, F))


def test_late_steps_of_both_presets_agree_up_to_rounding() -> None:
    latents = reference.initial_latents(FIRST, NOISE)
    official = reference.match_frames(latents, early=False, preset="official")
    paper = reference.match_frames(latents, early=False, preset="paper")
    torch.testing.assert_close(official, paper)


@pytest.mark.parametrize("preset", ["official", "paper"])
@pytest.mark.parametrize("adain", ["none", "first_frame", "schedule"])
@pytest.mark.parametrize(("steps", "switch", "guidance"), [(40, None, 12.5), (6, 3, 1.0)])
def test_the_runtimes_loop_is_the_same(
    preset: reference.Preset, adain: reference.Adain, steps: int, switch: int | None, guidance: float
) -> None:
    base = BASE if preset == "paper" else None
    want, _ = run(
        preset=preset,
        adain=adain,
        num_inference_steps=steps,
        adain_switch_step=switch,
        guidance_scale=guidance,
        base_noise=base,
    )
    schedule = runtime_ddim.ddim_schedule(steps)
    x = runtime_latents.mix_noise(NOISE.numpy(), FIRST.numpy(), None if base is None else base.numpy())
    for step, t in enumerate(schedule.timesteps):
        both = torch.from_numpy(np.concatenate([x, x]))
        x = runtime_latents.denoise_step(
            x,
            predictor(both, torch.tensor(t), TEXT).numpy(),
            step,
            schedule,
            guidance_scale=guidance,
            preset=preset,
            adain=adain,
            adain_switch_step=switch,
        )
    got = torch.from_numpy(runtime_latents.final_adain(x, preset, adain))
    assert (got - want).norm() <= RUNTIME_LOOP_REL_L2 * want.norm()


def test_guidance_starts_above_1_and_text_is_unconditional_first() -> None:
    batches: list[tuple[int, list[float]]] = []

    def spy(sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        batches.append((len(sample), text[:, 0, 0].tolist()))
        return text.mean((1, 2)).reshape(-1, 1, 1, 1, 1).expand_as(sample)

    guided = reference.predict_noise(spy, NOISE, torch.tensor(1), TEXT, 12.5)
    plain = reference.predict_noise(spy, NOISE, torch.tensor(1), TEXT, 1.0)
    assert batches == [(2, [0, 1]), (1, [1])]
    assert guided.unique().tolist() == [12.5]
    assert plain.unique().tolist() == [1.0]


def test_editing_starts_from_the_given_latents() -> None:
    seen: list[Tensor] = []

    def spy(sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        seen.append(sample)
        return predictor(sample, timestep, text)

    reference.denoise(spy, FIRST, NOISE, TEXT, num_inference_steps=1, mix_noise=False)
    assert torch.equal(seen[0][:1, :, 1:], NOISE[:, :, 1:])
    assert torch.equal(seen[0][:1, :, :1], FIRST)


def test_inversion_is_undone_by_denoising() -> None:
    def constant(sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return (BASE.double() / 2).expand_as(sample)

    video = torch.cat([FIRST, NOISE[:, :, 1:]], dim=2).double()
    trajectory = reference.ddim_inversion(constant, video, TEXT[:1], num_inference_steps=10)
    assert len(trajectory) == 11
    assert trajectory[0] is video
    back = reference.denoise(
        constant,
        FIRST.double(),
        trajectory[-1],
        TEXT,
        num_inference_steps=10,
        guidance_scale=1,
        mix_noise=False,
        adain="none",
    )
    torch.testing.assert_close(back, video, **REFERENCE_EXACT_FP64)


def test_inversion_asks_for_the_time_that_a_step_leads_to() -> None:
    asked: list[int] = []

    def spy(sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        asked.append(int(timestep))
        return torch.zeros_like(sample)

    assert len(reference.ddim_inversion(spy, NOISE, TEXT[:1], num_inference_steps=50, num_steps=3)) == 4
    assert asked == [1, 21, 41]
    with pytest.raises(InputError, match="num_steps is 6, expected 0 to num_inference_steps 5"):
        reference.ddim_inversion(spy, NOISE, TEXT[:1], num_inference_steps=5, num_steps=6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_loop_stays_in_the_dtype_given(dtype: torch.dtype) -> None:
    seen: set[torch.dtype] = set()

    def spy(sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        seen.add(sample.dtype)
        return predictor(sample, timestep, text)

    final = reference.denoise(
        spy, FIRST.to(dtype), NOISE.to(dtype), TEXT.to(dtype), num_inference_steps=4, guidance_scale=2
    )
    want, _ = run(num_inference_steps=4, guidance_scale=2)
    assert seen == {final.dtype} == {dtype}
    assert (final.float() - want).norm() <= 0.02 * want.norm()


@pytest.mark.parametrize("f", [1, 2])
def test_short_videos_work(f: int) -> None:
    final, after = run(noise=NOISE[:, :, :f], num_inference_steps=33)
    assert final.shape == (1, 4, f, H, W)
    assert torch.equal(final[:, :, :1], FIRST)
    assert all(follows(final, frame, 0) for frame in range(f))
    assert after[30].isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "Official"}, "preset is 'Official', expected one of official, paper"),
        ({"adain": "always"}, "adain is 'always'"),
        ({"adain_switch_step": -1}, "adain_switch_step is -1"),
        ({"base_noise": BASE}, "base_noise is given"),
        (
            {"base_noise": NOISE, "preset": "paper"},
            r"base_noise is \(1, 4, 4, 4, 6\), expected \(1, 4, 1, 4, 6\)",
        ),
        ({"noise": NOISE[..., :5]}, r"first_frame_latents is \(1, 4, 1, 4, 6\), expected \(1, 4, 1, 4, 5\)"),
        ({"noise": NOISE[0]}, "noise is"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(**settings)


def test_a_text_without_its_unconditional_half_is_refused() -> None:
    with pytest.raises(InputError, match="unconditional, conditional"):
        reference.denoise(predictor, FIRST, NOISE, TEXT[:1])


def test_frames_are_truncated_and_bytes_survive() -> None:
    levels = torch.arange(256, dtype=torch.float32).reshape(1, 1, 1, 16, 16) / 255
    assert torch.equal(reference.frames_from_video(levels).flatten(), torch.arange(256, dtype=torch.uint8))
    assert reference.frames_from_video(torch.full((1, 3, 2, 1, 1), 0.9999)).unique().tolist() == [254]
