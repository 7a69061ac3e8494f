"""Packing keeps what the documents say: every row is made of their tokens, in their order."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.masking import mask
from data_pipeline.packing import Row, _truncate, pack
from data_pipeline.settings import MaskingConfig, PackingConfig
from data_pipeline.vocabulary import Vocabulary, load_vocabulary

CLS, SEP = 2, 3
FIRST_TOKEN = 10  # of made-up documents: above the special tokens


@pytest.fixture(scope="module")
def vocabulary(tiny_tokenizer) -> Vocabulary:
    return replace(load_vocabulary(tiny_tokenizer), size=60_000)


def distinct_documents(shape: list[list[int]]) -> list[list[list[int]]]:
    """Documents of sentences of these lengths, in which no token comes twice."""
    token, documents = FIRST_TOKEN, []
    for lengths in shape:
        document = []
        for length in lengths:
            document.append(list(range(token, token + length)))
            token += length
        documents.append(document)
    return documents


def shapes(least: int = 1, longest: int = 12):
    """Lengths of the sentences of several documents."""
    return st.lists(st.lists(st.integers(1, longest), min_size=1, max_size=8), min_size=least, max_size=6)


def rows_of(documents, config: PackingConfig, vocabulary: Vocabulary, seed: int = 0) -> list[Row]:
    return list(pack(documents, config, vocabulary, np.random.default_rng(seed)))


def segments(row: Row) -> tuple[list[int], list[int]]:
    """The two segments without special tokens."""
    return (
        [token for token in row.ids[: row.boundary] if token not in (CLS, SEP)],
        [token for token in row.ids[row.boundary :] if token not in (CLS, SEP)],
    )


def flat(document: list[list[int]]) -> list[int]:
    return [token for sentence in document for token in sentence]


def is_run(tokens: list[int]) -> bool:
    """Whether distinct tokens are neighbours in their document."""
    return tokens == list(range(tokens[0], tokens[0] + len(tokens)))


methods = st.sampled_from(["pairs", "contiguous_pairs", "full"])


@given(shapes(longest=40), methods, st.integers(8, 64), st.integers(0, 9))
def test_no_row_is_longer_than_max_length(vocabulary, shape, method, max_length, seed):
    config = PackingConfig(method, max_length)
    rows = rows_of(distinct_documents(shape), config, vocabulary, seed)
    assert rows
    assert max(len(row.ids) for row in rows) <= max_length


@given(shapes(), methods, st.integers(8, 32), st.sampled_from([0.0, 0.5]), st.integers(0, 9))
def test_rows_begin_with_cls_and_segments_end_with_sep(vocabulary, shape, method, max_length, masked, seed):
    config = PackingConfig(method, max_length, masking=MaskingConfig(masked))
    for row in rows_of(distinct_documents(shape), config, vocabulary, seed):
        assert row.ids[0] == CLS
        assert row.ids[row.boundary - 1] == row.ids[-1] == SEP
        assert row.ids.count(SEP) == (1 if row.boundary == len(row.ids) else 2)
        assert bool(segments(row)[1]) == (row.boundary < len(row.ids))


@given(shapes(least=2, longest=30), methods, st.integers(8, 64), st.integers(0, 9))
def test_a_segment_is_a_piece_of_one_document(vocabulary, shape, method, max_length, seed):
    documents = distinct_documents(shape)
    home = {token: number for number, d in enumerate(documents) for token in flat(d)}
    for row in rows_of(documents, PackingConfig(method, max_length), vocabulary, seed):
        for segment in filter(None, segments(row)):
            assert is_run(segment)
            assert len({home[token] for token in segment}) == 1


@given(shapes(least=2), st.integers(8, 64), st.integers(0, 9))
def test_a_second_segment_is_the_true_next_or_of_another_document(vocabulary, shape, max_length, seed):
    documents = distinct_documents(shape)
    home = {token: number for number, d in enumerate(documents) for token in flat(d)}
    for row in rows_of(documents, PackingConfig("pairs", max_length), vocabulary, seed):
        first, second = segments(row)
        if second and home[first[0]] == home[second[0]]:
            assert first[-1] < second[0]


@given(st.lists(st.integers(1, 60), min_size=2, max_size=5), st.integers(8, 24), st.integers(0, 9))
def test_sentences_that_a_random_segment_displaced_are_used_again(vocabulary, counts, max_length, seed):
    """With sentences of one token nothing is cut, so the rows hold every document in order."""
    documents = distinct_documents([[1] * count for count in counts])
    home = {token: number for number, d in enumerate(documents) for token in flat(d)}
    tokens: list[int] = []
    for row in rows_of(documents, PackingConfig("pairs", max_length), vocabulary, seed):
        first, second = segments(row)
        tokens += first + [token for token in second if home[token] == home[first[0]]]
    assert tokens == [token for document in documents for token in flat(document)]


def test_pairs_are_random_about_half_of_the_time(vocabulary):
    documents = distinct_documents([[3] * 40] * 40)
    home = {token: number for number, d in enumerate(documents) for token in flat(d)}
    rows = rows_of(documents, PackingConfig("pairs", 33), vocabulary)
    pairs = [segments(row) for row in rows]
    random = sum(home[first[0]] != home[second[0]] for first, second in pairs if second)
    assert 0.4 < random / len(rows) < 0.6


def test_a_random_segment_begins_at_any_sentence(vocabulary):
    documents = distinct_documents([[4] * 10, [4] * 10])
    config, starts = PackingConfig("pairs", 16, short_probability=0.0), set()
    for seed in range(20):
        for row in rows_of(documents, config, vocabulary, seed):
            first, second = segments(row)
            if second[0] > documents[0][-1][-1] >= first[0]:
                starts.add(second[0])
    assert len(starts) > 4


@given(st.integers(1, 40), st.integers(0, 40), st.integers(2, 40))
def test_the_longer_segment_is_cut_first_and_from_both_ends(long, short, room):
    first, second = list(range(long)), list(range(100, 100 + short))
    lengths = [long, short]
    while sum(lengths) > room:
        lengths[lengths[0] <= lengths[1]] -= 1  # of equals the second
    cut = [_truncate(first, second, room, np.random.default_rng(seed)) for seed in range(20)]
    for pair in cut:
        assert [len(part) for part in pair] == lengths
        assert all(is_run(part) for part in pair if part)
    if 0 < lengths[0] < long:
        assert len({pair[0][0] for pair in cut}) > 1


@given(shapes(), st.integers(0, 9))
def test_contiguous_pairs_reproduce_every_token_in_order(vocabulary, shape, seed):
    """With room for the sentence that fills a row, nothing is cut."""
    documents = distinct_documents(shape)
    longest = sum(map(len, flat_sentences(documents)))
    config = PackingConfig("contiguous_pairs", longest + 3)
    rows = rows_of(documents, config, vocabulary, seed)
    tokens = [token for row in rows for segment in segments(row) for token in segment]
    assert tokens == [token for document in documents for token in flat(document)]


def flat_sentences(documents: list) -> list[list[int]]:
    return [sentence for document in documents for sentence in document]


@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 4), st.integers(0, 9))
def test_contiguous_pairs_that_fit_exactly_lose_nothing(vocabulary, length, count, fit, seed):
    """Rows whose room is a multiple of the sentences' length are filled and never cut."""
    documents = distinct_documents([[length] * count] * 2)
    room = length * fit
    if room + 3 < 8:
        return
    config = PackingConfig("contiguous_pairs", room + 3, short_probability=0.0)
    rows = rows_of(documents, config, vocabulary, seed)
    tokens = [token for row in rows for segment in segments(row) for token in segment]
    assert tokens == [token for document in documents for token in flat(document)]
    assert len(rows) == 2 * -(-count // fit)


@given(shapes(longest=40), st.integers(8, 64))
def test_full_rows_lose_no_token(vocabulary, shape, max_length):
    documents = distinct_documents(shape)
    rows = rows_of(documents, PackingConfig("full", max_length), vocabulary)
    tokens = [token for row in rows for token in segments(row)[0]]
    assert tokens == [token for document in documents for token in flat(document)]


@given(shapes(longest=6), st.integers(8, 64))
def test_full_rows_cut_no_sentence_that_fits(vocabulary, shape, max_length):
    documents = distinct_documents(shape)
    starts = {sentence[0] for sentence in flat_sentences(documents)}
    for row in rows_of(documents, PackingConfig("full", max_length), vocabulary):
        assert row.ids[1] in starts


def test_full_rows_take_as_many_sentences_as_fit(vocabulary):
    documents = distinct_documents([[3, 3, 3, 3]])
    rows = rows_of(documents, PackingConfig("full", 8), vocabulary)
    assert [len(row.ids) for row in rows] == [8, 8]


def test_full_rows_have_no_second_segment(vocabulary):
    rows = rows_of(distinct_documents([[5] * 9]), PackingConfig("full", 16), vocabulary)
    assert all(row.boundary == len(row.ids) for row in rows)


def test_a_document_alone_is_paired_with_itself_only(vocabulary):
    documents = distinct_documents([[4] * 30])
    for row in rows_of(documents, PackingConfig("pairs", 32), vocabulary):
        first, second = segments(row)
        assert is_run(first)
        assert not second or (is_run(second) and first[-1] < second[0])


def test_short_rows_come_as_often_as_asked(vocabulary):
    documents = distinct_documents([[1] * 20_000])
    never = rows_of(documents, PackingConfig("contiguous_pairs", 103, 0.0), vocabulary)
    often = rows_of(documents, PackingConfig("contiguous_pairs", 103, 0.5), vocabulary)
    assert all(len(row.ids) == 103 for row in never)
    short = sum(len(row.ids) < 103 for row in often)
    assert 0.4 < short / len(often) < 0.6


def test_short_rows_are_of_any_length_from_two_tokens_on(vocabulary):
    documents = distinct_documents([[1] * 2000])
    config = PackingConfig("contiguous_pairs", 12, short_probability=1.0)
    rows = rows_of(documents, config, vocabulary)[:-1]  # the last takes what is left
    assert {len(row.ids) - 3 for row in rows} == set(range(2, 10))


def test_a_sentence_that_fills_a_row_is_paired_with_another_document(vocabulary):
    documents = distinct_documents([[20] * 10, [20] * 10])
    for row in rows_of(documents, PackingConfig("pairs", 16, short_probability=0.0), vocabulary):
        assert all(segments(row))


def test_the_same_generator_gives_the_same_rows_and_another_others(vocabulary):
    documents = distinct_documents([[5] * 12] * 6)
    config = PackingConfig("pairs", 32, masking=MaskingConfig(0.15))
    first, again, other = (rows_of(documents, config, vocabulary, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_two_separators_stand_between_segments_where_the_tokenizer_wants_them(tiny_tokenizer, tmp_path):
    vocabulary = roberta_like(tiny_tokenizer, tmp_path)
    rows = rows_of(distinct_documents([[4] * 20] * 3), PackingConfig("contiguous_pairs", 24), vocabulary)
    for row in rows:
        assert len(row.ids) <= 24
        if row.boundary < len(row.ids):
            assert row.ids[row.boundary - 2 : row.boundary] == [SEP, SEP]
            assert row.ids.count(SEP) == 3


def roberta_like(tiny_tokenizer: str, folder) -> Vocabulary:
    """The tiny tokenizer with RoBERTa's template of pairs."""
    from tokenizers.processors import RobertaProcessing

    tokenizer = load_vocabulary(tiny_tokenizer).tokenizer
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.post_processor = RobertaProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    copy.save(str(folder / "tokenizer.json"))
    return load_vocabulary(str(folder))


# --- masking ---------------------------------------------------------------------------------


def mask_row(row: Row, config: MaskingConfig, vocabulary, rng) -> Row:
    return Row(mask(row.ids, config, vocabulary, rng)[0].tolist(), row.boundary)


ROW = Row([CLS, *range(10, 50), SEP, *range(50, 90), SEP], 42)


def changed(before: Row, after: Row) -> list[int]:
    return [i for i, (a, b) in enumerate(zip(before.ids, after.ids, strict=True)) if a != b]


@given(st.integers(0, 9), methods)
def test_probability_zero_masks_none(vocabulary, seed, method):
    documents = distinct_documents([[5] * 12] * 4)
    config = PackingConfig(method, 32, masking=MaskingConfig(0.0))
    for row in rows_of(documents, config, vocabulary, seed):
        assert vocabulary.mask not in row.ids
        assert all(is_run(segment) for segment in filter(None, segments(row)))


@given(st.integers(0, 200))
def test_at_least_one_masks_exactly_one_at_probability_zero(vocabulary, seed):
    masking = MaskingConfig(0.0, at_least_one=True)
    row = mask_row(ROW, masking, vocabulary, np.random.default_rng(seed))
    assert len(changed(ROW, row)) <= 1  # one in ten chosen tokens is kept as it was


def test_at_least_one_leaves_its_mark_nine_times_in_ten(vocabulary):
    masking = MaskingConfig(0.0, at_least_one=True)
    rng = np.random.default_rng(0)
    rows = [mask_row(ROW, masking, vocabulary, rng) for _ in range(2000)]
    masked = sum(vocabulary.mask in row.ids for row in rows)
    marked = sum(bool(changed(ROW, row)) for row in rows)
    assert 0.77 < masked / 2000 < 0.83
    assert 0.88 < marked / 2000 < 0.92


@given(st.floats(0, 1), st.integers(0, 30), st.integers(0, 9))
def test_masking_changes_at_most_what_it_may(vocabulary, probability, most, seed):
    row = mask_row(ROW, MaskingConfig(probability, most), vocabulary, np.random.default_rng(seed))
    assert len(changed(ROW, row)) <= min(most, round(len(ROW.ids) * probability))
    assert row.boundary == ROW.boundary


@given(st.integers(0, 50))
def test_masking_leaves_special_tokens_alone(vocabulary, seed):
    row = mask_row(ROW, MaskingConfig(1.0, most=1000), vocabulary, np.random.default_rng(seed))
    assert [row.ids[0], row.ids[41], row.ids[-1]] == [CLS, SEP, SEP]


def test_masks_random_tokens_and_kept_ones_are_80_10_10(vocabulary):
    rng = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    drawn = []
    for _ in range(200):
        row = mask_row(ROW, MaskingConfig(1.0, most=1000), vocabulary, rng)
        drawn.append({row.ids[place] for place in changed(ROW, row)} - {vocabulary.mask})
        for before, after in zip(ROW.ids, row.ids, strict=True):
            if before not in (CLS, SEP):
                counts["mask" if after == vocabulary.mask else "kept" if after == before else "random"] += 1
    total = sum(counts.values())
    assert total == 200 * 80
    assert counts["mask"] / total == pytest.approx(0.8, abs=0.01)
    assert counts["kept"] / total == pytest.approx(0.1, abs=0.01)
    assert counts["random"] / total == pytest.approx(0.1, abs=0.01)
    assert sum(map(len, drawn)) > 0.9 * counts["random"]  # each is drawn for itself


def test_a_row_of_special_tokens_alone_has_nothing_to_mask(vocabulary):
    row = Row([CLS, SEP], 2)
    assert mask_row(row, MaskingConfig(1.0, at_least_one=True), vocabulary, np.random.default_rng(0)) == row
