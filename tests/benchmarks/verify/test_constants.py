# SPDX-License-Identifier: Apache-2.0
"""How verify compares the constants of bundle.json with a checkpoint's."""

import pytest

from lamp_trt.benchmarks.verify.checks.bundle import constants_check

PUBLISHED = {"beta_end": 0.012, "steps_offset": 1, "trained_betas": None, "sizes": [1, 2]}


def test_equal_constants_pass_whether_lists_or_tuples() -> None:
    check = constants_check("scheduler", {**PUBLISHED, "sizes": (1, 2)}, PUBLISHED)
    assert (check.problem, check.measured) == ("", {"values": 4})


@pytest.mark.parametrize(
    ("field", "stored", "published"),
    [("steps_offset", "0", "1"), ("trained_betas", "absent", "None"), ("shift", "3.0", "absent")],
)
def test_a_constant_that_differs_or_that_one_side_lacks_is_named(
    field: str, stored: str, published: str
) -> None:
    changed = {"steps_offset": {**PUBLISHED, "steps_offset": 0}, "shift": {**PUBLISHED, "shift": 3.0}}
    changed["trained_betas"] = {key: PUBLISHED[key] for key in PUBLISHED if key != "trained_betas"}
    problem = constants_check("scheduler", changed[field], PUBLISHED).problem
    assert problem.startswith(f"{field} is {stored} in bundle.json and {published} in the checkpoint: ")
