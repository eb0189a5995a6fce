"""The ledger: which removals led to a model, from which ancestor, and what proved them."""
