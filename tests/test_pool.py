"""The model pool: prices, errors, meta-features."""
import numpy as np
import pandas as pd
import pytest

from mtrouter_nb.core.files import data_dir, data_homes
from mtrouter_nb.data.pool import FEATURES, MINT_POOL, ModelPool, UnknownModel, demo_pool, mint_pool, size_bucket_price
from mtrouter_nb.data.mint import mint_models

PRICES = ["input_usd_per_mtok", "output_usd_per_mtok"]


def pool_of(**prices) -> ModelPool:
    return ModelPool(pd.DataFrame.from_dict(prices, orient="index", columns=PRICES))


def test_prices_equal_reference():
    files = [home / "mint" / "prices.csv" for home in data_homes()]
    if not any(file.exists() for file in files):
        pytest.skip("the reference prices are not here")
    reference = pd.read_csv(next(file for file in files if file.exists()), index_col="model")
    ours = mint_pool(reference.index).table
    assert len(reference) == 52
    pd.testing.assert_frame_equal(ours[PRICES], reference[PRICES])
    assert ours.basis.tolist() == reference.basis.tolist()


def test_every_mint_model_has_a_price():
    table = mint_pool(mint_models()).table
    assert (table[PRICES] > 0).all(axis=None) and len(table) == 52


@pytest.mark.parametrize("name, price", [("zephyr-7b-beta", .2), ("Meta-Llama-3-8B-Instruct", .2),
    ("vicuna-13b-v1.5", .3), ("deepseek-coder-33b-instruct", .8), ("deepseek-llm-67b-chat", .9),
    ("Mixtral-8x7B-Instruct-v0.1", .6), ("openchat-3.5-1210", .2)])
def test_size_buckets(name, price):
    assert size_bucket_price(name) == price


@pytest.mark.parametrize("name", ["gpt-5", "some-405B-model"])
def test_no_price_is_an_error(name):
    with pytest.raises(UnknownModel, match=f"No price is known for model '{name}'"):
        mint_pool([name])


def test_list_prices_are_dated():
    listed = pd.read_csv(data_dir() / "mint_list_prices.csv")
    assert pd.to_datetime(listed.as_of).notna().all() and not listed.model.duplicated().any()


def test_cost():
    pool = pool_of(big=(30, 60), small=(.2, .4))
    assert pool.cost_usd("big", 1000, 500) == pytest.approx(.06)
    assert pool.cost_usd(np.array(["small", "big"]), [1e6, 0], [1e6, 1e6]) == pytest.approx([.6, 60])
    assert pool.cost_usd("big", np.array([1e6, 2e6]), 0) == pytest.approx([30, 60])
    assert isinstance(pool.cost_usd("big", 1, 1), float)


@pytest.mark.parametrize("call", [lambda p: p.index("huge"), lambda p: p.subset(["big", "huge"]),
                                  lambda p: p.cost_usd(["big", "huge"], 1, 1)])
def test_unknown_model(call):
    with pytest.raises(KeyError) as raised:
        call(pool_of(big=(1, 1)))
    assert str(raised.value).startswith("Model 'huge' is not in the pool (big); add it to the pool's table")


def test_subset_keeps_given_order_and_the_pool():
    pool = mint_pool()
    assert pool.subset(["Meta-Llama-3-8B-Instruct", "gpt-4-0613"]).names == ["Meta-Llama-3-8B-Instruct", "gpt-4-0613"]
    assert pool.names == list(MINT_POOL) and len(pool) == 6 and "gpt-4-0613" in pool


def test_bad_tables_are_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks the column 'output_usd_per_mtok'"):
        ModelPool(pd.DataFrame(dict(input_usd_per_mtok=[1.]), index=["a"]))
    with pytest.raises(ValueError, match="names 'a' twice"):
        ModelPool(pd.DataFrame(dict.fromkeys(PRICES, [1., 2.]), index=["a", "a"]))
    with pytest.raises(ValueError, match="model 'b': output_usd_per_mtok: -1 is negative"):
        pool_of(a=(1, 1), b=(1, -1))
    with pytest.raises(ValueError, match="model 'b': input_usd_per_mtok is missing"):
        pool_of(a=(1, 1), b=(None, 1))
    (tmp_path / "pool.csv").write_text("name,input_usd_per_mtok,output_usd_per_mtok\na,1,1\n")
    with pytest.raises(ValueError, match="pool.csv lacks the column 'model'"):
        ModelPool.from_csv(tmp_path / "pool.csv")


def test_csv_round_trip_keeps_missing_missing(tmp_path):
    pool = mint_pool()
    again = ModelPool.from_csv(pool.to_csv(tmp_path / "pool.csv"))
    pd.testing.assert_frame_equal(again.table, pool.table)
    assert again.fingerprint() == pool.fingerprint() != pool.subset(pool.names[::-1]).fingerprint()
    assert again.table.max_output_tokens.isna().sum() == 5
    assert [p.name for p in tmp_path.iterdir()] == ["pool.csv"]


def test_features_by_hand():
    """The formula of the paper's model encoder, written out again with its defaults for what is missing."""
    table = pd.DataFrame(dict(input_usd_per_mtok=[1., 2.], output_usd_per_mtok=[4., 2.], max_input_tokens=[1000, None],
                              max_output_tokens=[100, None], knowledge_cutoff=["2025-12-31", None]), index=["a", "b"])
    raw = np.array([[np.log1p(1000), np.log1p(100), np.log1p(1), np.log1p(4), -1, np.log1p(1100),
                     np.log1p(4 / 1.000001), np.log1p(5)],
                    [np.log1p(128_000), np.log1p(4096), np.log1p(2), np.log1p(2), -731, np.log1p(132_096),
                     np.log1p(2 / 2.000001), np.log1p(4)]])
    expected = (raw - raw.mean(0)) / (raw.std(0) + 1e-6)
    np.testing.assert_allclose(ModelPool(table).features(), expected, rtol=1e-9)
    assert len(FEATURES) == 8


def test_features_of_the_paper_pool():
    """Signs that can be read off the table: GPT-4 is dearest and oldest."""
    features = pd.DataFrame(mint_pool().features(), mint_pool().names, FEATURES)
    assert features.input_usd_per_mtok.idxmax() == "gpt-4-0613" == features.cutoff_days.idxmin()
    np.testing.assert_allclose(features.mean(), 0, atol=1e-9)


def test_demo_pool():
    assert demo_pool().names == ["grand-120b", "middle-30b", "sums-8b", "novice-3b"]
    assert demo_pool().table.notna().all(axis=None)
