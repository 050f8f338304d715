"""What export.py prints of an artifact over its cap."""

from __future__ import annotations

import pytest

from jepa_lm.artifact.export_table import judge, print_account
from jepa_lm.utils.errors import OverCapError

WAY = {"overrides": ["quantization=int4"], "total": 8, "bpb_loss": 0.01}


@pytest.mark.parametrize(
    ("code", "ways", "said"),
    [
        (2, [WAY], "it would fit with quantization=int4 (8 bytes, BPB +0.0100)"),
        (2, [], "none of the options tried fits; choose a smaller model"),
        (12, [], "the code alone exceeds the cap; raise it, or count less code"),
    ],
)
def test_ways_are_a_table_and_none_are_one_sentence(capsys, tmp_path, code, ways, said):
    account = {
        **{"artifact": "artifact.br", "tensors": [], "gptq": None, "codecs": ["brotli"]},
        **{"compressors": {"brotli": 9}, "temperature": {}, "round_trip": {}, "bytes": 9},
        **{"predicted": {"bytes": 9, "off": 0.0}, "code": "full", "code_bytes": code},
        **{"tokenizer_bytes": 0},
        **{"total": 9 + code, "cap": 10, "headroom": 1 - code, "fits": False, "ways_under": ways},
    }
    print_account(account, tmp_path)
    assert ("ways to fit under the cap" in capsys.readouterr().out) == bool(ways)
    with pytest.raises(OverCapError) as told:
        judge(account, 0.1)
    assert said in str(told.value)
