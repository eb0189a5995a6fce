"""What a defense changed and what it kept: embeddings, similarity, zero-shot, outcomes."""
