# SPDX-License-Identifier: Apache-2.0
"""Files of a job between the front and a replica, which need not share a file system."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lamp_trt.engine.files.output import written
from lamp_trt.serving.pools.pool import EngineJob, Finished


@dataclass(frozen=True)
class SentJob:
    """A job with the content of its input files, None for a file that it does not have. The paths in `job`
    are the front's, and mean nothing elsewhere."""

    job: EngineJob
    first_frame: bytes | None
    clip: bytes | None

    @classmethod
    def of(cls, job: EngineJob) -> "SentJob":
        """Raises OSError for a file that cannot be read."""
        first_frame = None if job.first_frame is None else job.first_frame.read_bytes()
        return cls(job, first_frame, None if job.clip is None else Path(job.clip["path"]).read_bytes())

    def unpacked(self, folder: Path) -> EngineJob:
        """The job with its input files written to `folder`, where its output goes too."""
        job = replace(self.job, out=folder / self.job.out.name)
        if self.first_frame is not None:
            path = folder / "first_frame.npy"
            path.write_bytes(self.first_frame)
            job = replace(job, first_frame=path)
        if self.clip is not None and job.clip is not None:
            path = folder / "clip"
            path.write_bytes(self.clip)
            job = replace(job, clip={**job.clip, "path": str(path)})
        return job


@dataclass(frozen=True)
class Made:
    """A completed job with the files that the engine wrote, by name."""

    finished: Finished
    outputs: Mapping[str, bytes]

    @classmethod
    def of(cls, finished: Finished, out: Path) -> "Made":
        """out: the job's, in the replica's folder."""
        files = sorted(path for path in out.parent.iterdir() if path.name.startswith(out.name))
        return cls(finished, {path.name: path.read_bytes() for path in files})

    def write(self, out: Path) -> None:
        """Write all files next to `out`, the video last. Raises as `written`."""
        names = sorted(self.outputs, key=lambda name: (name == out.name, name))
        with written(*(out.with_name(Path(name).name) for name in names)) as partial:
            for name, path in zip(names, partial, strict=True):
                path.write_bytes(self.outputs[name])
