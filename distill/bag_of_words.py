"""A bag-of-words baseline: logistic regression on word counts. It shows what needs no word order."""

from __future__ import annotations

import time
from statistics import median

from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from data_pipeline.settings import TaskConfig
from data_pipeline.tasks import read_examples


def bag_of_words_row(task: TaskConfig, repeats: int) -> dict:
    """Train on the task's training file, measure on dev; returns a row as evaluate's."""
    train, dev = read_examples(task.train, task), read_examples(task.dev, task)
    model = make_pipeline(CountVectorizer(token_pattern=r"\S+"), LogisticRegression(max_iter=1000))
    model.fit(train.firsts, train.labels)
    times = []
    for sentence in dev.firsts[:repeats]:
        begin = time.perf_counter()
        model.predict([sentence])
        times.append(1000 * (time.perf_counter() - begin))
    weights = model[-1].coef_.size + model[-1].intercept_.size
    return {
        "name": "bag of words",
        "metric": "accuracy",
        "accuracy_mean": model.score(dev.firsts, dev.labels),
        "accuracy_sd": None,
        "seeds": 1,
        "parameters": weights,
        "megabytes": round(weights * 4 / 1e6, 3),
        "latency_ms_p50": round(median(times), 3),
    }
