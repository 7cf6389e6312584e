"""The examples are objects that the schema takes, that the operator acts on, and whose references parse."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from imageprepull.oci.reference import Reference
from imageprepull.resources.base import decode
from imageprepull.resources.imageprepull import ImagePrepullSpec
from imageprepull.resources.unsupported import unsupported
from tests.unit.test_crds_models import closed, schema_of

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def test_there_are_examples() -> None:
    assert "imageprepull.yaml" in [example.name for example in EXAMPLES]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_is_valid_and_acted_on(example: Path) -> None:
    for document in yaml.safe_load_all(example.read_text()):
        assert (document["apiVersion"], document["kind"]) == ("imageprepull.io/v1alpha1", "ImagePrepull")
        jsonschema.validate(document["spec"], closed(schema_of("imageprepulls", "spec")))
        spec = decode(ImagePrepullSpec, document["spec"])
        assert unsupported(spec) == []
        assert [str(Reference.parse(entry.image).name) for entry in spec.images]
