"""A budget in passes: how many steps it is, and that runs and studies see those steps."""

from __future__ import annotations

import pytest

from jepa_lm.run import train
from jepa_lm.utils.config import check, resolve
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import read_json
from jepa_lm.utils.provenance import config_hash

EPOCHS = ("trainer.max_steps=null", "data.train_tokens=4097")


def steps_of(cfg) -> int:
    config = resolve(cfg)
    check(config)
    return config["trainer"]["max_steps"]


def test_passes_over_tokens_are_steps(small):
    config = resolve(small(*EPOCHS))
    windows, rows = (
        4096 // config["data"]["seq_len"],
        (config["data"]["batch_tokens"] // config["data"]["seq_len"]),
    )
    for epochs in (1, 2.5, 6):
        found = steps_of(small(*EPOCHS, f"trainer.max_epochs={epochs}"))
        assert found == int(epochs * windows / rows)
    tokens = config["data"]["batch_tokens"]
    stream = steps_of(small(*EPOCHS, "data.order=stream", "trainer.max_epochs=3"))
    assert stream == int(3 * 4097 / tokens)
    assert steps_of(small(*EPOCHS, "trainer.max_epochs=0.001")) == 1


def test_passes_over_rows_are_steps(compose):
    rows = compose("train", "data=hmm", "trainer.max_steps=null", "trainer.max_epochs=4")
    assert steps_of(rows) == 4 * 256 // 32


def test_steps_beyond_the_passes_do_not_count_and_fewer_are_refused(small):
    epochs = (*EPOCHS[1:], "trainer.max_epochs=2")
    steps = steps_of(small(*epochs, "trainer.max_steps=null"))
    assert steps_of(small(*epochs, "trainer.max_steps=100000")) == steps
    with pytest.raises(UserError, match=rf"max_epochs=2: is {steps} steps here, but .*=3 ends"):
        resolve(small(*epochs, "trainer.max_steps=3"))


def test_what_a_pass_is_must_be_known(small):
    with pytest.raises(UserError, match=r"max_epochs=2: needs the size of a pass: data\.train_tok"):
        resolve(small("trainer.max_steps=null", "trainer.max_epochs=2"))
    with pytest.raises(UserError, match=r"trainer\.max_epochs=-1"):
        resolve(small(*EPOCHS, "trainer.max_epochs=-1"))
    with pytest.raises(UserError, match=r"trainer\.max_epochs=many"):
        resolve(small(*EPOCHS, "trainer.max_epochs=many"))


@pytest.mark.parametrize(
    "mistake",
    ["data.seq_len=0", "data.train_tokens=many", "data.batch_tokens=null"],
)
def test_a_mistake_in_what_steps_are_counted_from_is_told(small, mistake):
    """The config is checked after it is resolved, and steps are counted while it is."""
    key = mistake.partition("=")[0]
    words = [w for w in (*EPOCHS, "trainer.max_epochs=2") if not w.startswith(key)]
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        check(resolve(small(*words, mistake)))


def test_a_config_without_the_key_has_the_hash_that_it_had(small):
    config = resolve(small())
    assert config["trainer"].pop("max_epochs") is None
    assert config_hash(config) == config_hash(resolve(small()))


def test_a_run_reads_its_data_so_often(small, tmp_path):
    epochs = (*EPOCHS, "trainer.max_epochs=1.5")
    train(small(*epochs, run_dir=tmp_path))
    summary = read_json(tmp_path / "summary.json")
    assert summary["steps"] == steps_of(small(*epochs))
    assert summary["passes"] == pytest.approx(1.5, rel=0.03)


def test_a_split_shorter_than_was_counted_is_told(small, tmp_path):
    epochs = ("trainer.max_steps=null", "data.train_tokens=900000", "trainer.max_epochs=1")
    with pytest.raises(UserError, match=r"max_epochs=1.*passes, because the training split is sh"):
        train(small(*epochs, run_dir=tmp_path))
