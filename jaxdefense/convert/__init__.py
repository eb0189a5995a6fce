"""Weight names and layouts of other libraries <-> jaxdefense's. Knows nothing of training."""
