"""What reads texts and writes none: embeddings, scores, and documents in the order of their relevance."""
