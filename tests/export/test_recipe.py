# SPDX-License-Identifier: Apache-2.0
"""Keys of a bundle's files: what must not change them."""

import json
import shutil
from pathlib import Path

from lamp_trt.export.recipe import recipe_from_options
from tests.fixtures.toy import toy_options


def test_keys_do_not_depend_on_the_order_of_a_configs_fields(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy / "sd", tmp_path / "sd")
    for path in (tmp_path / "sd").rglob("config.json"):
        fields = json.loads(path.read_text())
        path.write_text(json.dumps(dict(reversed(fields.items()))))
        assert list(json.loads(path.read_text())) != sorted(fields)
    ours, theirs = (recipe_from_options(toy_options(toy, sd=sd)) for sd in (toy / "sd", tmp_path / "sd"))
    assert len(ours.networks) == 4
    for network in ours.networks:
        assert ours.graph_key(network) == theirs.graph_key(network)
    for component in ours.components:
        assert ours.weights_key(component) == theirs.weights_key(component)
