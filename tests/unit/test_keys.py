"""Key specs: published constants and row numbers come out exactly, and what cannot be right is refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ngramstore.errors import UnsupportedVersion, UsageError
from ngramstore.keys import ByteKeys, EngramKeys, LongcatKeys, keys_from_config, keys_from_spec, read_config
from ngramstore.keys.primes import is_prime, next_prime

V41 = {
    "engram_layer_ids": [1, 14],
    "engram_num_embeddings": [384006168, 384016682],
    "engram_max_ngram_size": 4,
    "engram_vocab_size": 16000000,
    "engram_n_heads": 8,
    "engram_head_dim": 256,
    "engram_pad_token_id": 2,
    "engram_compressed_vocab_size": 99092,
}
QWEN = {
    "model_type": "qwen4_exp_text",
    "vocab_size": 248320,
    "ngram_size": 3,
    "heads_per_ngram": 8,
    "ngram_vocab_size_base": 20000000,
    "ple_embed_dim": 2560,
    "ple_layer_ids": [2],
    "make_ngram_vocab_size_divisible_by": 128,
    "split_ngram_parts": 128,
    "eos_token_id": 248044,
}
LONGCAT = {
    "vocab_size": 131072,
    "ngram_vocab_size_ratio": 78,
    "emb_neighbor_num": 4,
    "emb_split_num": 4,
    "eos_token_id": 2,
}
OVER = {"model_type": "over_encoding", "vocab_size": 1000, "orders": [1, 2, 3], "sizes": [999, 12801, 12803]}
OVER |= {"absent_token_id": 0, "eos_token_id": 7}
BYTES = {"encoder_hash_byte_group_size": [3, 4, 5, 6, 7, 8], "encoder_hash_byte_group_vocab": 500002}


def small_engram_config():
    return V41 | {"engram_vocab_size": 50, "engram_compressed_vocab_size": 10, "engram_num_embeddings": None}


def small_engram(**changes):
    return keys_from_config(small_engram_config() | changes, token_map=np.arange(40) % 10)


def all_keys():
    return [small_engram(), *(keys_from_config(config) for config in (QWEN, LONGCAT, OVER, BYTES))]


@pytest.mark.parametrize(("config", "name"), [(V41, "engram_layer_ids"), (QWEN, "ple_layer_ids")])
def test_a_layer_that_is_listed_twice_is_refused(config, name):
    with pytest.raises(UsageError, match=f"{name} = .*, expected each layer once"):
        keys_from_config(config | {name: [2, 5, 2]}, token_map=np.arange(40) % 10 if config is V41 else None)


def test_primes_agree_with_a_sieve_and_with_known_hard_numbers():
    sieve = [n for n in range(2000) if n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))]
    assert [n for n in range(2000) if is_prime(n)] == sieve
    assert is_prime((1 << 64) - 59) and not is_prime((1 << 64) - 1)
    for strong_pseudoprime in (3215031751, 3825123056546413051, 341550071728321):
        assert not is_prime(strong_pseudoprime)
    assert next_prime(13, taken={17, 19}) == 23


def test_engram_constants_are_the_published_ones():
    keys = keys_from_config(V41)
    assert [table.num_rows for table in keys.tables] == [384006168, 384016682]
    assert keys.num_heads == 48
    assert keys.multipliers[0] == (76632096046245, 4839876093313, 35959672319349, 73987337458391)
    assert keys.multipliers[1] == (67716810739261, 51510806800915, 30921347202721, 82619226485591)
    ends = (
        "57 79 81 97 121 129 133 183 189 207 211 253 277 289 307 321 339 381 393 399 403 409 447 463 "
        "477 487 499 507 511 573 609 627 667 669 693 697 711 729 759 769 781 799 813 819 841 877 879 889"
    )
    assert [size - 16000000 for sizes in keys.sizes for size in sizes] == list(map(int, ends.split()))


def test_qwen_constants_are_those_of_the_checkpoint_and_row_numbers_the_golden_ones():
    keys = keys_from_config({"text_config": QWEN, "model_type": "qwen4_exp"})
    assert keys.multipliers == ((23703573157769, 20109073645365, 8052911324071),)
    assert keys.num_rows == 320001536 and sum(keys.sizes[0]) == 320001446
    ends = [3, 23, 33, 47, 59, 63, 69, 77, 81, 93, 107, 147, 153, 159, 161, 171]
    assert [size - 20000000 for size in keys.sizes[0]] == ends
    rows = keys.rows([248044])
    assert rows.shape == (1, 16) and rows[0, 0] == 9663979 and rows[0, 15] == 300986548


def test_longcat_sizes_are_the_published_ones():
    keys = keys_from_config(LONGCAT)
    assert keys.sizes == tuple(range(10223617, 10223640, 2))
    assert keys.num_rows == 122683536 and keys.num_heads == 12


def test_byte_tables_are_those_of_the_released_model():
    keys = keys_from_config(BYTES)
    assert keys.num_rows == 6 * 500002 and keys.num_heads == 6


PINNED = {  # first and last head at each token; computed once with Python integers from the published formulas
    "engram": [[1970411, 759528922], [11951115, 766781279], [1002843, 764841574], [6873249, 755958116]],
    "qwen_ple": [[17004000, 307422311], [18862868, 302796536], [9839208, 313677150], [7738946, 303502973]],
    "longcat": [[255, 112460152], [2752516, 115212347], [917506, 120036906], [9, 112459906]],
    "over_encoding": [[255, 14055], [7, 25550], [2, 13802], [9, 15809]],
    "bytes": [[67199, 2519701], [89686, 2625932], [360276, 2749698], [487890, 2770693]],
}


def test_pinned_row_numbers():
    engram = keys_from_config(V41, token_map=np.arange(99092))
    for keys in (engram, *(keys_from_config(config) for config in (QWEN, LONGCAT, OVER, BYTES))):
        rows = keys.rows([255, 7, 2, 9])
        assert rows[:, [0, -1]].tolist() == PINNED[keys.model], keys.model


@pytest.mark.parametrize("config", [QWEN | {"eos_token_id": 2}, LONGCAT], ids=["qwen_ple", "longcat"])
def test_an_eos_sees_its_own_segment_and_hides_it_from_the_token_behind(config):
    keys = keys_from_config(config)
    rows = keys.rows([5, 6, 2, 7])
    assert (rows[2] != keys.rows([2])[0]).any()
    assert (rows[3] == keys.rows([2, 7])[1]).all()
    if keys.model == "longcat":
        assert (rows[3] == keys.rows([7])[0]).all()


def test_a_dead_position_blocks_all_that_look_across_it():
    keys = small_engram()
    rows = keys.rows([5, 6, -1, 7, 8])
    assert (rows[3] == keys.rows([7])[0]).all()
    assert (rows[4] == keys.rows([7, 8])[1]).all()
    assert (rows[2] == keys.rows([-1])[0]).all()


def test_row_numbers_stay_inside_the_table_of_their_head():
    for keys in all_keys():
        tokens = np.random.default_rng(1).integers(0, keys.vocab_size, (3, 50))
        rows = keys.rows(tokens)
        assert rows.dtype == np.int64 and rows.shape == (3, 50, keys.num_heads)
        for table in keys.tables:
            part = rows[..., table.first_head : table.first_head + table.num_heads]
            assert part.min() >= table.first_row and part.max() < table.first_row + table.num_rows
        assert (rows >= keys.first_rows).all()


def test_a_spec_survives_json_and_needs_no_derivation():
    for keys in all_keys():
        spec = json.loads(json.dumps(keys.spec()))
        token_map = np.arange(40) % 10 if keys.model == "engram" else None
        again = keys_from_spec(spec, token_map=token_map)
        assert again == keys
        tokens = np.random.default_rng(2).integers(0, keys.vocab_size, (2, 20))
        assert (again.rows(tokens) == keys.rows(tokens)).all()


def test_no_number_of_a_spec_is_one_that_json_readers_round():
    def numbers(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [n for item in value for n in numbers(item)]
        return [value] if isinstance(value, (int, float)) else []

    for keys in [keys_from_config(V41), *all_keys()]:
        assert all(isinstance(n, int) and n <= 1 << 53 for n in numbers(keys.spec()))


def test_the_token_map_joins_case_accents_and_spaces_and_keeps_a_lone_space():
    tokenizers = pytest.importorskip("tokenizers")
    words = ["The", "the", " thé", "\t", " ", "\n\n", "", "Ω", "ω", "ﬁ", "fi"]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="")
    tokenizer = tokenizers.Tokenizer(model)
    keys = keys_from_config(
        V41 | {"engram_vocab_size": 50, "engram_compressed_vocab_size": 5, "engram_num_embeddings": None},
        tokenizer=tokenizer,
    )
    assert keys.token_map.tolist() == [0, 0, 0, 1, 1, 1, 2, 3, 3, 4, 4]


def test_a_tokenizer_that_gives_another_compressed_size_is_refused():
    with pytest.raises(UsageError, match=r"gives 10 compressed ids \(0 to 9\), the config expects 99092"):
        keys_from_config(V41, token_map=np.arange(40) % 10)


@pytest.mark.parametrize(
    "token_map",
    [
        np.where(np.arange(40) % 10 == 4, 5, np.arange(40) % 10),  # 4 is left out
        np.arange(40) % 10 - 1,
        np.arange(40) % 10 + 1,
        np.where(np.arange(40) == 7, -1, np.arange(40) % 10),
        np.arange(40) % 11,
        np.array(9),
        9,
        np.arange(40).reshape(4, 10) % 10,
        np.empty(0, np.int64),
        np.arange(40) % 10 / 1,
        "map",
        [[0], [1, 2]],
    ],
    ids=str,
)
def test_a_token_map_that_does_not_use_each_compressed_id_is_refused(token_map):
    with pytest.raises(UsageError, match=r"compressed ids|token map"):
        keys_from_config(small_engram_config(), token_map=token_map)
    with pytest.raises(UsageError, match=r"compressed ids|token map"):
        keys_from_spec(keys_from_config(small_engram_config()).spec(), token_map=token_map)


def test_engram_without_its_token_map_knows_its_sizes_but_gives_no_rows():
    keys = keys_from_config(V41 | {"vocab_size": 129280})
    with pytest.raises(UsageError, match="token map"):
        keys.rows([1, 2])


def test_a_spec_made_without_the_token_map_takes_one_shorter_than_a_padded_vocabulary():
    config = V41 | {"engram_vocab_size": 50, "engram_compressed_vocab_size": 10, "engram_num_embeddings": None}
    spec = keys_from_config(config | {"vocab_size": 48}).spec()
    again = keys_from_spec(spec, token_map=np.arange(40) % 10)
    assert again == small_engram(vocab_size=48) and again.vocab_size == 40
    with pytest.raises(UsageError, match="has 50 ids, expected 48"):
        keys_from_spec(spec, token_map=np.arange(50) % 10)
    with pytest.raises(UsageError, match="has 30 ids, expected 40"):
        keys_from_spec(again.spec(), token_map=np.arange(30) % 10)


def test_another_token_map_than_the_frozen_one_is_refused():
    spec = small_engram().spec()
    with pytest.raises(UsageError, match="digest"):
        keys_from_spec(spec, token_map=(np.arange(40) + 1) % 10)


def test_row_counts_that_do_not_come_out_are_refused():
    with pytest.raises(UsageError, match=r"384006168, 1\].*384006168, 384016682"):
        keys_from_config(V41 | {"engram_num_embeddings": [384006168, 1]})


@pytest.mark.parametrize("bad", [-1, 248320, 999999, 1 << 40])
def test_a_token_out_of_range_is_named(bad):
    with pytest.raises(UsageError, match=rf"id {bad} at line 0, position 1 is out of range\n.*0 to 248319"):
        keys_from_config(QWEN).rows([[5, bad]])


@pytest.mark.parametrize("tokens", [[1.5], [[[1]]], ["a"], 3])
def test_tokens_that_are_no_integers_or_no_lines_are_refused(tokens):
    with pytest.raises(UsageError, match=r"tokens .* integers"):
        keys_from_config(QWEN).rows(tokens)


def test_a_history_of_another_shape_is_refused():
    with pytest.raises(UsageError, match=r"history is int64 of shape \(1, 3\), wanted integers \(1, 2\)"):
        keys_from_config(QWEN).rows([[5]], np.zeros((1, 3), np.int64))


def test_constants_that_would_overflow_int64_are_refused():
    spec = keys_from_config(QWEN).spec()
    spec["multipliers"] = [[str((1 << 63) // 1000), "3", "5"]]
    with pytest.raises(UsageError, match="past the int64 limit"):
        keys_from_spec(spec)
    with pytest.raises(UsageError, match="past the int64 limit"):
        LongcatKeys.from_config(LONGCAT | {"vocab_size": 1 << 30})
    with pytest.raises(UsageError, match="past the int64 limit"):
        EngramKeys.from_spec(small_engram().spec() | {"multipliers": [[str(1 << 61)] * 4] * 2})


def test_the_largest_legal_ids_do_not_overflow():
    for config in (QWEN, LONGCAT):
        keys = keys_from_config(config)
        tokens = [keys.vocab_size - 1] * 4
        naive = [t * m for t, m in zip(tokens, getattr(keys, "multipliers", ((1, 1),))[0], strict=False)]
        assert max(naive) < 1 << 63
        assert keys.rows(tokens).min() >= 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, "no n-gram table is known for model_type 'llama'"),
        ({k: v for k, v in V41.items() if k != "engram_n_heads"}, "the config has no engram_n_heads"),
        ({k: v for k, v in QWEN.items() if k != "eos_token_id"}, "the config has no eos_token_id"),
        (QWEN | {"ngram_size": 2.5}, "ngram_size = 2.5"),
        (QWEN | {"ngram_size": True}, "ngram_size = True"),
        (QWEN | {"eos_token_id": []}, "expected one token id"),
        (QWEN | {"eos_token_id": [248320, 1]}, "below vocab_size"),
        (LONGCAT | {"eos_token_id": [1, 2]}, "expected one token id"),
        (QWEN | {"eos_token_id": 248320}, "below vocab_size"),
        (LONGCAT | {"ngram_exclude_sp_token": True}, "ngram_exclude_sp_token"),
        (LONGCAT | {"oe_ignored_token_ids": [5], "text_vocab_size": 100}, "oe_ignored_token_ids"),
        (OVER | {"orders": [2]}, "expected one size an order"),
        (OVER | {"sizes": [0, 1, 2]}, "sizes = 0"),
        (BYTES | {"encoder_hash_byte_group_nb_functions": 99}, "expected 1 to 11"),
    ],
)
def test_a_wrong_config_says_what_was_found(config, message):
    with pytest.raises(UsageError) as caught:
        keys_from_config(config)
    assert message in caught.value.message


def test_specs_of_other_versions_and_models_are_refused():
    spec = keys_from_config(QWEN).spec()
    with pytest.raises(UnsupportedVersion):
        keys_from_spec(spec | {"version": 2})
    with pytest.raises(UsageError, match="not a key spec"):
        keys_from_spec({"model": "other"})
    with pytest.raises(UsageError, match="lacks or garbles"):
        keys_from_spec({name: value for name, value in spec.items() if name != "multipliers"})
    for model in (spec, small_engram().spec()):
        with pytest.raises(UsageError):
            keys_from_spec(model | {"multipliers": []})


def test_many_byte_functions_use_their_own_bases():
    keys = ByteKeys.from_config(BYTES | {"encoder_hash_byte_group_nb_functions": 2})
    rows = keys.rows([9, 8, 7, 6])
    assert keys.num_heads == 12 and (rows[-1, :6] + 6 * 500002 != rows[-1, 6:]).all()


def test_the_command_prints_row_numbers_from_the_config_alone(tmp_path):
    from ngramstore.cli.keys import command

    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    result = CliRunner().invoke(command, [str(tmp_path / "config.json"), "--tokens", "248044 1000", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [len(line) for line in rows] == [16, 16] and rows[0][0] == 9663979 and rows[0][15] == 300986548


def test_the_command_refuses_a_token_out_of_range(tmp_path):
    from ngramstore.cli.keys import command

    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    result = CliRunner().invoke(command, [str(tmp_path), "--tokens", str(1 << 70)])
    assert isinstance(result.exception, UsageError)


def test_the_command_takes_engram_s_token_map_from_a_tokenizer_or_from_a_file(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    from ngramstore.cli.keys import command

    words = ["a", "A", "b", "c", ""]
    config = V41 | {"engram_vocab_size": 50, "engram_compressed_vocab_size": 4, "engram_num_embeddings": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    np.save(tmp_path / "map.npy", np.array([0, 0, 1, 2, 3]))
    answers = []
    for choice in (["--tokenizer", str(tmp_path)], ["--token-map", str(tmp_path / "map.npy")]):
        result = CliRunner().invoke(command, [str(tmp_path), "--tokens", "0 1 2", "--json", *choice])
        assert result.exit_code == 0, result.output
        answers.append(json.loads(result.stdout))
    assert answers[0] == answers[1]
    assert [table["name"] for table in answers[0]["tables"]] == ["layer 1", "layer 14"]
    keys = keys_from_config(config, token_map=[0, 0, 1, 2, 3])
    assert answers[0]["rows"] == keys.rows([1, 0, 2]).tolist()


def test_engram_without_a_tokenizer_says_so_whatever_the_ids():
    keys = keys_from_config(V41)
    for ask in (keys.rows, keys.advance):
        with pytest.raises(UsageError, match=r"need the token map.*\n.*--tokenizer"):
            ask([1, 2])


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (V41, "engram_n_heads"),
        (V41, "engram_max_ngram_size"),
        (QWEN, "heads_per_ngram"),
        (QWEN, "ngram_size"),
        (LONGCAT, "emb_neighbor_num"),
        (LONGCAT, "emb_split_num"),
    ],
)
def test_a_config_that_asks_for_a_billion_heads_is_refused_at_once(config, name):
    with pytest.raises(UsageError, match=rf"{name} = 1000000000, expected an integer from \d to 1024"):
        keys_from_config(config | {name: 10**9})


def test_a_config_is_read_from_its_file_or_its_directory(tmp_path):
    with pytest.raises(UsageError, match=r"has no config\.json"):
        read_config(tmp_path)
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "x"}')
    assert read_config(path) == read_config(tmp_path) == {"model_type": "x"}
    with pytest.raises(UsageError, match="there is no file"):
        read_config(tmp_path / "none.json")
    for text, message in (("{", "is not JSON"), ("[" * 100_000, "is not JSON"), ("[1]", "holds a list")):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_config(path)


def test_a_token_map_is_a_copy_of_what_was_given():
    both = np.arange(41) % 10
    keys = keys_from_config(small_engram_config(), token_map=both[:40])
    tokens = np.arange(40)[None]
    before = keys.rows(tokens)
    assert both.flags.writeable
    both[:] = 9
    np.testing.assert_array_equal(keys.rows(tokens), before)
    given = np.arange(40) % 10
    keys_from_config(small_engram_config(), token_map=given)
    assert given.flags.writeable
