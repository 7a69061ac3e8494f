"""Job `vocabulary`: a WordPiece vocabulary of a corpus, and the model folder that an encoder starts from.

RUN/model holds a tokenizer and the configuration of a BERT without weights: `pregenerate --tokenizer`
and `pretrain --model` take it as they take any model folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_pipeline.corpus import check_corpus, read_documents
from data_pipeline.settings import VocabularyConfig, progress_mode
from data_pipeline.whole import whole_folder
from data_pipeline.words import CLS, NAMED, SEPARATOR, SPECIAL, UNKNOWN

LONGEST = 512  # tokens of a sequence


def check(config: VocabularyConfig) -> None:
    """Refuse settings that can't work. Raises ValueError."""
    if config.size <= len(SPECIAL) or config.least < 1:
        raise ValueError(f"size: {config.size}, least: {config.least}; give more than 5, and 1 or more")
    check_corpus(config.corpus, 1)


def run(config: VocabularyConfig, folder: Path) -> dict[str, Any]:
    """Write `folder`/model; returns the summary's figures."""
    tokenizer = train(config)
    size = tokenizer.get_vocab_size()
    with whole_folder(folder / "model") as partial:
        tokenizer.save(str(partial / "tokenizer.json"))
        for name, content in (("tokenizer_config", _described(config)), ("config", _shape(size))):
            (partial / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return {"tokens": size, "model": str(folder / "model")}


def train(config: VocabularyConfig) -> Tokenizer:
    """A tokenizer as BERT's: words at spaces and punctuation, Chinese characters by themselves."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=config.lower_case)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.size,
        min_frequency=config.least,
        special_tokens=SPECIAL,
        show_progress=sys.stderr.isatty() and progress_mode() == "auto",
    )
    tokenizer.train_from_iterator(read_documents(config.corpus), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS}:0 $A:0 {SEPARATOR}:0",
        pair=f"{CLS}:0 $A:0 {SEPARATOR}:0 $B:1 {SEPARATOR}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (CLS, SEPARATOR)],
    )
    return tokenizer


def _described(config: VocabularyConfig) -> dict[str, Any]:
    return {
        "tokenizer_class": "BertTokenizerFast",
        "do_lower_case": config.lower_case,
        "model_max_length": LONGEST,
        **NAMED,
    }


def _shape(size: int) -> dict[str, Any]:
    """BERT-base's shape; `pretrain --shape` gives another."""
    return {
        "model_type": "bert",
        "vocab_size": size,
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": LONGEST,
        "type_vocab_size": 2,
        "pad_token_id": 0,
    }
