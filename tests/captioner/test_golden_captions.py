"""However captions are decoded, they stay what they were."""

import json
from dataclasses import replace

import pytest

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.captioner.captioner import Captioner
from tests.golden.make_captions import BEAMS, OUTPUT, crops


@pytest.mark.parametrize("num_beams", BEAMS)
def test_captions_are_the_golden_ones(num_beams: int) -> None:
    bundle = Bundle.open(DEFAULT_BUNDLE)
    captioner = Captioner(replace(bundle, generation=replace(bundle.generation, num_beams=num_beams)))
    found = captioner.caption(crops(bundle.image_spec.image_size))
    golden = json.loads(OUTPUT.read_text(encoding="utf-8"))[str(num_beams)]
    same = [
        (c.log_prob, log_prob) for c, (text, log_prob) in zip(found, golden, strict=True) if c.text == text
    ]
    # Another kind of CPU may tip a tie.
    assert len(same) >= len(golden) - 1
    assert all(log_prob == pytest.approx(expected, abs=1e-3) for log_prob, expected in same)
