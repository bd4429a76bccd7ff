# SPDX-License-Identifier: Apache-2.0
"""--safety of the commands, and where a bundle's filter is shown."""

import json
import shlex
from pathlib import Path

import pytest

from lamp_trt.cli import main
from lamp_trt.doctor.bundles import bundle_findings

QUICK = ("--num-threads=1", "--steps=1")


def generate(bundle: Path, *arguments: object) -> int:
    return main(["generate", f"--bundle={bundle}", *QUICK, *map(str, arguments)])


def test_a_flagged_picture_ends_with_one_line_and_nothing_written(
    safe_bundle: Path, safe_toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("x", "--first-frame", safe_toy / "flagged.png", "--out", tmp_path / "a.gif")
    assert generate(safe_bundle, *arguments, "--save-first-frame") == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(
        "lamp-trt generate: the first frame is refused: the safety checker flags it."
    )
    assert "highest scores" not in err
    assert not [*tmp_path.iterdir()]


def test_scores_are_shown_on_request(
    safe_bundle: Path, safe_toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("x", "--first-frame", safe_toy / "flagged.png", "--out", tmp_path / "a.gif")
    assert generate(safe_bundle, *arguments, "-v") == 1
    assert "safety checker, the first frame, highest scores of concepts: 0." in capfd.readouterr().err


@pytest.mark.parametrize(("mode", "flagged"), [("report", True), ("off", None)])
def test_other_modes_write_the_video(
    safe_bundle: Path, safe_toy: Path, tmp_path: Path, mode: str, flagged: bool | None
) -> None:
    out = tmp_path / "a.gif"
    picture = safe_toy / "flagged.png"
    assert generate(safe_bundle, "x", "--first-frame", picture, "--out", out, "--safety", mode) == 0
    sidecar = json.loads(Path(f"{out}.json").read_text())
    assert (sidecar["safety"], sidecar["safety_flagged"]) == (mode, flagged)


def test_of_several_videos_the_others_are_made(
    safe_bundle: Path, safe_toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "plain.png"
    picture.write_bytes(plain_png())
    flagged = str(safe_toy / "flagged.png")
    jobs = [
        {"prompt": "a", "first_frame": picture.name, "out": str(tmp_path / "a.gif")},
        {"prompt": "b", "first_frame": flagged, "out": str(tmp_path / "b.gif")},
        {"prompt": "c", "first_frame": flagged, "out": str(tmp_path / "c.gif"), "safety": "report"},
        {
            "prompt": "d",
            "first_frame": picture.name,
            "out": str(tmp_path / "d.gif"),
            "safety_crops": "official",
        },
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    assert generate(safe_bundle, "--prompts", tmp_path / "jobs.jsonl") == 1
    out, err = capfd.readouterr()
    assert [Path(line).name for line in out.splitlines()] == ["a.gif", "c.gif", "d.gif"]
    assert not (tmp_path / "b.gif").exists()
    assert "b.gif is not made: the first frame is refused" in err
    assert err.splitlines()[-1] == "lamp-trt generate: 1 of 4 videos were refused by the safety checker."


def plain_png() -> bytes:
    from lamp_trt.benchmarks.verify.pictures import synthetic_picture
    from lamp_trt.runtime.media.image import encode_png

    return encode_png(synthetic_picture(64, 64))


@pytest.mark.parametrize("field", ["safety", "safety_crops"])
def test_a_job_file_with_an_unknown_mode_is_refused(
    safe_bundle: Path, tmp_path: Path, field: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"prompt": "a", field: "maybe"}))
    assert generate(safe_bundle, "--prompts", tmp_path / "jobs.jsonl") == 2
    assert f"line 1: {field} is 'maybe'; choose one of" in capfd.readouterr().err


def test_a_bundle_without_a_checker(
    toy_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "plain.png"
    picture.write_bytes(plain_png())
    arguments = ("x", "--first-frame", picture, "--out", tmp_path / "a.gif")
    assert generate(toy_bundle, *arguments, "--safety=refuse") == 2
    assert "safety is 'refuse', but this bundle has no safety checker" in capfd.readouterr().err
    assert not (tmp_path / "a.gif").exists()
    assert generate(toy_bundle, "x", "y", "--first-frame", picture, "--out", tmp_path / "videos") == 0
    assert capfd.readouterr().err.count("has no safety checker: nothing is filtered") == 1
    assert generate(toy_bundle, *arguments, "--safety=off") == 0
    assert "nothing is filtered" not in capfd.readouterr().err


def test_the_readmes_commands_do_what_it_says(
    safe_bundle: Path,
    safe_toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text().split("\n## Safety\n")[1].split("\n## ")[0]
    commands = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    lamp-trt ")]
    assert [command[0] for command in commands] == ["generate", "generate", "inspect"]
    (tmp_path / "bundle").symlink_to(safe_bundle)
    (tmp_path / "toy").symlink_to(safe_toy)
    monkeypatch.chdir(tmp_path)
    refused, reported, shown = ((main(command), capfd.readouterr()) for command in commands)
    assert refused[0] == 1
    assert "the first frame is refused" in refused[1].err
    assert not (tmp_path / "refused.mp4").exists()
    assert reported[0] == 0
    assert "the safety checker flags the video" in reported[1].err
    assert json.loads((tmp_path / "flagged.mp4.json").read_text())["safety_flagged"] is True
    assert shown[0] == 0
    assert "safety checker of 17 concepts" in shown[1].out


def test_inspect_says_whether_a_bundle_filters(
    safe_bundle: Path, toy_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(safe_bundle)]) == main(["inspect", str(toy_bundle)]) == 0
    out = capfd.readouterr().out
    assert "safety    safety checker of 17 concepts and 3 special-care ones" in out
    assert "safety    no safety checker: nothing is filtered" in out
    assert main(["inspect", str(safe_bundle), "--json"]) == main(["inspect", str(toy_bundle), "--json"]) == 0
    with_checker, without = map(json.loads, capfd.readouterr().out.splitlines())
    assert with_checker["safety"] == {"concepts": 17, "special_care": 3}
    assert without["safety"] is None


def test_doctor_says_whether_the_bundles_of_a_folder_filter(
    safe_bundle: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "filters").symlink_to(safe_bundle)
    (tmp_path / "does-not").symlink_to(toy_bundle)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bundle.json").write_text("{")
    (tmp_path / "other").mkdir()
    found = bundle_findings(tmp_path)
    assert [(finding.status, finding.data.get("filters")) for finding in found] == [
        ("problem", None),
        ("note", False),
        ("ok", True),
    ]
    assert found[2].detail == "filtered by a safety checker of 17 concepts"
    assert bundle_findings(safe_bundle)[0].status == "ok"
    assert bundle_findings(tmp_path / "nowhere") == bundle_findings(tmp_path / "other") == []
