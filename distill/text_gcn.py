"""Job `textgcn`: a graph of texts and words, and two graph convolutions (Yao et al. 2019, AAAI).

Texts of both files and all their words are nodes. A text and a word are joined by TF-IDF, two words by
their positive pointwise mutual information within a window, a node with itself by 1. Features are the
nodes' identity. The labels of the training file reach the texts of the dev file through the graph, so
there is no model to take elsewhere: it answers the texts that it was built with, and no others.

The matrix is sparse throughout. The loss is cross-entropy of logits, and dropout lies before the layers
(the Chinese original feeds it a softmax, and drops logits).
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import bmat, csr_matrix, diags, eye
from sklearn.feature_extraction.text import TfidfTransformer
from torch import Tensor, nn
from torch.nn import functional

from data_pipeline.progress import Progress
from data_pipeline.settings import WordsConfig
from data_pipeline.tasks import label_set, read_examples, read_targets
from data_pipeline.words import SPECIAL, build_tokenizer
from distill.losses import label_loss
from distill.measure import by_class, task_metrics
from distill.run_folder import Metrics
from distill.settings import TextGcnConfig

WINDOWS_AT_ONCE = 1 << 17  # whose words are held


def run(config: TextGcnConfig, folder: Path) -> dict:
    """Train on the whole graph at once; returns the best epoch's metrics on dev, and those by class."""
    torch.manual_seed(config.seed)
    task = config.task
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    labels = label_set(task)
    texts = [read_examples(path, task).firsts for path in (task.train, task.dev)]
    targets = [read_targets(path, task, labels) for path in (task.train, task.dev)]
    ids, words = word_ids([*texts[0], *texts[1]], config)
    if not words:
        raise ValueError(f"task: {task.train} and {task.dev} hold no word {config.least} times (least)")
    adjacency = _tensor(graph(ids, words, config.window)).to(device)
    model = TextGcn(adjacency.shape[0], config.hidden_size, len(labels), config.dropout).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    train, dev = slice(0, len(texts[0])), slice(len(texts[0]), len(texts[0]) + len(texts[1]))
    train_labels, best_logits = torch.from_numpy(targets[0]).to(device), None
    metrics = Metrics(folder)
    metrics.rewind("textgcn", 0)  # a resumed run begins anew
    best: dict[str, float] = {}
    with Progress("textgcn", config.epochs, unit="epoch") as progress:
        for epoch in range(1, config.epochs + 1):
            model.train()
            optimizer.zero_grad()
            loss = label_loss(model(adjacency)[train], train_labels) / len(train_labels)
            loss.backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                logits = model(adjacency)[dev].cpu()
            scores = task_metrics(logits, targets[1], task.selection)
            position = {"stage": "textgcn", "step": epoch, "epoch": epoch}
            metrics.append({**position, "split": "train", "loss": loss.item(), "lr": config.lr})
            metrics.append({**position, "split": "dev", **scores})
            if not best or scores[task.selection] > best[task.selection]:
                best, best_logits = {**scores, "step": epoch}, logits
            progress.advance()
            on_dev = f"dev {task.selection} {scores[task.selection]:.4f}"
            progress.describe(f"loss {loss.item():.4g}  {on_dev}", {"loss": loss.item(), **scores})
    assert best_logits is not None
    size = {"texts": len(ids), "words": words, "edges": adjacency._nnz()}
    classes = by_class(best_logits, targets[1], labels)
    return {"steps": config.epochs, "best": best, "graph": size, **classes}


class TextGcn(nn.Module):
    """softmax(A relu(A W0) W1), with one row of W0 for every node."""

    def __init__(self, nodes: int, hidden: int, classes: int, dropout: float):
        super().__init__()
        self.first = nn.Parameter(nn.init.xavier_uniform_(torch.empty(nodes, hidden)))
        self.second = nn.Linear(hidden, classes, bias=False)
        self.dropout = dropout

    def forward(self, adjacency: Tensor) -> Tensor:
        """Logits (nodes, classes)."""
        features = functional.dropout(self.first, self.dropout, self.training)
        hidden = functional.relu(torch.sparse.mm(adjacency, features))
        hidden = functional.dropout(hidden, self.dropout, self.training)
        return torch.sparse.mm(adjacency, self.second(hidden))


def word_ids(texts: list[str], config: TextGcnConfig) -> tuple[list[np.ndarray], int]:
    """The known words of every text in their order, and how many words there are."""
    tokenizer = build_tokenizer(texts, WordsConfig(least=config.least, most=config.most))
    first = len(SPECIAL)
    encodings = tokenizer.encode_batch(texts)
    ids = [np.array([i - first for i in e.ids if i >= first], dtype=np.int64) for e in encodings]
    return ids, tokenizer.get_vocab_size() - first


def graph(ids: list[np.ndarray], words: int, window: int) -> csr_matrix:
    """The normalised adjacency D^-1/2 A D^-1/2 of texts, then words."""
    tfidf = TfidfTransformer(norm=None).fit_transform(_counts(ids, words))
    adjacency = bmat([[None, tfidf], [tfidf.T, mutual_information(ids, words, window)]], format="csr")
    adjacency = adjacency + eye(adjacency.shape[0])
    scale = diags(np.asarray(adjacency.sum(axis=1)).ravel() ** -0.5)
    return csr_matrix(scale @ adjacency @ scale)


def _counts(ids: list[np.ndarray], words: int) -> csr_matrix:
    """How often each word stands in each run of ids, (runs, words)."""
    pointers = np.cumsum([0, *map(len, ids)])
    flat = np.concatenate(ids)
    return csr_matrix((np.ones(len(flat)), flat, pointers), shape=(len(ids), words))


def mutual_information(ids: list[np.ndarray], words: int, window: int) -> csr_matrix:
    """log(p(a, b) / (p(a) p(b))) of words over sliding windows where positive, (words, words)."""
    windows = (run[begin : begin + window] for run in ids for begin in range(max(1, len(run) - window + 1)))
    both, number = csr_matrix((words, words)), 0
    while some := list(islice(windows, WINDOWS_AT_ONCE)):
        seen = _counts(some, words)
        seen.sum_duplicates()
        seen.data[:] = 1  # a window holds a word or not
        both, number = both + csr_matrix(seen.T @ seen), number + len(some)
    alone = both.diagonal()
    both.setdiag(0)
    both.eliminate_zeros()
    rows = np.repeat(np.arange(words), np.diff(both.indptr))
    both.data = np.maximum(0, np.log(both.data * number / (alone[rows] * alone[both.indices])))
    both.eliminate_zeros()
    return both


def _tensor(matrix: csr_matrix) -> Tensor:
    entries = matrix.tocoo()
    places = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
    values = torch.from_numpy(entries.data.astype(np.float32))
    return torch.sparse_coo_tensor(places, values, matrix.shape, check_invariants=True).coalesce()
