"""One short file per stage of a model's life."""
