"""A search over student configurations; one trial is one DeepSpeed job."""
