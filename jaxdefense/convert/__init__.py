"""Weight names and layouts of other libraries <-> ours. Knows nothing of training."""
