"""CLIP's encoders in Flax NNX. Knows nothing of meshes, files or training."""
