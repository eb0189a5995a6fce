"""Weight names and layouts of other libraries <-> jaxdefense's. Depends on no training code."""
