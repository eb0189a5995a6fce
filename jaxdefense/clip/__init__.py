"""CLIP's encoders in Flax NNX, and their tokenizers. This package does not train."""
