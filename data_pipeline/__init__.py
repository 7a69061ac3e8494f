"""Text to shards to batches: corpora, packing, WebDataset shards, their order, and labelled tasks."""
