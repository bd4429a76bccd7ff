# SPDX-License-Identifier: Apache-2.0
"""The faults of `make mutate` fit the code: seen here at once, and there only after a quarter of an hour."""

import re

import pytest

from tests.mutate_product import ROOT
from tests.mutations import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: f"{each.file}: {each.what}")
def test_a_fault_fits_the_source_and_its_tests_exist(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    for name in mutation.tests:
        file, _, function = name.partition("::")
        text = (ROOT / file).read_text()
        assert not function or re.search(rf"def {re.escape(function.partition('[')[0])}\b", text), name
